"""Where a model stands, and what follows from it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flows.domain.promotion import (
    Promotion,
    Retreat,
    Standing,
    State,
    due,
    plan_emptying,
    plan_retreat,
    ramp,
    settled,
)
from flows.domain.release import Phase, Release
from flows.domain.routes import Routes

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def release(version: int, phase: Phase) -> Release:
    return Release("flights", version, "file:///bundle", "a" * 64, None, phase)


def promotion(version: int, weight: int, state: State = State.RUNNING) -> Promotion:
    return Promotion("id", "flights", version, "run", state, False, weight, None, NOW, NOW, NOW, None)


def standing(
    *releases: Release,
    promotion: Promotion | None = None,
    retreat: Retreat | None = None,
    route: Routes | None = None,
) -> Standing:
    return Standing("flights", releases, promotion, retreat, route or Routes(), None)


RAMPING = standing(release(1, Phase.STABLE), release(2, Phase.CANARY), promotion=promotion(2, 25))
FIRST = standing(release(1, Phase.CANARY), promotion=promotion(1, 0))
SETTLED = standing(release(1, Phase.PREVIOUS), release(2, Phase.STABLE))


def test_a_ramp_splits_between_stable_and_canary() -> None:
    assert ramp(RAMPING, 5) == Routes({"flights-v1": 95, "flights-v2": 5})
    assert ramp(RAMPING, 0) == Routes({"flights-v1": 100, "flights-v2": 0})


def test_a_first_release_gets_everything_or_nothing() -> None:
    assert ramp(FIRST, 0) == Routes()
    assert ramp(FIRST, 100) == Routes({"flights-v1": 100})


def test_the_route_due_follows_from_the_rows() -> None:
    assert due(RAMPING) == Routes({"flights-v1": 75, "flights-v2": 25})
    assert due(SETTLED) == Routes({"flights-v1": 0, "flights-v2": 100})
    assert due(standing(release(1, Phase.REJECTED))) == Routes()


def test_a_hold_back_counts_only_while_the_new_release_is_watched() -> None:
    rows = (release(1, Phase.PREVIOUS), release(2, Phase.STABLE))
    watching = standing(*rows, promotion=promotion(2, 100, State.WATCHING))
    assert due(watching, hold_back=10) == Routes({"flights-v1": 10, "flights-v2": 90})
    assert due(standing(*rows), hold_back=10) == settled(rows[1], rows[0])


def test_a_canary_that_was_kept_keeps_the_recorded_route() -> None:
    kept = Routes({"flights-v1": 75, "flights-v2": 25})
    assert due(standing(release(1, Phase.STABLE), release(2, Phase.CANARY), route=kept)) == kept


def test_an_unsettled_retreat_wins_over_a_promotion() -> None:
    retreat = Retreat(2, 1, State.REJECTED, "why")
    rows = standing(*RAMPING.releases, promotion=RAMPING.promotion, retreat=retreat)
    assert due(rows) == Routes({"flights-v1": 100})


@pytest.mark.parametrize(
    ("rows", "to", "leaves", "target"),
    [
        (RAMPING, None, 2, 1),
        (SETTLED, None, 2, 1),
        (SETTLED, 1, 2, 1),
        (FIRST, None, 1, None),
        (standing(release(1, Phase.RETIRED), *RAMPING.releases[1:], release(3, Phase.STABLE)), 1, 2, 1),
    ],
)
def test_where_a_rollback_leads(rows: Standing, to: int | None, leaves: int, target: int | None) -> None:
    assert plan_retreat(rows, State.ABORTED, "why", to) == Retreat(leaves, target, State.ABORTED, "why")


def test_nothing_is_rolled_back_where_nothing_serves() -> None:
    assert plan_retreat(standing(release(1, Phase.REGISTERED)), State.ABORTED, "why") is None
    assert plan_retreat(SETTLED, State.ABORTED, "why", to=2) is None


def test_the_last_release_that_serves_stays_unless_that_is_meant() -> None:
    last = standing(release(1, Phase.STABLE))
    assert plan_retreat(last, State.ABORTED, "why") is None
    assert plan_retreat(last, State.REJECTED, "why", last=True) == Retreat(1, None, State.REJECTED, "why")
    assert plan_emptying(SETTLED, "why") == Retreat(2, None, State.ABORTED, "why")
    nobody = standing(release(1, Phase.REGISTERED))
    assert plan_emptying(nobody, "why") is None
    assert plan_retreat(nobody, State.ABORTED, "why", to=1) == Retreat(None, 1, State.ABORTED, "why")
