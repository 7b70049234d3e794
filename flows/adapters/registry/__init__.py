"""The registry: PostgreSQL remembers releases, promotions, windows, verdicts and events.

The rows are the truth about who should get the traffic; nothing here decides who that is. Every method is
one short transaction and opens its own connection, so a restarted database costs a retry and nothing else.
`turn` serialises everything that moves one model's traffic, over all processes, by a lock in the database
that vanishes with the connection of a holder that dies.

Belongs here: SQL, and rows as the domain's types. May not: decide who gets the traffic. The way in is
`Registry`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, RealDictCursor
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from flows.adapters.registry.rows import (
    LATE,
    LEASE_EXPIRED,
    OLDER_WORDS,
    PROMOTION,
    RELEASE,
    ROLLED_BACK,
    STANDING,
    Event,
    Overview,
    StoredWindow,
    append_event,
    find_release,
    find_standing,
    lost,
    one,
    promotion_of,
    release_of,
    standing_of,
    unknown_model,
)
from flows.adapters.registry.turn import Turn
from flows.domain.drift.findings import Outcome
from flows.domain.errors import (
    DependencyDown,
    ModelServeError,
    PromotionRunning,
    ReleaseExists,
    ReleaseUnknown,
)
from flows.domain.notices import Happening
from flows.domain.promotion import Promotion, Standing, State
from flows.domain.release import Phase, Release, release_name

__all__ = ["POSTPONED", "ROLLED_BACK", "Event", "Overview", "Registry", "StoredWindow", "Turn"]


WITHOUT_TABLES = (
    "the registry's database has no tables yet; 'modelserve up' makes them, on a cluster the flows"
)
Claim = Literal["mine", "again", "busy", "settled"]
EXPERIMENT = "experiment:"
"""Beats with this before a model's name are those of its experiment."""
POSTPONED = ("cooling-down", "shared-incident", "not-in-service")
"""Answers to an alert that moved nothing: while it fires, it is asked again."""
FORGOTTEN_MINUTES = 15
"""A postponed alert that has not been repeated for so long is over, told or not."""


