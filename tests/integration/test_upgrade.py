"""A registry of any age comes up: what its first version has written is read, and goes on from there."""

from __future__ import annotations

from pathlib import Path

import psycopg2
import pytest

from flows.adapters.registry import ROLLED_BACK, Registry
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window
from flows.domain.promotion import State, plan_retreat
from flows.domain.release import Phase

FIRST = Path(__file__).with_name("first_registry.sql")


@pytest.fixture
def upgraded(database_url: str) -> Registry:
    """A database as the first version's code left it, brought to today's schema."""
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(FIRST.read_text())
    connection.close()
    registry = Registry(database_url)
    registry.migrate()
    registry.migrate()
    return registry


def test_what_the_first_version_wrote_is_read(upgraded: Registry) -> None:
    standing = upgraded.standing("flights")
    assert standing.stable is not None
    assert (standing.stable.version, standing.route.weights) == (2, {"flights-v2": 100})
    phases = {one.version: one.phase for one in upgraded.releases("flights")}
    assert phases == {1: Phase.PREVIOUS, 2: Phase.STABLE, 3: Phase.REJECTED}
    ended = [(one.version, one.state) for one in upgraded.promotions("flights")]
    assert ended == [(1, State.PROMOTED), (2, State.PROMOTED), (3, State.REJECTED)]
    (rolled_back,) = upgraded.events("flights", kinds=(ROLLED_BACK,))
    assert rolled_back.detail["reason"] == "12 of 30 requests failed"
    assert upgraded.proven("flights") == [1, 2]


def test_and_it_goes_on_from_there(upgraded: Registry) -> None:
    again = upgraded.begin("flights", 3, "run", 60, 60)
    window = Window(0, 5, 5, Counts(100, 0), Counts(900, 0))
    verdict = judge(PromotionPolicy(), [window])
    upgraded.store_window(again, 1, window.to_json(), verdict.to_json(), None, watching=False)
    assert [Window.from_json(one.content) for one in upgraded.windows(again)] == [window]
    with upgraded.turn("flights") as turn:
        turn.end(again, State.UNPROVEN, "too little traffic")
    retreat = plan_retreat(upgraded.standing("flights"), State.ABORTED, "by hand")
    assert retreat is not None
    assert (retreat.leaves, retreat.target) == (3, 2)
