"""A promotion that dies, is cancelled, or meets other hands never leaves users on a bad release.

Real processes under constant traffic. Each story ends with the weights, the registry's rows, and no user
request that failed because of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from flows.adapters import stack
from flows.domain.errors import ModelServeError
from flows.domain.promotion import State
from flows.domain.routes import Routes
from flows.steps.starting import start_promotion
from tests.chaos.world import LEASE_SECONDS, MODEL, PATIENT, World

pytestmark = pytest.mark.timeout(400)


def test_a_flow_that_is_killed_is_rolled_back_by_the_automation(world: World) -> None:
    before, story = world.stable, world.story("flow killed (kill -9), its worker lives")
    with world.unswept():
        version, run = world.promote(PATIENT)
        world.at_weight(version, 10)
        story.strikes()
        world.flow_process(run).kill()
        story.ends(version, State.FAILED, serving=before, because="sent prefect.flow-run.Crashed")


@pytest.mark.thorough
def test_a_worker_that_is_killed_leaves_its_flow_alone(world: World) -> None:
    story = world.story("worker killed (kill -9), its flow lives")
    version, _ = world.promote()
    world.at_weight(version, 10)
    story.strikes()
    os.kill(world.part("worker").pid, signal.SIGKILL)
    story.ends(version, State.PROMOTED, serving=version)


def test_a_worker_and_its_flow_that_die_together_are_swept(world: World) -> None:
    before, story = world.stable, world.story("worker and flow killed together")
    version, run = world.promote(PATIENT)
    world.at_weight(version, 10)
    story.strikes()
    flow, worker = world.flow_process(run), world.part("worker")
    os.kill(worker.pid, signal.SIGKILL)
    flow.kill()

    def swept() -> bool:
        world.modelserve("sweep")
        found = world.promotion(version)
        return found is not None and found.ended_at is not None

    world.until(swept, 60 + LEASE_SECONDS, "the sweep to bring the promotion home")
    story.ends(version, State.FAILED, serving=before, because="its flow run is gone")


@pytest.mark.thorough
def test_an_evicted_pod_puts_the_traffic_back_and_the_next_one_starts_again(world: World) -> None:
    """What a flow's pod runs, told to go as a kubelet tells it, with what prefect-kubernetes sets."""
    before, story = world.stable, world.story("flow's pod evicted (SIGTERM), then scheduled again")
    version = world.register()
    with world.without("worker"):  # this machine's own would take the run
        run = str(start_promotion(world.plane, MODEL, version).run)
        command = [sys.executable, "-m", "prefect", "flow-run", "execute"]
        environment = {
            **world.variables,
            "PREFECT__FLOW_RUN_ID": run,
            "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
        }
        pod = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        world.at_weight(version, 10)
        story.strikes()
        pod.terminate()
        assert pod.wait(120) == 0
        story.ends(version, State.ABORTED, State.FAILED, serving=before)
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state  # type: ignore[arg-type]
            assert state is not None
            assert state.is_scheduled(), f"the run is not taken up again: {state.name}"
        subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    story.ends(version, State.PROMOTED, serving=version)


def test_a_cancelled_run_puts_the_traffic_back_itself(world: World) -> None:
    before, story = world.stable, world.story("run cancelled in Prefect's API")
    version, run = world.promote(PATIENT)
    world.at_weight(version, 10)
    story.strikes()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling(), force=True)  # type: ignore[arg-type]
    story.ends(version, State.ABORTED, serving=before, because="the flow run was cancelled")


IN_A_TERMINAL = """
import signal

# What a shell has started in the background, as these tests may be, inherits that it ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows.terminal.cli import main

main()
"""


