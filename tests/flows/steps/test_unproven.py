"""Promotions that end without evidence: a real registry, a clock and counters that the test sets."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from rich.console import Console

from flows import promote as flow
from flows.adapters.registry import Registry
from flows.console.following import exit_code
from flows.console.tables import promotions_table, windows_table
from flows.domain.errors import DependencyDown, PromotionKept, PromotionRejected, PromotionUnproven
from flows.domain.judge.asked import Metric
from flows.domain.judge.counters import Series, Snapshot
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window, unobserved
from flows.domain.promotion import Promotion, State
from flows.domain.release import Phase, Release
from flows.steps.report import HEADLINE, decision_report
from flows.steps.restore import bring_home, roll_back
from flows.steps.watch import watch
from flows.sweep import sweep_once
from flows.wiring import ControlPlane
from tests.flows.conftest import SPEC, Story

START = 1_700_000_000.0
DEADLINE = 600.0


def policy(at_deadline: str = "rollback") -> PromotionPolicy:
    content = {"window_seconds": 60, "dwell_seconds": 60, "deadline_seconds": DEADLINE}
    return PromotionPolicy.model_validate({**content, "at_deadline": at_deadline})


class World:
    """A clock whose sleeps pass at once, and a Prometheus: `rps` for each release, or away."""

    def __init__(self) -> None:
        self.now = START
        self.rps: dict[str, float] = {}
        self.away: Callable[[float], bool] = lambda _: False

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        assert self.now < START + 3 * 86400, "it is watched for ever"

    def snapshot(self, names: list[str], earlier: Snapshot | None, metrics: Sequence[Metric]) -> Snapshot:
        del metrics
        if self.away(self.now - START):
            raise DependencyDown("Prometheus does not answer")
        counters = {
            Series("requests", name, "2", "gateway"): float(int(self.rps.get(name, 0) * (self.now - START)))
            for name in names
        }
        return Snapshot(self.now, counters, {"gateway": self.now}).after(earlier)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def plane(plane: ControlPlane, world: World) -> ControlPlane:
    counters: Any = world
    return replace(plane, clock=world, counters=counters)


def ended_by_the_flow(plane: ControlPlane, promotion: Promotion, at_deadline: str) -> Promotion:
    """Watched as the flow does, and what the flow does with an error."""
    try:
        watch(plane, promotion, policy(at_deadline), promotion.weight, lambda *_: None)
    except PromotionKept:
        pass
    except (PromotionUnproven, PromotionRejected) as error:
        flow._go_back(plane, promotion, error)
    return plane.registry.promotion(promotion.id)


@pytest.mark.parametrize("rps", [0.0, 0.05])
@pytest.mark.parametrize("at_deadline", ["rollback", "keep"])
def test_a_first_release_that_nobody_calls_is_not_taken_out(
    plane: ControlPlane, story: Story, world: World, rps: float, at_deadline: str
) -> None:
    story.register(1)
    promotion = story.begin(1, 100)
    world.rps = {"flights-v1": rps}
    ended = ended_by_the_flow(plane, promotion, at_deadline)
    assert ended.state is State.UNPROVEN
    assert ended.reason is not None
    assert "not decided within 10 min" in ended.reason
    assert story.weights() == {"flights-v1": 100}
    assert "flights-v1" in plane.platform.running()
    assert sweep_once(plane).stopped == ()
    # What comes next has something to be compared with, and something to go back to.
    story.register(2)
    second = story.begin(2, 5)
    assert story.phases() == {1: Phase.STABLE, 2: Phase.CANARY}
    flow._go_back(plane, second, PromotionRejected("5 % errors"))
    assert story.weights() == {"flights-v1": 100}
    assert plane.registry.proven("flights") == [], "it was never proven"


@pytest.mark.parametrize("rps", [0.0, 0.05])
def test_a_canary_without_evidence_goes_back_and_may_be_tried_again(
    plane: ControlPlane, story: Story, world: World, rps: float
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 5)
    world.rps = {"flights-v1": rps * 0.95, "flights-v2": rps * 0.05}
    ended = ended_by_the_flow(plane, promotion, "rollback")
    assert ended.state is State.UNPROVEN
    assert ended.reason is not None
    assert "not decided within 10 min" in ended.reason
    assert story.weights() == {"flights-v1": 100}
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REGISTERED}
    assert story.begin(2, 5, run="again").state is State.RUNNING


@pytest.mark.parametrize("first", [True, False], ids=["only release", "canary"])
@pytest.mark.parametrize("at_deadline", ["rollback", "keep", "promote_unproven"])
def test_while_prometheus_is_away_the_deadline_moves_nothing(
    plane: ControlPlane, story: Story, world: World, first: bool, at_deadline: str
) -> None:
    story.register(1, 2)
    if not first:
        story.promoted(1)
    promotion = story.begin(1 if first else 2, 100 if first else 5)
    before = story.weights()
    seen: list[tuple[float, str]] = []
    world.away = lambda at: 60 < at < 4 * DEADLINE

    def look(window: Window, verdict: Verdict) -> None:
        if not window.observed:
            seen.append((window.end - START, verdict.outcome))
            assert story.weights() == before
            assert plane.registry.promotion(promotion.id).state is State.RUNNING

    with pytest.raises(PromotionUnproven):
        watch(plane, promotion, policy(at_deadline), promotion.weight, look)
    assert {outcome for _, outcome in seen} == {"wait"}
    assert max(at for at, _ in seen) > 3 * DEADLINE
    assert world.now - START >= 4 * DEADLINE, "decided when something was seen again"


@pytest.mark.parametrize(("first", "state"), [(True, State.UNPROVEN), (False, State.KEPT)])
def test_what_nobody_can_see_for_a_day_ends_where_it_is(
    plane: ControlPlane, story: Story, world: World, first: bool, state: State
) -> None:
    story.register(1, 2)
    if not first:
        story.promoted(1)
    promotion = story.begin(1 if first else 2, 100 if first else 5)
    before = story.weights()
    world.away = lambda _: True
    slow = policy().model_copy(update={"window_seconds": 3600.0})
    with pytest.raises(PromotionKept):
        watch(plane, promotion, slow, promotion.weight, lambda *_: None)
    assert plane.registry.promotion(promotion.id).state is state
    assert story.weights() == before
    assert sweep_once(plane).restored == ()
    assert story.weights() == before


# -- the sweep, and what an earlier version has left ---------------------------------------------------


def store(plane: ControlPlane, promotion: Promotion, verdict: Verdict, window: Window) -> None:
    plane.registry.store_window(promotion, 0, window.to_json(), verdict.to_json(), None, watching=False)


def make_late(database_url: str, promotion: Promotion, stored_before: str = "0") -> None:
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE promotions SET deadline = now() - interval '1 hour' WHERE id = %s", (promotion.id,)
        )
        cursor.execute("UPDATE windows SET stored_at = now() - %s::interval", (f"{stored_before} seconds",))
    connection.close()


UNSEEN = Verdict("unobserved", "time", "nothing can be seen", expired=True)


def test_the_sweep_leaves_a_promotion_that_watches_blind(
    plane: ControlPlane, story: Story, database_url: str
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 5)
    store(plane, promotion, UNSEEN, unobserved(START, START + 5, 5, "away"))
    make_late(database_url, promotion)
    assert sweep_once(plane).restored == ()
    assert story.weights() == {"flights-v1": 95, "flights-v2": 5}
    # One that stores no windows any more hangs: that is our fault, and ends.
    make_late(database_url, promotion, "3600")
    assert len(sweep_once(plane).restored) == 1
    assert story.weights() == {"flights-v1": 100}
    assert plane.registry.promotion(promotion.id).state is State.FAILED
    assert story.phases()[2] is Phase.REGISTERED


def test_the_sweep_does_not_take_out_an_only_release_that_is_late(
    plane: ControlPlane, story: Story, database_url: str
) -> None:
    story.register(1)
    promotion = story.begin(1, 100)
    make_late(database_url, promotion)
    (restored,) = sweep_once(plane).restored
    assert restored.retreat is None
    ended = plane.registry.promotion(promotion.id)
    assert ended.state is State.UNPROVEN
    assert ended.reason == "its deadline is over; nothing precedes the release, so it stays, unproven"
    assert story.weights() == {"flights-v1": 100}
    assert story.phases() == {1: Phase.STABLE}


def test_a_flow_that_died_after_the_deadline_does_not_take_the_only_release_with_it(
    plane: ControlPlane, story: Story
) -> None:
    story.register(1)
    promotion = story.begin(1, 100)
    store(plane, promotion, UNSEEN, unobserved(START, START + 5, 100, "away", stable=False))
    bring_home(plane, promotion, "its flow run is gone")
    assert plane.registry.promotion(promotion.id).state is State.UNPROVEN
    assert story.weights() == {"flights-v1": 100}


def test_a_verdict_for_want_of_evidence_whose_flow_died_ends_unproven(
    plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 5, lease=0)
    late = Verdict("hold", "traffic", "no requests at all", expired=True, outcome="rollback")
    store(plane, promotion, late, Window(START, START + 5, 5))
    sweep_once(plane)
    ended = plane.registry.promotion(promotion.id)
    assert (ended.state, ended.reason) == (State.UNPROVEN, "no requests at all")
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REGISTERED}


@pytest.mark.parametrize("kind", ["hold", "unobserved"])
def test_an_earlier_versions_verdict_does_not_take_out_the_only_release(
    plane: ControlPlane, story: Story, kind: Any
) -> None:
    story.register(1)
    promotion = story.begin(1, 100, lease=0)
    late = Verdict(kind, "traffic", "no request", expired=True, outcome="rollback")
    store(plane, promotion, late, Window(START, START + 5, 100, stable=None))
    sweep_once(plane)
    assert plane.registry.promotion(promotion.id).state is State.UNPROVEN
    assert story.weights() == {"flights-v1": 100}


# -- what is on record, and what a person reads --------------------------------------------------------


def test_the_registry_of_an_earlier_version_learns_the_state(database_url: str) -> None:
    from pathlib import Path

    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine

    import flows.migrations

    config = Config()
    config.set_main_option("script_location", str(Path(flows.migrations.__file__).parent))
    engine = create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(database_url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    registry = Registry(database_url)
    registry.register(Release("flights", 1, "file:///bundles/1", "a" * 64), SPEC)
    promotion = registry.begin("flights", 1, "run", 60, 60)
    with pytest.raises(psycopg2.errors.CheckViolation), registry.turn("flights") as turn:
        turn.end(promotion, State.UNPROVEN, "too little evidence")
    registry.migrate()
    with registry.turn("flights") as turn:
        turn.end(promotion, State.UNPROVEN, "too little evidence")
    assert registry.promotion(promotion.id).state is State.UNPROVEN


def test_the_database_knows_every_state(database_url: str) -> None:
    Registry(database_url).migrate()
    connection = psycopg2.connect(database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'promotions_state_check'"
        )
        row = cursor.fetchone()
    connection.close()
    assert row is not None
    assert set(re.findall(r"'(\w+)'", row[0])) == {state.value for state in State}


def test_an_unproven_end_has_its_own_exit_code_colour_and_headline(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 5)
    flow._go_back(plane, promotion, PromotionUnproven("too little evidence"))
    ended = plane.registry.promotion(promotion.id)
    assert set(HEADLINE) == set(State)
    report = decision_report(ended, [], [], [], spoken(policy(), [], None))
    assert report.startswith("# flights v2: 🟡 unproven")
    assert "**too little evidence**" in report
    text = io.StringIO()
    console = Console(file=text, width=160, force_terminal=True, color_system="standard")
    console.print(promotions_table([ended]))
    assert "\x1b[33munproven" in text.getvalue()
    assert "\x1b[31m" not in text.getvalue()
    console.print(windows_table(ended, [], policy()))
    codes = {state: exit_code(state) for state in State}
    assert codes[State.PROMOTED] == 0
    assert {state for state, code in codes.items() if code == 3} == {State.UNPROVEN, State.KEPT}
    assert {codes[state] for state in (State.REJECTED, State.FAILED, State.ABORTED)} == {1}


def test_a_release_that_stays_unproven_is_the_last_one_to_leave(plane: ControlPlane, story: Story) -> None:
    story.register(1)
    ended_by_the_flow(plane, story.begin(1, 100), "rollback")
    assert roll_back(plane, "flights", "by hand").last == 1
    assert story.weights() == {"flights-v1": 100}
