"""What may be done to one model's rows while its turn is held. Statements commit one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import psycopg2
from psycopg2.extras import Json, RealDictCursor

from flows.adapters.registry.rows import (
    LEASE_EXPIRED,
    PROMOTION,
    ROLLED_BACK,
    ROLLING_BACK,
    append_event,
    find_release,
    find_standing,
    lost,
    one,
    promotion_of,
    routes_to_json,
)
from flows.domain.promotion import Promotion, Retreat, Standing, State
from flows.domain.release import Release
from flows.domain.routes import Routes


class Turn:
    """What may be done to one model's rows while its turn is held."""

    def __init__(self, cursor: RealDictCursor, model: str) -> None:
        self._cursor = cursor
        self._model = model
        self._grouped = False

    def standing(self) -> Standing:
        return find_standing(self._cursor, self._model)

    def release(self, version: int) -> Release:
        """Any one of the model's, in service or not. Raises ReleaseUnknown."""
        return find_release(self._cursor, self._model, version)

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

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Everything inside commits together, or not at all; groups may nest."""
        if self._grouped:
            yield
            return
        self._grouped = True
        self._cursor.execute("BEGIN")
        try:
            yield
        except BaseException:
            with suppress(psycopg2.Error):  # the connection may be what broke
                self._cursor.execute("ROLLBACK")
            raise
        else:
            self._cursor.execute("COMMIT")
        finally:
            self._grouped = False

    def record_image(self, promotion: Promotion, image: str) -> None:
        self._cursor.execute(
            "UPDATE releases SET image = %s WHERE model = %s AND version = %s",
            (image, self._model, promotion.version),
        )
        self._note(promotion, "image", {"image": image})

    def record_weight(self, promotion: Promotion, weight: int) -> None:
        """The data plane serves `weight` % from the canary now."""
        with self._at_once():
            self._cursor.execute("UPDATE promotions SET weight = %s WHERE id = %s", (weight, promotion.id))
            self._note(promotion, "weight", {"weight": weight})

    def crown(self, promotion: Promotion) -> None:
        """Canary → stable, stable → previous, previous → retired; the promotion watches on."""
        with self._at_once():
            # In the order that never breaks a unique index.
            for old, new in (("previous", "retired"), ("stable", "previous"), ("canary", "stable")):
                self._move(new, phase=old)
            self._cursor.execute(
                "UPDATE promotions SET state = 'watching', weight = 100 WHERE id = %s", (promotion.id,)
            )
            self._note(promotion, "stable", {})

    def stay(self, promotion: Promotion, reason: str) -> None:
        """The only release becomes the stable without proof, and its promotion ends `unproven`.

        The event is not that of a release that was proven: `rollback --to` it needs `--unproven` later on.
        """
        with self._at_once():
            self._move("stable", phase="canary")
            self._note(promotion, "stays", {"reason": reason})
            self.end(promotion, State.UNPROVEN, reason)

    def end(self, promotion: Promotion, state: State, reason: str) -> None:
        """Close an open promotion; nothing happens to one that has ended."""
        with self._at_once():
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
        append_event(
            self._cursor, self._model, retreat.leaves or retreat.target, ROLLING_BACK, asdict(retreat)
        )

    def settle_retreat(self, retreat: Retreat, promotion: Promotion | None) -> None:
        """The traffic is where the retreat wanted it: all rows follow together.

        Half of it would read like a promotion whose canary is gone, and call for another rollback.
        """
        standing = self.standing()
        with self._at_once():
            if retreat.leaves is not None:
                left = "rejected" if retreat.state is State.REJECTED else "registered"
                self._move(left, version=retreat.leaves)
            if retreat.target is not None:
                bystander = standing.stable
                if bystander is not None and bystander.version not in (retreat.leaves, retreat.target):
                    self._move("retired", phase="previous")
                    self._move("previous", phase="stable")
                self._move("stable", version=retreat.target)
            else:
                self._move("retired", phase="previous")
            self._cursor.execute("UPDATE models SET retreat = NULL WHERE name = %s", (self._model,))
            if promotion is not None:
                self.end(promotion, retreat.state, retreat.reason)
            version = retreat.leaves or retreat.target
            append_event(self._cursor, self._model, version, ROLLED_BACK, asdict(retreat))

    def _move(self, phase_to: str, *, phase: str | None = None, version: int | None = None) -> None:
        """Releases of this phase, or of this version, go on to another phase."""
        self._cursor.execute(
            "UPDATE releases SET phase = %(to)s WHERE model = %(model)s"
            " AND (phase = %(phase)s OR version = %(version)s)",
            {"to": phase_to, "model": self._model, "phase": phase, "version": version},
        )

    def _note(self, promotion: Promotion, kind: str, detail: Mapping[str, Any]) -> None:
        append_event(self._cursor, self._model, promotion.version, kind, detail, promotion.id)
