"""What is asked for by its run or by its kind is found without reading all that came before.

And a column that databases of the registry's first day have not got: it was added to 0001 a little later.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

INDEXES = """
ALTER TABLE windows ADD COLUMN IF NOT EXISTS watching boolean NOT NULL DEFAULT false;
ALTER TABLE windows ALTER COLUMN watching DROP DEFAULT;
CREATE INDEX promotions_by_run   ON promotions (run);
CREATE INDEX promotions_by_model ON promotions (model, started_at);
CREATE INDEX events_by_kind      ON events (model, kind, id);
"""


def upgrade() -> None:
    op.execute(INDEXES)


def downgrade() -> None:
    raise NotImplementedError("the registry's history is never thrown away; restore a backup instead")
