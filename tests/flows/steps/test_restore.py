"""`restore` and what calls it: from anywhere, as often as anybody likes, always to the same end."""

from __future__ import annotations

import threading

import psycopg2
import pytest

from flows.adapters.memory import MemoryPlatform
from flows.adapters.registry import Turn
from flows.domain.errors import DependencyDown, PromotionRunning, ReleaseNotReady
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.promotion import Promotion, Retreat, State
from flows.domain.release import Phase
from flows.steps.restore import reconcile, restore, roll_back, roll_back_run
from flows.sweep import SWEEP, sweep_once
from flows.wiring import ControlPlane
from tests.flows.conftest import Story


def test_a_canary_leaves_for_the_stable(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25)
    restored = restore(plane, "flights", "5 % errors", State.REJECTED, only=promotion)
    assert story.weights() == {"flights-v1": 100}
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REJECTED}
    assert plane.registry.promotion(promotion.id).state is State.REJECTED
    assert plane.platform.running() == {"flights-v1"}
    assert "v2 was taken out (5 % errors); traffic goes to flights-v1 100 %" in restored.sentence


def test_a_first_release_leaves_for_nobody(plane: ControlPlane, story: Story) -> None:
    story.register(1)
    story.begin(1, 100)
    restored = restore(plane, "flights", "down", State.REJECTED)
    assert story.weights() == {}
    assert story.phases() == {1: Phase.REJECTED}
    assert "nobody (503): there is no earlier release" in restored.sentence


def test_a_stable_leaves_for_the_previous_release_which_is_started_first(
    plane: ControlPlane, story: Story, platform: MemoryPlatform
) -> None:
    story.register(1, 2)
    story.promoted(1)
    story.promoted(2)
    platform.stop(story.release(1))
    restore(plane, "flights", "an alert", State.REJECTED)
    assert platform.takers == ["flights-v1"], "as large as the one that leaves"
    assert story.weights() == {"flights-v1": 100}
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REJECTED}


def test_restoring_twice_and_at_once_rolls_back_once(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2, 3)
    for version in (1, 2):
        story.promoted(version)
    promotion = story.begin(3, 50)
    results: list[bool] = []

    def go() -> None:
        restored = restore(plane, "flights", "x", State.REJECTED, only=promotion)
        results.append(restored.retreat is not None)

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    assert story.phases() == {1: Phase.PREVIOUS, 2: Phase.STABLE, 3: Phase.REJECTED}
    assert story.weights() == {"flights-v2": 100}


@pytest.mark.parametrize("method", ["route", "start", "stop"])
def test_a_platform_that_fails_half_way_is_finished_by_the_sweep(
    plane: ControlPlane, story: Story, platform: MemoryPlatform, method: str
) -> None:
    """The intention is on record, so whoever comes next finishes it; the registry never claims too much."""
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 50)
    platform.fail[method] = DependencyDown("the platform is away")
    try:
        restore(plane, "flights", "5 % errors", State.REJECTED, only=promotion)
    except DependencyDown:
        assert story.phases() == {1: Phase.STABLE, 2: Phase.CANARY}
        assert plane.registry.retreating() == ["flights"]
    swept = sweep_once(plane)
    assert swept.problems == ()
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REJECTED}
    assert story.weights() == {"flights-v1": 100}
    assert plane.registry.promotion(promotion.id).reason == "5 % errors"


def test_a_failing_flow_never_rolls_back_what_somebody_else_has_begun(
    plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2, 3)
    story.promoted(1)
    mine = story.begin(2, 25)
    restore(plane, "flights", "aborted", only=mine)
    story.begin(3, 5)
    restored = restore(plane, "flights", "my own late failure", State.FAILED, only=mine)
    assert restored.retreat is None
    assert story.phases()[3] is Phase.CANARY
    assert story.weights() == {"flights-v1": 95, "flights-v3": 5}


def test_reconcile_puts_the_route_to_what_the_rows_say(
    plane: ControlPlane, story: Story, platform: MemoryPlatform
) -> None:
    from flows.domain.routes import Routes

    story.register(1, 2)
    story.promoted(1)
    story.begin(2, 25)
    platform.route("flights", Routes({"flights-v1": 10, "flights-v2": 90}))
    reconcile(plane, "flights")
    assert story.weights() == {"flights-v1": 75, "flights-v2": 25}


