"""The registry: models, releases, promotions, and everything that was seen and decided.

The invariants of the product live here, where no crash and no second writer can break them: one canary,
one stable and one previous release a model; one open promotion a model; events are never changed.
"""

from alembic import op

revision = "0001"
down_revision = None

SCHEMA = """
CREATE TABLE models (
    name            text PRIMARY KEY,
    created_at      timestamptz NOT NULL DEFAULT now(),
    route           jsonb NOT NULL DEFAULT '{}',  -- the weights that we last meant the data plane to serve
    retreat         jsonb,                        -- a rollback that has begun and is not settled yet
    frozen          text,                         -- why no promotion may begin; NULL when one may
    cooldown_until  timestamptz                   -- alerts do not roll back again before this time
);

CREATE TABLE releases (
    model        text NOT NULL REFERENCES models (name),
    version      integer NOT NULL CHECK (version > 0),
    bundle       text NOT NULL,
    sha256       text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    spec         text NOT NULL,                   -- model.yaml as it was registered
    image        text,
    phase        text NOT NULL DEFAULT 'registered'
                 CHECK (phase IN ('registered', 'canary', 'stable', 'previous', 'retired', 'rejected')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, version)
);
CREATE UNIQUE INDEX one_canary_a_model   ON releases (model) WHERE phase = 'canary';
CREATE UNIQUE INDEX one_stable_a_model   ON releases (model) WHERE phase = 'stable';
CREATE UNIQUE INDEX one_previous_a_model ON releases (model) WHERE phase = 'previous';

CREATE TABLE promotions (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    model        text NOT NULL,
    version      integer NOT NULL,
    run          text NOT NULL,                   -- who drives it: a Prefect flow run's id
    state        text NOT NULL DEFAULT 'running'
                 CHECK (state IN ('running', 'watching',
                                  'promoted', 'rejected', 'failed', 'aborted', 'kept')),
    paused       boolean NOT NULL DEFAULT false,
    weight       integer NOT NULL DEFAULT 0 CHECK (weight BETWEEN 0 AND 100),
    snapshot     jsonb,                           -- the raw counters behind the last stored window
    reason       text,
    started_at   timestamptz NOT NULL DEFAULT now(),
    deadline     timestamptz NOT NULL,
    lease_until  timestamptz NOT NULL,
    ended_at     timestamptz,
    FOREIGN KEY (model, version) REFERENCES releases (model, version)
);
CREATE UNIQUE INDEX one_open_promotion_a_model ON promotions (model) WHERE ended_at IS NULL;
CREATE INDEX promotions_by_release ON promotions (model, version);

CREATE TABLE windows (
    promotion  uuid NOT NULL REFERENCES promotions (id),
    number     integer NOT NULL,
    content    jsonb NOT NULL,
    verdict    jsonb NOT NULL,
    watching   boolean NOT NULL,                  -- after 100 %: the release was stable already
    stored_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (promotion, number)
);

CREATE TABLE approvals (
    promotion  uuid NOT NULL REFERENCES promotions (id),
    step       integer NOT NULL,
    approver   text NOT NULL,
    comment    text NOT NULL,
    given_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (promotion, step)
);

CREATE TABLE alerts (
    fingerprint  text NOT NULL,
    starts_at    timestamptz NOT NULL,
    model        text,
    outcome      text NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (fingerprint, starts_at)
);

CREATE TABLE drift_checks (
    id          bigserial PRIMARY KEY,
    model       text NOT NULL REFERENCES models (name),
    checked_at  timestamptz NOT NULL DEFAULT now(),
    outcome     text NOT NULL,
    result      jsonb NOT NULL
);
CREATE INDEX drift_checks_by_model ON drift_checks (model, checked_at DESC);

CREATE TABLE beats (
    name  text PRIMARY KEY,                       -- a job that must run regularly, such as 'sweep'
    at    timestamptz NOT NULL
);

CREATE TABLE events (
    id         bigserial PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    model      text NOT NULL,
    version    integer,
    promotion  uuid,
    kind       text NOT NULL,
    detail     jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX events_by_model ON events (model, id);

CREATE FUNCTION events_are_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$;
CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    EXECUTE FUNCTION events_are_append_only();
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the registry's history is never thrown away; restore a backup instead")
