"""What may be done to one model's rows while its turn is held. Statements commit one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from psycopg2.extras import Json, RealDictCursor

from flows.adapters.registry.rows import (
    LEASE_EXPIRED,
    PROMOTION,
    append_event,
    find_standing,
    lost,
    one,
    promotion_of,
    routes_to_json,
)
from flows.domain.promotion import Promotion, Retreat, Standing, State
from flows.domain.routes import Routes


class Turn:
    """What may be done to one model's rows while its turn is held."""

    def __init__(self, cursor: RealDictCursor, model: str) -> None:
        self._cursor = cursor
        self._model = model

    def standing(self) -> Standing:
        return find_standing(self._cursor, self._model)

    def promotion(self, identifier: str) -> Promotion:
        self._cursor.execute(f"SELECT {PROMOTION} FROM promotions WHERE id = %s", (identifier,))
        return promotion_of(one(self._cursor))

    def mine(self, promotion: Promotion) -> Standing:
        """The standing, if `promotion` is still open and still driven by its run; else PromotionLost."""
        standing = self.standing()
        found = standing.promotion
        if found is None or (found.id, found.run) != (promotion.id, promotion.run) or standing.retreat:
            raise lost(self._cursor, promotion)
        return standing

    def lease_expired(self, grace_seconds: float) -> bool:
        self._cursor.execute(
            f"SELECT {LEASE_EXPIRED} AS expired FROM promotions WHERE model = %(model)s AND ended_at IS NULL",
            {"model": self._model, "grace": grace_seconds},
        )
        row = self._cursor.fetchone()
        return row is not None and bool(row["expired"])

    def open(self, version: int, run: str, deadline_seconds: float, lease_seconds: float) -> Promotion:
        self._cursor.execute(
            "WITH canary AS (UPDATE releases SET phase = 'canary'"
            " WHERE model = %(model)s AND version = %(version)s)"
            " INSERT INTO promotions (model, version, run, deadline, lease_until)"
            " VALUES (%(model)s, %(version)s, %(run)s, now() + make_interval(secs => %(deadline)s),"
            "  now() + make_interval(secs => %(lease)s))"
            f" RETURNING {PROMOTION}",
            {
                "model": self._model,
                "version": version,
                "run": run,
                "deadline": deadline_seconds,
                "lease": lease_seconds,
            },
        )
        promotion = promotion_of(one(self._cursor))
        self._note(promotion, "began", {"run": run})
        return promotion

    def adopt(self, promotion: Promotion, run: str, lease_seconds: float) -> None:
        """A new run takes over; the old one, should it live, loses its next turn."""
        self._cursor.execute(
            "UPDATE promotions SET run = %s, lease_until = now() + make_interval(secs => %s) WHERE id = %s",
            (run, lease_seconds, promotion.id),
        )
        if run != promotion.run:
            self._note(promotion, "adopted", {"run": run, "from": promotion.run})

    def pause(self, promotion: Promotion, paused: bool) -> Promotion:
        self._cursor.execute("UPDATE promotions SET paused = %s WHERE id = %s", (paused, promotion.id))
        self._note(promotion, "paused" if paused else "resumed", {})
        return self.promotion(promotion.id)

    def approve(self, promotion: Promotion, step: int, approver: str, comment: str) -> None:
        self._cursor.execute(
            "INSERT INTO approvals (promotion, step, approver, comment) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (promotion.id, step, approver, comment),
        )
        self._note(promotion, "approved", {"step": step, "approver": approver, "comment": comment})

    def intend_route(self, routes: Routes) -> None:
        """Record the route before it is written to the data plane."""
        self._cursor.execute(
            "UPDATE models SET route = %s WHERE name = %s", (Json(routes_to_json(routes)), self._model)
        )

    def record_image(self, promotion: Promotion, image: str) -> None:
        self._cursor.execute(
            "UPDATE releases SET image = %s WHERE model = %s AND version = %s",
            (image, self._model, promotion.version),
        )
        self._note(promotion, "image", {"image": image})

    def record_weight(self, promotion: Promotion, weight: int) -> None:
        """The data plane serves `weight` % from the canary now."""
        self._cursor.execute("UPDATE promotions SET weight = %s WHERE id = %s", (weight, promotion.id))
        self._note(promotion, "weight", {"weight": weight})

    def crown(self, promotion: Promotion) -> None:
        """Canary → stable, stable → previous, previous → retired; the promotion watches on. One statement
        each, in the order that never breaks a unique index, in one transaction."""
        self._phases(
            [("previous", "retired", None), ("stable", "previous", None), ("canary", "stable", None)],
            "UPDATE promotions SET state = 'watching', weight = 100 WHERE id = %s",
            (promotion.id,),
        )
        self._note(promotion, "stable", {})

    def end(self, promotion: Promotion, state: State, reason: str) -> None:
        """Close an open promotion; nothing happens to one that has ended."""
        self._cursor.execute(
            "UPDATE promotions SET state = %s, reason = %s, ended_at = now()"
            " WHERE id = %s AND ended_at IS NULL RETURNING id",
            (state.value, reason, promotion.id),
        )
        if self._cursor.fetchone():
            self._note(promotion, "ended", {"state": state.value, "reason": reason})

    def intend_retreat(self, retreat: Retreat) -> None:
        """Put a rollback on record before any traffic moves, so that whoever finds it can finish it."""
        self._cursor.execute(
            "UPDATE models SET retreat = %s WHERE name = %s", (Json(asdict(retreat)), self._model)
        )
        append_event(self._cursor, self._model, retreat.leaves, "retreat", asdict(retreat))

    def settle_retreat(self, retreat: Retreat, promotion: Promotion | None) -> None:
        """The traffic is where the retreat wanted it: rows follow, in one transaction."""
        leaves = "rejected" if retreat.state is State.REJECTED else "registered"
        changes: list[tuple[str, str, int | None]] = [("*", leaves, retreat.leaves)]
        standing = self.standing()
        if retreat.target is not None:
            bystander = standing.stable
            if bystander is not None and bystander.version not in (retreat.leaves, retreat.target):
                changes += [("previous", "retired", None), ("stable", "previous", None)]
            changes.append(("*", "stable", retreat.target))
        self._phases(changes, "UPDATE models SET retreat = NULL WHERE name = %s", (self._model,))
        if promotion is not None:
            self.end(promotion, retreat.state, retreat.reason)
        append_event(self._cursor, self._model, retreat.leaves, "retreated", asdict(retreat))

    def _phases(
        self, changes: list[tuple[str, str, int | None]], last: str, arguments: tuple[object, ...]
    ) -> None:
        self._cursor.execute("BEGIN")
        try:
            for old, new, version in changes:
                self._cursor.execute(
                    "UPDATE releases SET phase = %(new)s WHERE model = %(model)s"
                    " AND (%(old)s = '*' OR phase = %(old)s)"
                    " AND (%(version)s IS NULL OR version = %(version)s)",
                    {"new": new, "old": old, "model": self._model, "version": version},
                )
            self._cursor.execute(last, arguments)
        except BaseException:
            self._cursor.execute("ROLLBACK")
            raise
        self._cursor.execute("COMMIT")

    def _note(self, promotion: Promotion, kind: str, detail: Mapping[str, Any]) -> None:
        append_event(self._cursor, self._model, promotion.version, kind, detail, promotion.id)
