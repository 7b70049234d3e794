"""A step that waits for a person, with the real form in Prefect's API and with the command line."""

from __future__ import annotations

import time
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State as RunState

from flows.domain.promotion import State
from tests.chaos.world import MODEL, World

pytestmark = pytest.mark.timeout(300)

WAITS = """
promotion:
  steps: [50, 100]
  dwell_seconds: 1
  window_seconds: 0.5
  min_requests: 3
  max_absolute: 0.3
  deadline_seconds: {deadline}
  post_watch_seconds: 0
  approve_before: [{step}]
"""


def run_state(run: str) -> RunState:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run)).state
    assert state is not None
    return state


def waiting(world: World, step: int = 100, deadline: int = 120) -> tuple[int, str]:
    """A promotion that has come to its gate; (version, flow run id)."""
    version, run = world.promote(WAITS.format(step=step, deadline=deadline))
    world.until(lambda: run_state(run).is_paused(), 60, "the form in the Prefect UI")
    return version, run


def approvals(world: World, version: int) -> list[tuple[str, str]]:
    events = world.plane.registry.events(MODEL, world.promotion(version))
    return [(e.detail["approver"], e.detail["comment"]) for e in events if e.kind == "approved"]


def fill_in(run: str, answer: dict[str, str]) -> None:
    with get_client(sync_client=True) as client:
        client.resume_flow_run(UUID(run), run_input=answer)


def test_the_form_is_filled_in_and_who_did_it_is_recorded(world: World) -> None:
    began = time.time()
    version, run = waiting(world)
    time.sleep(2)
    found = world.promotion(version)
    assert found is not None
    assert (found.state, found.weight) == (State.RUNNING, 50)
    fill_in(run, {"approver": "ann"})  # no comment: Prefect's API takes it for nothing
    time.sleep(3)
    assert run_state(run).is_paused()
    fill_in(run, {"approver": "ann", "comment": "the numbers look right"})
    assert world.ended(version).state is State.PROMOTED
    assert approvals(world, version) == [("ann", "the numbers look right")]
    world.until(lambda: run_state(run).is_completed(), 30, "the flow run to complete")
    assert world.failures_since(began) == []


@pytest.mark.thorough
def test_the_command_line_approves_too_and_only_what_waits(world: World) -> None:
    version, run = waiting(world, step=50)
    found = world.promotion(version)
    assert found is not None
    assert found.weight == 0, "a gate before the first step: nobody is sent there yet"
    refused = world.modelserve("approve", MODEL, "100", "--comment", "go", "--approver", "bob", check=False)
    assert refused.returncode == 1
    assert "100 % waits for nobody; its policy asks for approval before 50 %" in refused.stderr
    world.modelserve("approve", MODEL, "50", "--comment", "go", "--approver", "bob")
    assert world.ended(version).state is State.PROMOTED
    assert approvals(world, version) == [("bob", "go")]
    world.until(lambda: run_state(run).is_completed(), 30, "the flow run to complete")


@pytest.mark.thorough
def test_after_a_rollback_there_is_nothing_to_approve(world: World) -> None:
    before = world.stable
    version, run = waiting(world)
    world.modelserve("abort", MODEL, "--reason", "second thoughts")
    refused = world.modelserve("approve", MODEL, "100", "--comment", "go", check=False)
    assert refused.returncode == 1
    assert "waits for an approval; it may have been rolled back" in refused.stderr
    world.until(lambda: run_state(run).is_final(), 60, "the flow run to see that it has lost")
    assert world.ended(version).state is State.ABORTED
    world.serving(before)


@pytest.mark.thorough
def test_without_an_answer_the_traffic_goes_back_at_the_deadline(world: World) -> None:
    before, began = world.stable, time.time()
    version, run = waiting(world, deadline=8)
    ended = world.ended(version, 60)
    assert ended.state is State.FAILED
    assert ended.reason is not None
    assert "nobody has approved the next step within 8 s" in ended.reason
    world.serving(before)
    world.until(lambda: run_state(run).is_failed(), 30, "the flow run to fail")
    assert world.failures_since(began) == []
