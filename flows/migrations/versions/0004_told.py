"""What each address has been told: the newest event that it knows of."""

from alembic import op

revision = "0004"
down_revision = "0003"

TOLD = """
CREATE TABLE told (
    address  text PRIMARY KEY,                    -- a digest of its URL, which holds secrets
    event    bigint NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    op.execute(TOLD)


def downgrade() -> None:
    raise NotImplementedError("the registry's history is never thrown away; restore a backup instead")