def test_the_sweep_brings_home_only_what_nobody_drives(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25, lease=60)
    assert sweep_once(plane).restored == ()
    plane.registry.renew(promotion, 0)
    # The lease counts from the database's start at least; the test's database is older than its grace.
    (restored,) = sweep_once(plane).restored
    assert restored.retreat is not None
    assert restored.retreat.reason == "its flow run is gone"
    assert plane.registry.promotion(promotion.id).state is State.FAILED
    assert story.weights() == {"flights-v1": 100}
    assert SWEEP in plane.registry.beats()


def test_the_sweep_does_not_roll_back_a_certified_release_whose_watch_was_cut_short(
    plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 100, lease=0)
    with plane.registry.turn("flights") as turn:
        turn.crown(promotion)
    sweep_once(plane)
    assert story.phases() == {1: Phase.PREVIOUS, 2: Phase.STABLE}
    assert plane.registry.promotion(promotion.id).state is State.PROMOTED
    assert story.weights() == {"flights-v2": 100}


def test_the_sweep_stops_left_over_servers_and_no_others(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    story.start(2)
    assert sweep_once(plane).stopped == ("flights-v2",)
    assert plane.platform.running() == {"flights-v1"}


def test_one_model_in_trouble_does_not_keep_another_from_being_swept(
    plane: ControlPlane, story: Story, platform: MemoryPlatform
) -> None:
    story.register(1, 2)
    story.register(1, model="digits")
    plane.registry.begin("digits", 1, "gone", 3600, 0)
    story.promoted(1)
    story.begin(2, 25, lease=0)
    platform.fail["route"] = DependencyDown("one call fails")
    first = sweep_once(plane)
    assert len(first.problems) == 1
    assert len(first.restored) == 1
    assert SWEEP not in plane.registry.beats()
    assert sweep_once(plane).problems == ()
    assert story.weights() == {"flights-v1": 100}


def test_a_rollback_for_a_run_that_left_nothing_touches_nothing(plane: ControlPlane, story: Story) -> None:
    """Automations may fire on a run that has just completed."""
    story.register(1, 2)
    story.promoted(1)
    story.promoted(2)
    assert roll_back_run(plane, "run-2", "lost heartbeat") is None
    assert roll_back_run(plane, "never-heard-of", "lost heartbeat") is None
    assert story.phases() == {1: Phase.PREVIOUS, 2: Phase.STABLE}


def test_a_rollback_to_a_chosen_version(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2, 3)
    for version in (1, 2, 3):
        story.promoted(version)
    roll_back(plane, "flights", "by hand", to=1)
    assert story.weights() == {"flights-v1": 100}
    assert story.phases()[1] is Phase.STABLE


def test_two_rollbacks_at_once_go_back_one_release_and_not_two(plane: ControlPlane, story: Story) -> None:
    """Both have seen v3 fail; the one that comes second must not take out v2, which is well."""
    story.register(1, 2, 3)
    for version in (1, 2, 3):
        story.promoted(version)
    gate, results = threading.Barrier(8), []

    def go() -> None:
        gate.wait()
        results.append(roll_back(plane, "flights", "5 % errors", state=State.REJECTED, leaving=3))

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(restored.retreat is not None for restored in results) == 1
    assert story.weights() == {"flights-v2": 100}
    assert story.phases()[3] is Phase.REJECTED


def test_a_promotion_whose_canary_has_left_takes_nothing_else_out(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25)
    with plane.registry.turn("flights") as turn:
        turn._move("rejected", version=2)  # as a half-settled retreat of an older release would leave it
    restored = restore(plane, "flights", "late", State.FAILED, only=promotion)
    assert restored.retreat is None
    assert plane.registry.promotion(promotion.id).state is State.FAILED
    assert story.weights() == {"flights-v1": 100}


def _breaks_before(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The database goes away in the middle of a group of statements."""

    def broken(*_: object, **__: object) -> None:
        raise psycopg2.OperationalError("the connection is gone")

    monkeypatch.setattr(Turn, method, broken)


def test_a_retreat_settles_whole_or_not_at_all(
    plane: ControlPlane, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25)
    with monkeypatch.context() as patch:
        _breaks_before(patch, "end")
        with pytest.raises(DependencyDown):
            restore(plane, "flights", "5 % errors", State.REJECTED, only=promotion)
    assert story.phases() == {1: Phase.STABLE, 2: Phase.CANARY}
    assert plane.registry.retreating() == ["flights"]
    sweep_once(plane)
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REJECTED}
    assert plane.registry.promotion(promotion.id).state is State.REJECTED


def test_a_crown_is_set_whole_or_not_at_all(
    plane: ControlPlane, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 50)
    with monkeypatch.context() as patch:
        _breaks_before(patch, "_note")
        with pytest.raises(DependencyDown), plane.registry.turn("flights") as turn:
            turn.crown(promotion)
    assert story.phases() == {1: Phase.STABLE, 2: Phase.CANARY}
    assert plane.registry.promotion(promotion.id).state is State.RUNNING


def _condemn(plane: ControlPlane, promotion: Promotion) -> None:
    verdict = Verdict("reject", "errors", "9 of 20 requests failed", outcome="rollback")
    window = Window(0, 2, 25).to_json()
    plane.registry.store_window(promotion, 0, window, verdict.to_json(), None, watching=False)


def test_a_verdict_whose_flow_died_before_it_acted_is_drawn_by_the_sweep(
    plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25, lease=0)
    _condemn(plane, promotion)
    sweep_once(plane)
    ended = plane.registry.promotion(promotion.id)
    assert (ended.state, ended.reason) == (State.REJECTED, "9 of 20 requests failed")
    assert story.phases()[2] is Phase.REJECTED


def test_a_condemned_release_leaves_even_from_the_watch_after_100_percent(
    plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 100, lease=0)
    with plane.registry.turn("flights") as turn:
        turn.crown(promotion)
    _condemn(plane, promotion)
    assert roll_back_run(plane, "run-2", "lost heartbeat") is not None
    assert story.weights() == {"flights-v1": 100}
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REJECTED}


def test_no_promotion_begins_while_a_rollback_is_unfinished(
    plane: ControlPlane, story: Story, platform: MemoryPlatform
) -> None:
    story.register(1, 2, 3)
    story.promoted(1)
    story.promoted(2)
    platform.fail["route"] = DependencyDown("the platform is away")
    with pytest.raises(DependencyDown):
        restore(plane, "flights", "5 % errors", State.REJECTED)
    with pytest.raises(PromotionRunning, match="modelserve sweep"):
        plane.registry.begin("flights", 3, "run-3", 3600, 60)
    sweep_once(plane)
    plane.registry.begin("flights", 3, "run-3", 3600, 60)


def test_a_target_that_cannot_start_is_not_put_on_record(
    plane: ControlPlane, story: Story, platform: MemoryPlatform
) -> None:
    """Else every later rollback would try that one again, and a person could not choose another."""
    story.register(1, 2, 3)
    for version in (1, 2, 3):
        story.promoted(version)
    platform.stop(story.release(2))
    platform.fail["start"] = ReleaseNotReady("flights-v2: its image is gone")
    with pytest.raises(ReleaseNotReady):
        restore(plane, "flights", "5 % errors", State.REJECTED)
    assert plane.registry.retreating() == []
    roll_back(plane, "flights", "by hand", to=1)
    assert story.weights() == {"flights-v1": 100}


def test_an_unfinished_rollback_can_be_led_elsewhere_by_hand(
    plane: ControlPlane, story: Story, platform: MemoryPlatform
) -> None:
    story.register(1, 2, 3)
    for version in (1, 2, 3):
        story.promoted(version)
    with plane.registry.turn("flights") as turn:
        turn.intend_retreat(Retreat(leaves=3, target=2, state=State.REJECTED, reason="5 % errors"))
    platform.stop(story.release(2))
    platform.fail["start"] = ReleaseNotReady("flights-v2: its image is gone")
    assert sweep_once(plane).problems != ()
    restored = roll_back(plane, "flights", "v2 is broken as well", to=1)
    assert restored.retreat is not None
    assert story.weights() == {"flights-v1": 100}
    assert story.phases()[3] is Phase.REJECTED
