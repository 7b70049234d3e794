"""A run that nobody takes: a person who waits is told so, and starting it again makes no second one."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelled, Running
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console

from flows.adapters.stack import PartStatus
from flows.console import following
from flows.console.tables import parts_table
from flows.domain.errors import PromotionRunning
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Window
from flows.domain.promotion import State
from flows.domain.release import Phase
from flows.steps.restore import let_stay
from flows.steps.starting import Started, heard_of_workers, start_promotion
from flows.wiring import ControlPlane
from tests.flows.conftest import Story

POOL = "night"


@flow(name="promote")
def promote(model: str, version: int) -> None:
    """Never runs: nobody works for its pool."""


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    request.getfixturevalue("server")
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        identifier = client.create_flow(promote)
        client.create_deployment(
            flow_id=identifier,
            name="promote",
            work_pool_name=POOL,
            path=os.devnull,
            entrypoint="x.py:promote",
        )
        yield client


def end(client: SyncPrefectClient, started: Started) -> None:
    client.set_flow_run_state(started.run, Cancelled(), force=True)


def test_starting_it_again_joins_the_run_that_waits(
    client: SyncPrefectClient, plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2)
    first = start_promotion(plane, "flights", 1)
    again = start_promotion(plane, "flights", 1)
    other = start_promotion(plane, "flights", 2)
    assert (first.joined, again.joined, other.joined) == (False, True, False)
    assert again.run == first.run != other.run
    end(client, first)
    anew = start_promotion(plane, "flights", 1)
    assert not anew.joined
    assert anew.run != first.run
    end(client, anew)
    end(client, other)


def test_starting_it_again_joins_the_run_that_promotes_and_not_one_that_is_gone(
    client: SyncPrefectClient, plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2)
    first = start_promotion(plane, "flights", 1)
    client.set_flow_run_state(first.run, Running(), force=True)
    story.begin(1, 25, run=str(first.run))
    again = start_promotion(plane, "flights", 1)
    assert (again.run, again.joined) == (first.run, True)
    with pytest.raises(PromotionRunning, match="v1 is being promoted"):
        start_promotion(plane, "flights", 2)
    end(client, first)  # it was killed, and its promotion is still open: a new run takes over
    taken_over = start_promotion(plane, "flights", 1)
    assert not taken_over.joined
    assert taken_over.run != first.run
    end(client, taken_over)


def test_a_person_who_waits_hears_that_no_worker_takes_the_run(
    client: SyncPrefectClient, plane: ControlPlane, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.register(1)
    started = start_promotion(plane, "flights", 1)
    assert started.pool == POOL
    text = io.StringIO()
    monkeypatch.setattr(following, "WAITS_SECONDS", 0)
    monkeypatch.setattr(following, "AGAIN_SECONDS", 1)
    tail = following._Tail(plane, "flights", Console(file=text, width=300))
    assert following._until_final(started, tail, 2.5) is None
    said = text.getvalue().splitlines()
    assert 1 < len(said) <= 3
    assert "the run waits" in said[0]
    assert "no worker of pool 'night' has ever been heard of; see 'modelserve status'" in said[0]
    end(client, started)


def test_a_worker_is_known_by_what_was_heard_of_it(client: SyncPrefectClient) -> None:
    client.request(
        "POST", "/work_pools/{work_pool_name}/workers/heartbeat",
        path_params={"work_pool_name": POOL}, json={"name": "w", "heartbeat_interval_seconds": 30},
    )  # fmt: skip
    assert "a worker of pool 'night' was heard of" in heard_of_workers(client, POOL)
    (worker,) = client.read_workers_for_work_pool(POOL)
    assert worker.last_heartbeat_time is not None
    assert worker.last_heartbeat_time > datetime.now(UTC) - timedelta(minutes=1)


def test_a_part_that_lives_and_does_not_answer_is_not_called_running() -> None:
    text = io.StringIO()
    hung = PartStatus("worker", "RUNNING", False, 7, 60, "", Path("worker.log"))
    Console(file=text, width=200).print(parts_table([hung]))
    assert "not answering" in text.getvalue()
    assert "running" not in text.getvalue()


# -- a first release: nobody else would answer -------------------------------------------------------------


def served_alone(
    client: SyncPrefectClient, plane: ControlPlane, story: Story, requests: int, seconds: float
) -> Started:
    """v1 serves everybody, and has been watched for so long; `requests` have come."""
    story.register(1, 2)
    started = start_promotion(plane, "flights", 1)
    client.set_flow_run_state(started.run, Running(), force=True)
    promotion = story.begin(1, 100, run=str(started.run))
    window = Window(0.0, seconds, 100, Counts(requests=requests), None)
    hold = Verdict("hold", "traffic", "no request has reached the release yet")
    plane.registry.store_window(promotion, 0, window.to_json(), hold.to_json(), None, watching=False)
    return started


def test_a_first_release_that_nobody_calls_is_left_to_the_background(
    client: SyncPrefectClient, plane: ControlPlane, story: Story
) -> None:
    started = served_alone(client, plane, story, requests=0, seconds=following.SILENT_SECONDS)
    text = io.StringIO()
    assert following.follow(plane, started, Console(file=text, width=300)) == 0
    assert (
        "flights v1 has answered its samples and serves everybody; nobody has called it yet"
        in text.getvalue()
    )
    assert "'modelserve abort flights' takes it out" in text.getvalue()
    assert story.weights() == {"flights-v1": 100}
    state = client.read_flow_run(started.run).state
    assert state is not None
    assert state.is_running(), "it is watched on"
    end(client, started)


@pytest.mark.parametrize(("requests", "seconds"), [(3, 60.0), (0, 5.0)], ids=["called", "too soon"])
def test_a_first_release_is_followed_while_it_is_called_or_just_begun(
    client: SyncPrefectClient, plane: ControlPlane, story: Story, requests: int, seconds: float
) -> None:
    started = served_alone(client, plane, story, requests, seconds)
    assert not following._unheard(plane, started)
    end(client, started)


def test_ctrl_c_does_not_take_the_only_release_out(
    client: SyncPrefectClient, plane: ControlPlane, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = served_alone(client, plane, story, requests=3, seconds=60.0)

    def typed(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", typed)
    text = io.StringIO()
    assert following.follow(plane, started, Console(file=text, width=300)) == 0
    state = client.read_flow_run(started.run).state
    assert state is not None
    assert state.is_running(), "a cancelled run would take the traffic back"
    assert "watched in the background" in text.getvalue()
    end(client, started)


def test_the_next_release_need_not_wait_for_requests_that_never_come(
    client: SyncPrefectClient, plane: ControlPlane, story: Story
) -> None:
    first = served_alone(client, plane, story, requests=0, seconds=60.0)
    said: list[str] = []
    second = start_promotion(plane, "flights", 2, say=said.append)
    assert not second.joined
    assert said == ["flights v1 serves on as the stable, unproven: v2 is compared with it"]
    assert story.phases()[1] is Phase.STABLE
    assert story.weights() == {"flights-v1": 100}
    (promotion,) = plane.registry.promotions("flights")
    assert promotion.state is State.UNPROVEN
    end(client, first)
    end(client, second)


def test_a_first_release_that_was_just_convicted_does_not_stay_for_the_next(
    plane: ControlPlane, story: Story
) -> None:
    story.register(1, 2)
    promotion = story.begin(1, 100)
    window = Window(0.0, 60.0, 100, Counts(requests=50, errors=50), None)
    guilty = Verdict("reject", "errors", "all of its requests failed", outcome="rollback")
    plane.registry.store_window(promotion, 0, window.to_json(), guilty.to_json(), None, watching=False)
    assert not let_stay(plane, promotion, "v2 is to follow")
    assert story.phases()[1] is Phase.CANARY
