"""A promotion that dies, is cancelled, or meets other hands never leaves users on a bad release.

Real processes under constant traffic. Each story ends with the weights, the registry's rows, and no user
request that failed because of it.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from flows.domain.promotion import State
from flows.domain.routes import Routes

from .conftest import LEASE_SECONDS, MODEL, World

pytestmark = pytest.mark.timeout(400)


def stable(world: World) -> int:
    standing = world.plane.registry.standing(MODEL)
    assert standing.stable is not None
    return standing.stable.version


def test_a_flow_that_is_killed_is_rolled_back_by_the_automation(world: World) -> None:
    before, began = stable(world), time.time()
    version, run = world.promote()
    world.at_weight(version, 10)
    world.flow_process(run).kill()
    world.serving(before, 90)
    ended = world.ended(version)
    assert ended.state is State.FAILED
    assert world.failures_since(began) == []


def test_a_worker_and_its_flow_that_die_together_are_swept(world: World) -> None:
    before, began = stable(world), time.time()
    version, run = world.promote()
    world.at_weight(version, 10)
    flow, worker = world.flow_process(run), world.part("worker")
    os.kill(worker.pid, signal.SIGKILL)
    flow.kill()

    def swept() -> bool:
        world.modelserve("sweep")
        found = world.promotion(version)
        return found is not None and found.ended_at is not None

    world.until(swept, 60 + LEASE_SECONDS, "the sweep to bring the promotion home")
    world.serving(before)
    ended = world.ended(version)
    assert ended.state is State.FAILED
    assert world.failures_since(began) == []


def test_a_cancelled_run_puts_the_traffic_back_itself(world: World) -> None:
    before, began = stable(world), time.time()
    version, run = world.promote()
    world.at_weight(version, 10)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling(), force=True)  # type: ignore[arg-type]
    world.serving(before)
    ended = world.ended(version)
    assert ended.state in (State.ABORTED, State.FAILED)
    assert world.failures_since(began) == []


def test_a_rollback_by_hand_beats_a_running_promotion(world: World) -> None:
    before, began = stable(world), time.time()
    version, _ = world.promote()
    world.at_weight(version, 10)
    assert "was taken out" in world.modelserve("rollback", MODEL, "--reason", "by hand").stdout
    world.serving(before)
    ended = world.ended(version)
    assert (ended.state, ended.reason) == (State.ABORTED, "by hand")
    time.sleep(3)
    world.serving(before)
    assert world.failures_since(began) == []


def test_a_route_edited_by_hand_stays_and_stops_the_advance(world: World) -> None:
    before = stable(world)
    version, _ = world.promote()
    world.at_weight(version, 10)
    by_hand = Routes({f"{MODEL}-v{before}": 80, f"{MODEL}-v{version}": 20})
    world.plane.platform.route(MODEL, by_hand)

    def noticed() -> bool:
        events = world.plane.registry.events(MODEL)
        return any(event.kind == "route-drift" and event.version == version for event in events)

    world.until(noticed, 20, "the edit to be noticed")
    time.sleep(6)  # twice the dwell: it would have gone on
    assert world.plane.platform.routes(MODEL) == by_hand
    found = world.promotion(version)
    assert found is not None
    assert found.weight == 10
    world.modelserve("abort", MODEL)
    world.serving(before)


def test_prometheus_away_freezes_and_then_the_promotion_ends_as_it_would_have(world: World) -> None:
    began = time.time()
    version, _ = world.promote()
    world.at_weight(version, 10)
    prometheus = world.part("prometheus")
    prometheus.suspend()
    try:
        time.sleep(8)  # the window that was under way may still end well
        found = world.promotion(version)
        assert found is not None
        weight = found.weight
        time.sleep(12)
        found = world.promotion(version)
        assert found is not None
        assert found.weight == weight, "weights moved without anybody seeing"
    finally:
        prometheus.resume()
    assert world.ended(version).state is State.PROMOTED
    world.serving(version)
    assert world.failures_since(began) == []


def test_redis_away_hurts_nobody(world: World) -> None:
    began = time.time()
    version, _ = world.promote()
    world.at_weight(version, 10)
    redis = world.part("redis")
    redis.suspend()
    try:
        time.sleep(15)
    finally:
        redis.resume()
    assert world.ended(version).state is State.PROMOTED
    assert world.failures_since(began) == []


def test_a_restarted_database_loses_nothing(world: World) -> None:
    before, began = stable(world), time.time()
    version, _ = world.promote()
    world.at_weight(version, 10)
    events = world.plane.registry.last_event()
    world.part("postgres").send_signal(signal.SIGINT)  # a fast shutdown; supervisord starts it again
    ended = world.ended(version, 150)
    assert world.plane.registry.last_event() >= events
    if ended.state is State.PROMOTED:
        world.serving(version)
    else:
        assert ended.state in (State.FAILED, State.ABORTED)
        world.serving(before)
    assert world.failures_since(began) == []