@pytest.mark.thorough
def test_ctrl_c_while_watching_puts_the_traffic_back_and_says_so(world: World) -> None:
    before, story = world.stable, world.story("Ctrl-C in 'modelserve promote --watch'")
    version = world.register(PATIENT)
    shell = subprocess.Popen(
        [
            sys.executable,
            "-c",
            IN_A_TERMINAL,
            "promote",
            MODEL,
            str(version),
            "--watch",
        ],
        env=world.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        world.at_weight(version, 10)
        story.strikes()
        shell.send_signal(signal.SIGINT)
        said, _ = shell.communicate(timeout=90)
    finally:
        with suppress(ProcessLookupError):
            shell.kill()
    assert shell.returncode == 1
    assert f"traffic goes to {MODEL}-v{before} 100 %" in said
    story.ends(version, State.ABORTED, State.FAILED, serving=before)


def test_a_rollback_by_hand_beats_a_running_promotion(world: World) -> None:
    before, story = world.stable, world.story("rollback by hand during the ramp")
    version, _ = world.promote(PATIENT)
    world.at_weight(version, 10)
    story.strikes()
    assert "was taken out" in world.modelserve("rollback", MODEL, "--reason", "by hand").stdout
    assert story.ends(version, State.ABORTED, serving=before).reason == "by hand"
    time.sleep(3)  # the flow that has lost would act within this
    world.serving(before)
    assert world.failures_since(story.began) == []


@pytest.mark.thorough
def test_two_promotions_and_a_rollback_at_once_leave_one_release_in_service(world: World) -> None:
    before, story = world.stable, world.story("two promotions and a rollback at once")
    versions = (world.register(), world.register())
    registry = world.plane.registry
    runs: list[UUID] = []
    refused: list[str] = []

    def begin(version: int) -> None:
        try:
            runs.append(UUID(world.begin(version)))
        except ModelServeError as error:  # the other one was open already
            refused.append(str(error))

    def abort() -> None:
        world.until(lambda: registry.standing(MODEL).canary is not None, 60, "a canary")
        world.modelserve("abort", MODEL)

    def over() -> bool:
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(run).state for run in runs]
        return all(state is not None and state.is_final() for state in states)

    story.strikes()
    with ThreadPoolExecutor(3) as pool:
        # Each with Prefect's settings of this thread, which say where the server is.
        actors = [pool.submit(copy_context().run, begin, version) for version in versions]
        actors.append(pool.submit(copy_context().run, abort))
        for actor in actors:
            actor.result()
    assert all("is being promoted" in why for why in refused)
    assert runs, "neither promotion has begun"
    world.until(over, 120, "every flow run to end")
    found = [promotion for promotion in map(world.promotion, versions) if promotion is not None]
    assert any(promotion.state is State.ABORTED for promotion in found)
    # Never two at a time: one was refused while the other was open, or came after it had gone.
    spans = sorted((p.started_at, p.ended_at) for p in found)
    assert all(ended is not None for _, ended in spans)
    assert len(spans) == 1 or spans[0][1] <= spans[1][0]
    promoted = [p.version for p in found if p.state is State.PROMOTED]
    last = max(found, key=lambda p: p.started_at)
    story.ends(last.version, last.state, serving=promoted[-1] if promoted else before)


def test_a_route_edited_by_hand_stays_and_stops_the_advance(world: World) -> None:
    before, story = world.stable, world.story("route edited by hand, then aborted")
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
    story.strikes()
    world.modelserve("abort", MODEL)
    story.ends(version, State.ABORTED, serving=before)


@pytest.mark.thorough
def test_servers_that_crash_are_brought_back(world: World) -> None:
    """A canary's server that is killed costs the requests that were with it, and is started again."""
    before, story = world.stable, world.story("canary's server killed (kill -9)")
    version, _ = world.promote()
    world.at_weight(version, 10)
    story.strikes()
    (server,) = [part for part in stack.status(world.settings) if part.name == f"{MODEL}-v{version}"]
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    story.ends(version, State.PROMOTED, State.REJECTED, serving=_winner(world, version, before), own=True)


def _winner(world: World, version: int, before: int) -> int:
    return version if world.ended(version).state is State.PROMOTED else before


@pytest.mark.thorough
def test_a_lost_heartbeat_is_noticed_when_nobody_sweeps(world: World) -> None:
    before, story = world.stable, world.story("worker and flow killed together, and nobody sweeps")
    with world.unswept():
        version, run = world.promote(PATIENT)
        world.at_weight(version, 10)
        story.strikes()
        flow, worker = world.flow_process(run), world.part("worker")
        os.kill(worker.pid, signal.SIGKILL)
        flow.kill()
        story.ends(version, State.FAILED, serving=before, seconds=240, because="its flow run")
