"""Promotions may end `unproven`: the deadline came without proof, and nothing spoke against the release."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATES = """
ALTER TABLE promotions DROP CONSTRAINT promotions_state_check;
ALTER TABLE promotions ADD CONSTRAINT promotions_state_check
    CHECK (state IN ('running', 'watching',
                     'promoted', 'rejected', 'failed', 'aborted', 'kept', 'unproven'));
"""


def upgrade() -> None:
    op.execute(STATES)


def downgrade() -> None:
    raise NotImplementedError("the registry's history is never thrown away; restore a backup instead")
