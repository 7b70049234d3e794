-- What the registry's first version left behind: a model promoted twice and rejected once, written by its own
-- code and dumped by pg_dump.
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE FUNCTION public.events_are_append_only() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.alerts (
    fingerprint text NOT NULL,
    starts_at timestamp with time zone NOT NULL,
    model text,
    outcome text NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.approvals (
    promotion uuid NOT NULL,
    step integer NOT NULL,
    approver text NOT NULL,
    comment text NOT NULL,
    given_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.beats (
    name text NOT NULL,
    at timestamp with time zone NOT NULL
);
CREATE TABLE public.drift_checks (
    id bigint NOT NULL,
    model text NOT NULL,
    checked_at timestamp with time zone DEFAULT now() NOT NULL,
    outcome text NOT NULL,
    result jsonb NOT NULL
);
CREATE SEQUENCE public.drift_checks_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.drift_checks_id_seq OWNED BY public.drift_checks.id;
CREATE TABLE public.events (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    model text NOT NULL,
    version integer,
    promotion uuid,
    kind text NOT NULL,
    detail jsonb DEFAULT '{}'::jsonb NOT NULL
);
CREATE SEQUENCE public.events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.events_id_seq OWNED BY public.events.id;
CREATE TABLE public.models (
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    route jsonb DEFAULT '{}'::jsonb NOT NULL,
    retreat jsonb,
    frozen text,
    cooldown_until timestamp with time zone
);
CREATE TABLE public.promotions (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    model text NOT NULL,
    version integer NOT NULL,
    run text NOT NULL,
    state text DEFAULT 'running'::text NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    weight integer DEFAULT 0 NOT NULL,
    snapshot jsonb,
    reason text,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    deadline timestamp with time zone NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT promotions_state_check CHECK ((state = ANY (ARRAY['running'::text, 'watching'::text, 'promoted'::text, 'rejected'::text, 'failed'::text, 'aborted'::text, 'kept'::text]))),
    CONSTRAINT promotions_weight_check CHECK (((weight >= 0) AND (weight <= 100)))
);
CREATE TABLE public.releases (
    model text NOT NULL,
    version integer NOT NULL,
    bundle text NOT NULL,
    sha256 text NOT NULL,
    spec text NOT NULL,
    image text,
    phase text DEFAULT 'registered'::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT releases_phase_check CHECK ((phase = ANY (ARRAY['registered'::text, 'canary'::text, 'stable'::text, 'previous'::text, 'retired'::text, 'rejected'::text]))),
    CONSTRAINT releases_sha256_check CHECK ((sha256 ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT releases_version_check CHECK ((version > 0))
);
CREATE TABLE public.windows (
    promotion uuid NOT NULL,
    number integer NOT NULL,
    content jsonb NOT NULL,
    verdict jsonb NOT NULL,
    stored_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY public.drift_checks ALTER COLUMN id SET DEFAULT nextval('public.drift_checks_id_seq'::regclass);
ALTER TABLE ONLY public.events ALTER COLUMN id SET DEFAULT nextval('public.events_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.beats VALUES ('sweep', '2026-11-29 02:13:31.091227+00');
INSERT INTO public.drift_checks VALUES (1, 'flights', '2026-11-29 02:13:31.111166+00', 'stable', '{"alerts": false, "findings": [], "sentence": "nothing drifted"}');
INSERT INTO public.events VALUES (1, '2026-11-29 02:13:30.630709+00', 'flights', 1, NULL, 'registered', '{"sha256": "0000000000000000000000000000000000000000000000000000000000000001"}');
INSERT INTO public.events VALUES (2, '2026-11-29 02:13:30.654748+00', 'flights', 2, NULL, 'registered', '{"sha256": "0000000000000000000000000000000000000000000000000000000000000002"}');
INSERT INTO public.events VALUES (3, '2026-11-29 02:13:30.673485+00', 'flights', 3, NULL, 'registered', '{"sha256": "0000000000000000000000000000000000000000000000000000000000000003"}');
INSERT INTO public.events VALUES (4, '2026-11-29 02:13:30.71163+00', 'flights', 1, '68b5902c-9519-4afb-b37b-608a24fab21b', 'began', '{"run": "00000000-0000-0000-0000-000000000001"}');
INSERT INTO public.events VALUES (5, '2026-11-29 02:13:30.75863+00', 'flights', 1, '68b5902c-9519-4afb-b37b-608a24fab21b', 'weight', '{"weight": 25}');
INSERT INTO public.events VALUES (6, '2026-11-29 02:13:30.780975+00', 'flights', 1, '68b5902c-9519-4afb-b37b-608a24fab21b', 'stable', '{}');
INSERT INTO public.events VALUES (7, '2026-11-29 02:13:30.803267+00', 'flights', 1, '68b5902c-9519-4afb-b37b-608a24fab21b', 'ended', '{"state": "promoted", "reason": "certified"}');
INSERT INTO public.events VALUES (8, '2026-11-29 02:13:30.83133+00', 'flights', 2, '5bc9833a-683c-428b-b51f-d29d1c32434e', 'began', '{"run": "00000000-0000-0000-0000-000000000002"}');
INSERT INTO public.events VALUES (9, '2026-11-29 02:13:30.8799+00', 'flights', 2, '5bc9833a-683c-428b-b51f-d29d1c32434e', 'weight', '{"weight": 25}');
INSERT INTO public.events VALUES (10, '2026-11-29 02:13:30.891392+00', 'flights', 2, '5bc9833a-683c-428b-b51f-d29d1c32434e', 'stable', '{}');
INSERT INTO public.events VALUES (11, '2026-11-29 02:13:30.91142+00', 'flights', 2, '5bc9833a-683c-428b-b51f-d29d1c32434e', 'ended', '{"state": "promoted", "reason": "certified"}');
INSERT INTO public.events VALUES (12, '2026-11-29 02:13:30.947398+00', 'flights', 3, 'a7d223f9-027f-41ad-83f9-05eab6a7cde6', 'began', '{"run": "00000000-0000-0000-0000-000000000003"}');
INSERT INTO public.events VALUES (13, '2026-11-29 02:13:30.994183+00', 'flights', 3, 'a7d223f9-027f-41ad-83f9-05eab6a7cde6', 'weight', '{"weight": 5}');
INSERT INTO public.events VALUES (14, '2026-11-29 02:13:31.031297+00', 'flights', 3, NULL, 'retreat', '{"state": "rejected", "leaves": 3, "reason": "12 of 30 requests failed", "target": 2}');
INSERT INTO public.events VALUES (15, '2026-11-29 02:13:31.070517+00', 'flights', 3, 'a7d223f9-027f-41ad-83f9-05eab6a7cde6', 'ended', '{"state": "rejected", "reason": "12 of 30 requests failed"}');
INSERT INTO public.events VALUES (16, '2026-11-29 02:13:31.079505+00', 'flights', 3, NULL, 'retreated', '{"state": "rejected", "leaves": 3, "reason": "12 of 30 requests failed", "target": 2}');
INSERT INTO public.models VALUES ('flights', '2026-11-29 02:13:30.619519+00', '{"mirror": null, "matches": [], "weights": {"flights-v2": 100}}', NULL, NULL, NULL);
INSERT INTO public.promotions VALUES ('68b5902c-9519-4afb-b37b-608a24fab21b', 'flights', 1, '00000000-0000-0000-0000-000000000001', 'promoted', false, 100, NULL, 'certified', '2026-11-29 02:13:30.703608+00', '2026-11-29 03:13:30.703608+00', '2026-11-29 02:14:30.703608+00', '2026-11-29 02:13:30.795261+00');
INSERT INTO public.promotions VALUES ('5bc9833a-683c-428b-b51f-d29d1c32434e', 'flights', 2, '00000000-0000-0000-0000-000000000002', 'promoted', false, 100, NULL, 'certified', '2026-11-29 02:13:30.823422+00', '2026-11-29 03:13:30.823422+00', '2026-11-29 02:14:30.823422+00', '2026-11-29 02:13:30.90489+00');
INSERT INTO public.promotions VALUES ('a7d223f9-027f-41ad-83f9-05eab6a7cde6', 'flights', 3, '00000000-0000-0000-0000-000000000003', 'rejected', false, 5, NULL, '12 of 30 requests failed', '2026-11-29 02:13:30.935168+00', '2026-11-29 03:13:30.935168+00', '2026-11-29 02:14:30.935168+00', '2026-11-29 02:13:31.063172+00');
INSERT INTO public.releases VALUES ('flights', 1, 'file:///srv/modelserve/artifacts/bundles/flights/1', '0000000000000000000000000000000000000000000000000000000000000001', 'name: flights
signature:
  inputs: [{name: hour, type: integer}]
  outputs: [{name: late, type: boolean}]
', NULL, 'previous', '2026-11-29 02:13:30.619519+00');
INSERT INTO public.releases VALUES ('flights', 3, 'file:///srv/modelserve/artifacts/bundles/flights/3', '0000000000000000000000000000000000000000000000000000000000000003', 'name: flights
signature:
  inputs: [{name: hour, type: integer}]
  outputs: [{name: late, type: boolean}]
', NULL, 'rejected', '2026-11-29 02:13:30.671416+00');
INSERT INTO public.releases VALUES ('flights', 2, 'file:///srv/modelserve/artifacts/bundles/flights/2', '0000000000000000000000000000000000000000000000000000000000000002', 'name: flights
signature:
  inputs: [{name: hour, type: integer}]
  outputs: [{name: late, type: boolean}]
', NULL, 'stable', '2026-11-29 02:13:30.651193+00');
SELECT pg_catalog.setval('public.drift_checks_id_seq', 1, true);
SELECT pg_catalog.setval('public.events_id_seq', 16, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.alerts
    ADD CONSTRAINT alerts_pkey PRIMARY KEY (fingerprint, starts_at);
ALTER TABLE ONLY public.approvals
    ADD CONSTRAINT approvals_pkey PRIMARY KEY (promotion, step);
ALTER TABLE ONLY public.beats
    ADD CONSTRAINT beats_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.drift_checks
    ADD CONSTRAINT drift_checks_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.promotions
    ADD CONSTRAINT promotions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.releases
    ADD CONSTRAINT releases_pkey PRIMARY KEY (model, version);
ALTER TABLE ONLY public.windows
    ADD CONSTRAINT windows_pkey PRIMARY KEY (promotion, number);
CREATE INDEX drift_checks_by_model ON public.drift_checks USING btree (model, checked_at DESC);
CREATE INDEX events_by_model ON public.events USING btree (model, id);
CREATE UNIQUE INDEX one_canary_a_model ON public.releases USING btree (model) WHERE (phase = 'canary'::text);
CREATE UNIQUE INDEX one_open_promotion_a_model ON public.promotions USING btree (model) WHERE (ended_at IS NULL);
CREATE UNIQUE INDEX one_previous_a_model ON public.releases USING btree (model) WHERE (phase = 'previous'::text);
CREATE UNIQUE INDEX one_stable_a_model ON public.releases USING btree (model) WHERE (phase = 'stable'::text);
CREATE INDEX promotions_by_release ON public.promotions USING btree (model, version);
CREATE TRIGGER events_are_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.events FOR EACH STATEMENT EXECUTE FUNCTION public.events_are_append_only();
ALTER TABLE ONLY public.approvals
    ADD CONSTRAINT approvals_promotion_fkey FOREIGN KEY (promotion) REFERENCES public.promotions(id);
ALTER TABLE ONLY public.drift_checks
    ADD CONSTRAINT drift_checks_model_fkey FOREIGN KEY (model) REFERENCES public.models(name);
ALTER TABLE ONLY public.promotions
    ADD CONSTRAINT promotions_model_version_fkey FOREIGN KEY (model, version) REFERENCES public.releases(model, version);
ALTER TABLE ONLY public.releases
    ADD CONSTRAINT releases_model_fkey FOREIGN KEY (model) REFERENCES public.models(name);
ALTER TABLE ONLY public.windows
    ADD CONSTRAINT windows_promotion_fkey FOREIGN KEY (promotion) REFERENCES public.promotions(id);