class Registry:
    """One registry. `patience` (seconds): how long a call waits for a database that does not answer."""

    def __init__(self, url: str, patience: float = 10.0) -> None:
        self._url = url
        self._patience = patience

    # -- connections ------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(psycopg2.OperationalError),
                stop=stop_after_delay(self._patience),
                wait=wait_exponential_jitter(multiplier=0.1, max=2.0),
                reraise=True,
            ):
                with attempt:
                    return psycopg2.connect(self._url, connect_timeout=5, application_name="modelserveai")
        except psycopg2.OperationalError as error:
            raise DependencyDown(f"PostgreSQL does not answer: {' '.join(str(error).split())}") from error
        raise AssertionError("unreachable: the loop returns or raises")

    @contextmanager
    def _transaction(self) -> Iterator[RealDictCursor]:
        connection = self._connect()
        try:
            with connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
                yield cursor
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            raise DependencyDown(f"PostgreSQL went away: {' '.join(str(error).split())}") from error
        except psycopg2.errors.UndefinedTable as error:
            raise DependencyDown(WITHOUT_TABLES) from error
        finally:
            connection.close()

    def migrate(self) -> None:
        """Bring the schema to this version; several processes may call it at once."""
        from pathlib import Path

        from alembic import command
        from alembic.config import Config
        from sqlalchemy import create_engine, text

        import flows.migrations

        config = Config()
        config.set_main_option("script_location", str(Path(flows.migrations.__file__).parent))
        engine = create_engine("postgresql+psycopg2://", creator=self._connect)
        try:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('modelserve-migrate'))"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        finally:
            engine.dispose()

    # -- releases ---------------------------------------------------------------------------------

    def register(self, release: Release, spec: str) -> Release:
        """Add a release with the text of its `model.yaml`; the same content twice is one release.

        Raises ReleaseExists when the version is there with other content.
        """
        with self._transaction() as cursor:
            cursor.execute("INSERT INTO models (name) VALUES (%s) ON CONFLICT DO NOTHING", (release.model,))
            cursor.execute(
                "INSERT INTO releases (model, version, bundle, sha256, spec) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING RETURNING version",
                (release.model, release.version, release.bundle, release.sha256, spec),
            )
            if cursor.fetchone():
                append_event(cursor, release.model, release.version, "registered", {"sha256": release.sha256})
                return release
            found = find_release(cursor, release.model, release.version)
        if found.sha256 != release.sha256:
            raise ReleaseExists(
                f"{release.name} is registered with other content (sha256 {found.sha256[:12]}…, "
                f"this one has {release.sha256[:12]}…); a release never changes: use a new version number"
            )
        return found

    def release(self, model: str, version: int) -> Release:
        with self._transaction() as cursor:
            return find_release(cursor, model, version)

    def spec(self, model: str, version: int) -> str:
        """The text of `model.yaml` as it was registered."""
        with self._transaction() as cursor:
            find_release(cursor, model, version)
            cursor.execute("SELECT spec FROM releases WHERE model = %s AND version = %s", (model, version))
            return str(one(cursor)["spec"])

    def models(self) -> list[str]:
        with self._transaction() as cursor:
            cursor.execute("SELECT name FROM models ORDER BY name")
            return [row["name"] for row in cursor.fetchall()]

    def in_service(self) -> frozenset[str]:
        """Names of every model's releases whose servers must run."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT model, version FROM releases WHERE phase IN ('canary', 'stable', 'previous')"
            )
            return frozenset(release_name(row["model"], row["version"]) for row in cursor.fetchall())

    def standing(self, model: str) -> Standing:
        """Raises ReleaseUnknown when there is no such model."""
        with self._transaction() as cursor:
            return find_standing(cursor, model)

    def standings(self) -> list[Standing]:
        """Of every model, in one query."""
        with self._transaction() as cursor:
            cursor.execute(f"{STANDING} ORDER BY name")
            return [standing_of(row) for row in cursor.fetchall()]

    def releases(self, model: str, last: int | None = None) -> list[Release]:
        """In the order of their versions; the newest `last` where it is given."""
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT {RELEASE} FROM releases WHERE model = %s ORDER BY version DESC LIMIT %s",
                (model, last),
            )
            return [release_of(row) for row in reversed(cursor.fetchall())]

    def move_bundles(self, old: str, new: str) -> int:
        """Bundles below the URI `old` are below `new` now, in the same order; how many. Their content is the
        same: a digest is checked wherever one is read."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE releases SET bundle = %(new)s || substr(bundle, length(%(old)s) + 1)"
                " WHERE starts_with(bundle, %(old)s || '/')",
                {"old": old, "new": new},
            )
            return int(cursor.rowcount)

    # -- promotions -------------------------------------------------------------------------------

    def begin(
        self, model: str, version: int, run: str, deadline_seconds: float, lease_seconds: float
    ) -> Promotion:
        """Open a promotion, or take over the open one of the same release when nobody drives it any more.

        Raises PromotionRunning while another promotion of the model is alive, ReleaseUnknown, and
        ModelServeError when the release is stable already or the model is frozen.
        """
        with self.turn(model) as turn:
            standing = turn.standing()
            release = turn.release(version)
            is_open = standing.promotion
            if is_open is not None:
                if is_open.version == version and (is_open.run == run or turn.lease_expired(lease_seconds)):
                    turn.adopt(is_open, run, lease_seconds)
                    return turn.promotion(is_open.id)
                raise PromotionRunning(
                    f"{model} v{is_open.version} is being promoted since {is_open.started_at:%H:%M:%S} "
                    f"({is_open.state}, {is_open.weight} %); wait for it, or end it with "
                    f"'modelserve abort {model}'"
                )
            if standing.retreat is not None:
                raise PromotionRunning(
                    f"a rollback of {model} is not finished; finish it first: 'modelserve sweep'"
                )
            if standing.frozen:
                raise ModelServeError(
                    f"{model} is frozen: {standing.frozen}; lift it with 'modelserve thaw {model}'"
                )
            if release.phase is Phase.STABLE:
                raise ModelServeError(
                    f"{release.name} is the stable release already; there is nothing to promote"
                )
            if standing.canary is not None:
                raise PromotionRunning(
                    f"{standing.canary.name} was kept as canary; end it first: 'modelserve rollback {model}'"
                )
            return turn.open(version, run, deadline_seconds, lease_seconds)

    def renew(self, promotion: Promotion, lease_seconds: float) -> None:
        """Say that the promotion's run is alive. Raises PromotionLost when it is not its own any more."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE promotions SET lease_until = now() + make_interval(secs => %s)"
                " WHERE id = %s AND run = %s AND ended_at IS NULL RETURNING id",
                (lease_seconds, promotion.id, promotion.run),
            )
            if cursor.fetchone() is None:
                raise lost(cursor, promotion)

    def promotion(self, identifier: str) -> Promotion:
        """By the id, or its first eight characters or more. Raises ReleaseUnknown when there is none."""
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT {PROMOTION} FROM promotions WHERE id::text LIKE %s ORDER BY started_at DESC LIMIT 1",
                (identifier + "%",),
            )
            row = cursor.fetchone()
        if row is None or len(identifier) < 8:
            raise ReleaseUnknown(
                f"no promotion {identifier!r} (give 8 characters or more); see 'modelserve history MODEL'"
            )
        return promotion_of(row)

    def promotion_of_run(self, run: str) -> Promotion | None:
        """The open promotion that this Prefect flow run drives."""
        with self._transaction() as cursor:
            cursor.execute(f"SELECT {PROMOTION} FROM promotions WHERE run = %s AND ended_at IS NULL", (run,))
            row = cursor.fetchone()
            return None if row is None else promotion_of(row)

    def newest_promotion_of_run(self, run: str) -> Promotion | None:
        """The promotion that this Prefect flow run has driven, open or ended; None when it never began."""
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT {PROMOTION} FROM promotions WHERE run = %s ORDER BY started_at DESC LIMIT 1", (run,)
            )
            row = cursor.fetchone()
            return None if row is None else promotion_of(row)

    def promotions(self, model: str, last: int | None = None) -> list[Promotion]:
        """Oldest first; the newest `last` where it is given."""
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT {PROMOTION} FROM promotions WHERE model = %s ORDER BY started_at DESC LIMIT %s",
                (model, last),
            )
            return [promotion_of(row) for row in reversed(cursor.fetchall())]

    def abandoned(self, grace_seconds: float) -> list[tuple[Promotion, bool]]:
        """Open promotions that nobody drives, or (True) that are past their deadline and the grace.

        One query, whatever the number of models.
        """
        with self._transaction() as cursor:
            cursor.execute(
                f"SELECT {PROMOTION}, {LATE} AS late FROM promotions"
                f" WHERE ended_at IS NULL AND (({LEASE_EXPIRED}) OR"
                f" (state = 'running' AND NOT paused AND {LATE}))",
                {"grace": grace_seconds},
            )
            return [(promotion_of(row), bool(row["late"])) for row in cursor.fetchall()]

    def retreating(self) -> list[str]:
        """Models whose rollback has begun and is not settled."""
        with self._transaction() as cursor:
            cursor.execute("SELECT name FROM models WHERE retreat IS NOT NULL ORDER BY name")
            return [row["name"] for row in cursor.fetchall()]

    def pause(self, model: str, paused: bool) -> Promotion:
        with self.turn(model) as turn:
            promotion = turn.standing().promotion
            if promotion is None:
                raise ModelServeError(f"no promotion of {model} is running")
            return turn.pause(promotion, paused)

    # -- evidence ---------------------------------------------------------------------------------

    def store_window(
        self,
        promotion: Promotion,
        number: int,
        window: Mapping[str, Any],
        verdict: Mapping[str, Any],
        snapshot: Mapping[str, Any] | None,
        *,
        watching: bool,
    ) -> None:
        """Store a window, what the judge made of it, and the counters it ended on, before anybody acts."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO windows (promotion, number, content, verdict, watching)"
                " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (promotion, number) DO NOTHING",
                (promotion.id, number, Json(window), Json(verdict), watching),
            )
            if snapshot is not None:
                cursor.execute(
                    "UPDATE promotions SET snapshot = %s WHERE id = %s", (Json(snapshot), promotion.id)
                )

    def windows(self, promotion: Promotion) -> list[StoredWindow]:
        """In order."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT content, verdict, watching FROM windows WHERE promotion = %s ORDER BY number",
                (promotion.id,),
            )
            return [StoredWindow(**row) for row in cursor.fetchall()]

    def seconds_since_window(self, promotion: Promotion) -> float | None:
        """How long ago its last window was stored; None when there is none."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT extract(epoch FROM now() - max(stored_at))::float8 AS seconds FROM windows"
                " WHERE promotion = %s",
                (promotion.id,),
            )
            seconds = one(cursor)["seconds"]
            return None if seconds is None else float(seconds)

    def snapshot(self, promotion: Promotion) -> dict[str, Any] | None:
        """The raw counters behind the last stored window."""
        with self._transaction() as cursor:
            cursor.execute("SELECT snapshot FROM promotions WHERE id = %s", (promotion.id,))
            snapshot = one(cursor)["snapshot"]
            return None if snapshot is None else dict(snapshot)

    # -- approvals, alerts, freezes, beats ----------------------------------------------------------

    def approve(self, model: str, step: int, approver: str, comment: str) -> None:
        """Record a person's approval; refused when no promotion of the model is open."""
        with self.turn(model) as turn:
            promotion = turn.standing().promotion
            if promotion is None or promotion.state is not State.RUNNING:
                raise ModelServeError(
                    f"no promotion of {model} waits for an approval; it may have been rolled back"
                )
            turn.approve(promotion, step, approver, comment)

    def approved(self, promotion: Promotion, step: int) -> bool:
        with self._transaction() as cursor:
            cursor.execute("SELECT 1 FROM approvals WHERE promotion = %s AND step = %s", (promotion.id, step))
            return cursor.fetchone() is not None

    def proven(self, model: str) -> list[int]:
        """Versions that have been stable and were not found wanting: where a rollback may lead."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT version FROM releases WHERE model = %s AND phase <> 'rejected' AND EXISTS"
                " (SELECT 1 FROM events WHERE events.model = releases.model AND kind = 'stable'"
                "   AND events.version = releases.version) ORDER BY version",
                (model,),
            )
            return [row["version"] for row in cursor.fetchall()]

    def claim_alert(self, fingerprint: str, starts_at: datetime, model: str | None) -> Claim:
        """`mine` for the first caller with this alert, `again` while its answer was only postponed, then
        `settled`, or `busy` while it is being answered.

        A claim whose holder died before it settled anything is free again after a minute.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "WITH before AS (SELECT outcome FROM alerts"
                "  WHERE fingerprint = %(fingerprint)s AND starts_at = %(starts_at)s)"
                " INSERT INTO alerts (fingerprint, starts_at, model, outcome)"
                "  VALUES (%(fingerprint)s, %(starts_at)s, %(model)s, 'claimed')"
                " ON CONFLICT (fingerprint, starts_at) DO UPDATE SET received_at = now(), outcome = 'claimed'"
                "  WHERE alerts.outcome = ANY(%(postponed)s) OR"
                "   (alerts.outcome = 'claimed' AND alerts.received_at < now() - interval '1 minute')"
                " RETURNING (SELECT outcome FROM before) = ANY(%(postponed)s) AS again",
                {
                    "fingerprint": fingerprint,
                    "starts_at": starts_at,
                    "model": model,
                    "postponed": list(POSTPONED),
                },
            )
            claimed = cursor.fetchone()
            if claimed is not None:
                return "again" if claimed["again"] else "mine"
            cursor.execute(
                "SELECT outcome FROM alerts WHERE fingerprint = %s AND starts_at = %s",
                (fingerprint, starts_at),
            )
            row = cursor.fetchone()
            return "busy" if row is None or row["outcome"] == "claimed" else "settled"

    def settle_alert(self, fingerprint: str, starts_at: datetime, outcome: str) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE alerts SET outcome = %s WHERE fingerprint = %s AND starts_at = %s",
                (outcome, fingerprint, starts_at),
            )

    def end_alert(self, fingerprint: str, starts_at: datetime) -> None:
        """The alert is over: what was postponed needs no answer any more."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE alerts SET outcome = 'resolved'"
                " WHERE fingerprint = %s AND starts_at = %s AND outcome = ANY(%s)",
                (fingerprint, starts_at, list(POSTPONED)),
            )

    def unanswered(self) -> dict[str, int]:
        """Model → alerts that fire and whose answer was postponed, those of the last quarter of an hour."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT model, count(*) AS alerts FROM alerts WHERE outcome = ANY(%s) AND model IS NOT NULL"
                "  AND received_at > now() - make_interval(mins => %s) GROUP BY model ORDER BY model",
                (list(POSTPONED), FORGOTTEN_MINUTES),
            )
            return {row["model"]: row["alerts"] for row in cursor.fetchall()}

    def release_alert(self, fingerprint: str, starts_at: datetime) -> None:
        """Give a claim back, so that the next repetition of the alert is tried again."""
        with self._transaction() as cursor:
            cursor.execute(
                "DELETE FROM alerts WHERE fingerprint = %s AND starts_at = %s", (fingerprint, starts_at)
            )

    def cool_down(self, model: str, seconds: float) -> bool:
        """Start the model's cool-down; False when one is running already."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE models SET cooldown_until = now() + make_interval(secs => %s) WHERE name = %s"
                " AND (cooldown_until IS NULL OR cooldown_until < now()) RETURNING name",
                (seconds, model),
            )
            return cursor.fetchone() is not None

    def cooling_down(self, model: str) -> bool:
        """Whether an alert has rolled the model back a short while ago."""
        with self._transaction() as cursor:
            cursor.execute("SELECT cooldown_until > now() AS cooling FROM models WHERE name = %s", (model,))
            row = cursor.fetchone()
            return bool(row and row["cooling"])

    def end_cool_down(self, model: str) -> None:
        """Forget the cool-down: the rollback that started it did not happen."""
        with self._transaction() as cursor:
            cursor.execute("UPDATE models SET cooldown_until = NULL WHERE name = %s", (model,))

    def freeze(self, model: str, reason: str | None) -> None:
        """Let no promotion of the model begin until it is thawed (`reason` None)."""
        with self._transaction() as cursor:
            cursor.execute("UPDATE models SET frozen = %s WHERE name = %s RETURNING name", (reason, model))
            if cursor.fetchone() is None:
                raise unknown_model(cursor, model)
            append_event(cursor, model, None, "frozen" if reason else "thawed", {"reason": reason})

    def beat(self, name: str) -> None:
        """Say that a regular job has succeeded just now."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO beats (name, at) VALUES (%s, now()) ON CONFLICT (name) DO UPDATE SET at = now()",
                (name,),
            )

    def overview(self) -> list[Overview]:
        """Every model in one query: what the metrics page shows."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT m.name, m.route, m.frozen IS NOT NULL AS frozen, p.version, p.state,"
                " extract(epoch FROM p.started_at)::float8 AS started,"
                " extract(epoch FROM p.deadline)::float8 AS deadline,"
                " newest.outcome, coalesce((newest.result ->> 'alerts')::boolean, false) AS alerts,"
                " extract(epoch FROM good.checked_at)::float8 AS checked, good.result -> 'scores' AS scores,"
                " newest.result -> 'findings' AS findings,"
                " (SELECT count(*) FROM drift_checks"
                "  WHERE model = m.name AND outcome = %s) AS failures"
                " FROM models m LEFT JOIN promotions p ON p.model = m.name AND p.ended_at IS NULL"
                " LEFT JOIN LATERAL (SELECT outcome, result FROM drift_checks"
                "  WHERE model = m.name ORDER BY checked_at DESC LIMIT 1) newest ON true"
                " LEFT JOIN LATERAL (SELECT checked_at, result FROM drift_checks"
                "  WHERE model = m.name AND outcome = ANY(%s) ORDER BY checked_at DESC LIMIT 1) good ON true"
                " ORDER BY m.name",
                (Outcome.FAILED.value, [outcome.value for outcome in Outcome if outcome.checked]),
            )
            return [
                Overview(
                    model=row["name"],
                    weights=row["route"].get("weights", {}),
                    frozen=row["frozen"],
                    version=row["version"],
                    state=row["state"],
                    started=row["started"],
                    deadline=row["deadline"],
                    drift_outcome=row["outcome"],
                    drift_alerts=row["alerts"],
                    drift_checked=row["checked"],
                    drift_scores=row["scores"] or {},
                    drift_findings=_findings(row["findings"] or []),
                    drift_failures=row["failures"],
                )
                for row in cursor.fetchall()
            ]

    def beats(self) -> dict[str, datetime]:
        with self._transaction() as cursor:
            cursor.execute("SELECT name, at FROM beats WHERE name NOT LIKE %s", (f"{EXPERIMENT}%",))
            return {row["name"]: row["at"] for row in cursor.fetchall()}

    def hear_experiment(self, model: str) -> None:
        """Its experiment is being driven, now."""
        self.beat(EXPERIMENT + model)

    def forget_experiment(self, model: str) -> None:
        """Its experiment has ended."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM beats WHERE name = %s", (EXPERIMENT + model,))

    def experiments(self) -> dict[str, float]:
        """Model → seconds since its open experiment was last heard of."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT name, extract(epoch FROM now() - at)::float8 AS silence FROM beats"
                " WHERE name LIKE %s ORDER BY name",
                (f"{EXPERIMENT}%",),
            )
            return {row["name"].removeprefix(EXPERIMENT): row["silence"] for row in cursor.fetchall()}

    def record_drift(self, model: str, outcome: str, result: Mapping[str, Any]) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO drift_checks (model, outcome, result) VALUES (%s, %s, %s)",
                (model, outcome, Json(result)),
            )

    def drift_checks(self, model: str, limit: int = 20) -> list[tuple[datetime, str, dict[str, Any]]]:
        """The newest checks first: (time, outcome, result)."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT checked_at, outcome, result FROM drift_checks WHERE model = %s"
                " ORDER BY checked_at DESC LIMIT %s",
                (model, limit),
            )
            return [(row["checked_at"], row["outcome"], row["result"]) for row in cursor.fetchall()]

    # -- events -----------------------------------------------------------------------------------

    def note(
        self, model: str, kind: str, detail: Mapping[str, Any], promotion: Promotion | None = None
    ) -> None:
        """Append an event."""
        with self._transaction() as cursor:
            version = promotion.version if promotion else None
            append_event(cursor, model, version, kind, detail, promotion.id if promotion else None)

    def events(
        self,
        model: str,
        promotion: Promotion | None = None,
        after: int = 0,
        *,
        kinds: Collection[str] = (),
        last: int | None = None,
    ) -> list[Event]:
        """Those of a model, or of one promotion, of these kinds or any, with ids after `after`; oldest first.

        The newest `last` where it is given.
        """
        older = [old for old, new in OLDER_WORDS.items() if new in kinds]
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT id, at, version, promotion, kind, detail FROM events"
                " WHERE model = %(model)s AND id > %(after)s"
                " AND (%(promotion)s IS NULL OR promotion = %(promotion)s::uuid)"
                " AND (%(kinds)s IS NULL OR kind = ANY(%(kinds)s))"
                " ORDER BY id DESC LIMIT %(last)s",
                {
                    "model": model,
                    "promotion": promotion.id if promotion else None,
                    "after": after,
                    "kinds": [*kinds, *older] or None,
                    "last": last,
                },
            )
            return [
                Event(**{**row, "kind": OLDER_WORDS.get(row["kind"], row["kind"])})
                for row in reversed(cursor.fetchall())
            ]

    def last_event(self) -> int:
        """The id of the newest event; 0 when there is none."""
        with self._transaction() as cursor:
            cursor.execute("SELECT coalesce(max(id), 0) AS last FROM events")
            return int(one(cursor)["last"])

    # -- messages to people -----------------------------------------------------------------------

    def told(self, address: str) -> int:
        """The newest event that this address knows of; one that is new knows all that there are."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO told (address, event) SELECT %s, coalesce(max(id), 0) FROM events"
                " ON CONFLICT (address) DO UPDATE SET address = excluded.address RETURNING event",
                (address,),
            )
            return int(one(cursor)["event"])

    def tell(self, address: str, event: int) -> None:
        """The address has been told of everything up to this event."""
        with self._transaction() as cursor:
            cursor.execute(
                "UPDATE told SET event = greatest(event, %s), at = now() WHERE address = %s", (event, address)
            )

    def happenings(self, after: int, kinds: Collection[str]) -> list[Happening]:
        """Events of all models of these kinds, whose id is greater than `after`; oldest first."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT id, extract(epoch FROM at)::float8 AS at, model, version, promotion::text, kind,"
                " detail FROM events WHERE id > %s AND kind = ANY(%s) ORDER BY id",
                (after, list(kinds)),
            )
            return [Happening(**row) for row in cursor.fetchall()]

    # -- turns ------------------------------------------------------------------------------------

    @contextmanager
    def turn(self, model: str) -> Iterator[Turn]:
        """Hold the model's turn: nobody else moves its traffic or its rows meanwhile.

        Statements inside commit one by one, so that an intention is on record before it is acted on.
        """
        connection = self._connect()
        try:
            connection.autocommit = True
            with connection.cursor(cursor_factory=RealDictCursor) as cursor:
                cursor.execute("SELECT pg_advisory_lock(hashtext('modelserve-turn'), hashtext(%s))", (model,))
                yield Turn(cursor, model)
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            raise DependencyDown(f"PostgreSQL went away: {' '.join(str(error).split())}") from error
        except psycopg2.errors.UndefinedTable as error:
            raise DependencyDown(WITHOUT_TABLES) from error
        finally:
            connection.close()


def _findings(stored: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often each kind of finding was met, over all columns."""
    found: Counter[str] = Counter()
    for finding in stored:
        found[str(finding["kind"])] += int(finding["count"])
    return dict(found)
