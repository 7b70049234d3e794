"""Rows to words: how the registry's tables read as the domain's types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg2.extras import Json, RealDictCursor

from flows.domain.errors import PromotionLost, ReleaseUnknown
from flows.domain.promotion import Promotion, Retreat, Standing, State
from flows.domain.release import Phase, Release
from flows.domain.routes import Match, Mirror, Routes

Row = dict[str, Any]
KNOWN = 10
"""How many versions are named to somebody who asked for one that is not there."""

PROMOTION = (
    "id, model, version, run, state, paused, weight, reason, started_at, deadline, lease_until, ended_at"
)
RELEASE = "model, version, bundle, sha256, image, phase"

LEASE_EXPIRED = "now() > greatest(lease_until, pg_postmaster_start_time() + make_interval(secs => %(grace)s))"
"""A lease cannot be renewed while the database is away, so it counts from the database's start at least."""

LATE = "now() > deadline + make_interval(secs => %(grace)s)"


ROLLING_BACK, ROLLED_BACK = "rolling back", "rolled back"
OLDER_WORDS = {"retreat": ROLLING_BACK, "retreated": ROLLED_BACK}
"""What events were called that an earlier version has written; they are never rewritten."""


@dataclass(frozen=True)
class Event:
    id: int
    at: datetime
    version: int | None
    promotion: str | None
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class StoredWindow:
    """A window and its verdict, as JSON objects; `watching`: the release was at 100 % and stable already."""

    content: dict[str, Any]
    verdict: dict[str, Any]
    watching: bool


@dataclass(frozen=True)
class Overview:
    """One model as the metrics page sees it. Times in unix seconds; None where there is nothing open."""

    model: str
    weights: dict[str, int]
    frozen: bool
    version: int | None
    state: str | None
    started: float | None
    deadline: float | None
    drift_outcome: str | None
    """How the newest check ended, whether it came to a verdict or not."""
    drift_alerts: bool
    drift_checked: float | None
    """When the newest check that came to a verdict ended."""
    drift_scores: dict[str, float]
    """Of that check, by column."""
    drift_findings: dict[str, int]
    """What the newest check met in the data (kind: how often), such as missing columns."""
    drift_failures: int
    """Checks on record that could not be finished."""


def routes_to_json(routes: Routes) -> dict[str, Any]:
    return {
        "weights": dict(routes.weights),
        "matches": [asdict(match) for match in routes.matches],
        "mirror": asdict(routes.mirror) if routes.mirror else None,
    }


def routes_from_json(content: Mapping[str, Any]) -> Routes:
    mirror = content.get("mirror")
    return Routes(
        content.get("weights", {}),
        tuple(Match(**match) for match in content.get("matches", ())),
        Mirror(**mirror) if mirror else None,
    )


def one(cursor: RealDictCursor) -> Row:
    row = cursor.fetchone()
    assert row is not None
    return dict(row)


def promotion_of(row: Mapping[str, Any]) -> Promotion:
    fields = {key: row[key] for key in PROMOTION.split(", ")}
    return Promotion(**{**fields, "id": str(row["id"]), "state": State(row["state"])})


def release_of(row: Mapping[str, Any]) -> Release:
    return Release(
        row["model"], row["version"], row["bundle"], row["sha256"], row["image"], Phase(row["phase"])
    )


def find_release(cursor: RealDictCursor, model: str, version: int) -> Release:
    cursor.execute(f"SELECT {RELEASE} FROM releases WHERE model = %s AND version = %s", (model, version))
    row = cursor.fetchone()
    if row is None:
        raise _unknown_release(cursor, model, version)
    return release_of(row)


# One statement, so one moment: a release cannot change its phase between two reads. Of thousands that are
# retired none is read; each branch has an index.
STANDING = (
    "SELECT name, route, retreat, frozen, p.*,"
    f" (SELECT coalesce(json_agg(r ORDER BY r.version), '[]') FROM ("
    f"   SELECT {RELEASE} FROM releases WHERE model = name AND phase = 'canary'"
    f"   UNION SELECT {RELEASE} FROM releases WHERE model = name AND phase = 'stable'"
    f"   UNION SELECT {RELEASE} FROM releases WHERE model = name AND phase = 'previous'"
    f"   UNION SELECT {RELEASE} FROM releases WHERE model = name AND version IN"
    "     (p.version, (retreat ->> 'leaves')::integer, (retreat ->> 'target')::integer)"
    " ) r) AS releases"
    f" FROM models LEFT JOIN (SELECT {PROMOTION} FROM promotions WHERE ended_at IS NULL) p ON p.model = name"
)


def find_standing(cursor: RealDictCursor, model: str) -> Standing:
    cursor.execute(f"{STANDING} WHERE name = %s", (model,))
    row = cursor.fetchone()
    if row is None:
        raise unknown_model(cursor, model)
    return standing_of(row)


def standing_of(row: Mapping[str, Any]) -> Standing:
    retreat = row["retreat"]
    promotion = None if row["id"] is None else promotion_of(row)
    return Standing(
        row["name"],
        tuple(release_of(release) for release in row["releases"]),
        promotion,
        None if retreat is None else Retreat(**{**retreat, "state": State(retreat["state"])}),
        routes_from_json(row["route"]),
        row["frozen"],
    )


def unknown_model(cursor: RealDictCursor, model: str) -> ReleaseUnknown:
    cursor.execute("SELECT name FROM models ORDER BY name")
    known = ", ".join(row["name"] for row in cursor.fetchall()) or "none yet"
    return ReleaseUnknown(f"no model {model!r} is registered; registered models: {known}")


def _unknown_release(cursor: RealDictCursor, model: str, version: int) -> ReleaseUnknown:
    cursor.execute(
        "SELECT version, count(*) OVER () AS all FROM releases WHERE model = %s"
        " ORDER BY version DESC LIMIT %s",
        (model, KNOWN),
    )
    rows = cursor.fetchall()
    if not rows:
        return unknown_model(cursor, model)
    known = ", ".join(str(row["version"]) for row in reversed(rows))
    if (older := rows[0]["all"] - len(rows)) > 0:
        known = f"{older} older ones, {known}"
    return ReleaseUnknown(f"{model} has no version {version}; registered versions: {known}")


def lost(cursor: RealDictCursor, promotion: Promotion) -> PromotionLost:
    cursor.execute("SELECT state, reason, run FROM promotions WHERE id = %s", (promotion.id,))
    row = one(cursor)
    why = row["reason"] or (
        "another run took over" if row["run"] != promotion.run else "a rollback is under way"
    )
    return PromotionLost(
        f"the promotion of {promotion.model} v{promotion.version} is not this run's any more "
        f"({row['state']}: {why})"
    )


def append_event(
    cursor: RealDictCursor,
    model: str,
    version: int | None,
    kind: str,
    detail: Mapping[str, Any],
    promotion: str | None = None,
) -> None:
    cursor.execute(
        "INSERT INTO events (model, version, promotion, kind, detail) VALUES (%s, %s, %s, %s, %s)",
        (model, version, promotion, kind, Json(detail, dumps=lambda value: json.dumps(value, default=str))),
    )
