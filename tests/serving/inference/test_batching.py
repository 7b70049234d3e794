"""The batcher: what goes together, what is refused, what is dropped, and how jobs share the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ClientGone, Expired, ModelFault, Problem, Unavailable
from serving.inference import batcher as batcher_module
from serving.inference.batcher import Batcher
from serving.inference.cost import BatchCost
from serving.inference.rows import Payload, Result, TensorPayload, TensorResult
from serving.spec import BatchingSpec
from tests.serving.model_bundles import people, person
from tests.serving.server_runs import ThreadedServer, threaded


class Doubler:
    """A model that doubles; it takes `seconds` a batch and raises when a row is negative."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[float]] = []

    def infer(self, payloads: Sequence[Payload]) -> list[Result]:
        columns = [payload.columns[0] for payload in payloads if isinstance(payload, TensorPayload)]
        rows = [float(value) for column in columns for value in column]
        self.batches.append(rows)
        time.sleep(self.seconds)
        if min(rows) < 0:
            raise RuntimeError("negative")
        return [TensorResult(len(column), [np.array(column) * 2.0]) for column in columns]


class Silent:
    def batch(self, rows: int, seconds: float | None, waits: list[float]) -> None: ...


def rows(*values: float) -> TensorPayload:
    return TensorPayload(len(values), [list(values)], 8 * len(values))


def answers(result: Result) -> list[float]:
    assert isinstance(result, TensorResult)
    return [float(value) for value in result.columns[0]]


Scenario = Callable[[Batcher, Doubler], Awaitable[Any]]


def play(scenario: Scenario, *, seconds: float = 0.0, cost: BatchCost | None = None, **spec: Any) -> Any:
    async def run() -> Any:
        model = Doubler(seconds)
        options = BatchingSpec.model_validate({"mode": "thread", "max_rows": 4, **spec})
        batcher = Batcher(model, options, cost=cost or BatchCost(), observer=Silent())
        try:
            return await scenario(batcher, model)
        finally:
            batcher.close()

    return asyncio.run(run())


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def test_one_tick_is_one_batch_and_arrivals_gather_while_it_runs() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = [batcher.submit(rows(value), soon()) for value in (1, 2)]
        await asyncio.sleep(0.02)
        later = [batcher.submit(rows(value), soon()) for value in (3, 4, 5)]
        assert [answers(await future) for future in first + later] == [[2], [4], [6], [8], [10]]
        assert model.batches == [[1, 2], [3, 4, 5]]
        assert batcher.pending_rows == batcher.pending_bytes == 0

    play(scenario, seconds=0.05)


class Known(BatchCost):
    """A batch takes that long, whatever is observed."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def line(self) -> tuple[float, float]:
        return 0.0, self._seconds


def test_a_batch_gathers_while_the_turns_of_the_loop_bring_rows() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        futures = []
        for value in range(10):
            futures.append(batcher.submit(rows(value), soon()))
            await asyncio.sleep(0)
        await asyncio.gather(*futures)
        assert model.batches == [list(range(8)), [8, 9]]

    play(scenario, mode="inline", max_rows=8, cost=Known(1.0))


def test_gathering_takes_no_longer_than_a_full_batch() -> None:
    """Each turn of the loop brings a row, and takes a millisecond; a full batch takes two."""

    async def scenario(batcher: Batcher, model: Doubler) -> None:
        now = 100.0
        batcher._clock = lambda: now
        futures = []
        for value in range(20):
            futures.append(batcher.submit(rows(value), 1000.0))
            await asyncio.sleep(0)
            now += 0.001
        await asyncio.gather(*futures)
        assert max(len(batch) for batch in model.batches) <= 4
        assert [value for batch in model.batches for value in batch] == list(range(20))

    play(scenario, mode="inline", max_rows=65_536, cost=Known(0.002))


def test_a_batch_waits_for_rows_that_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "_LONGEST_GATHERING", 60.0)

    async def scenario(batcher: Batcher, model: Doubler) -> None:
        batcher.announce(2)
        first = batcher.submit(rows(1), soon(60))
        await asyncio.sleep(0.05)
        assert not first.done()
        second = batcher.submit(rows(2), soon(60))
        batcher.announce(-2)
        await asyncio.wait_for(asyncio.gather(first, second), 5)
        assert model.batches == [[1, 2]]

    play(scenario, mode="inline", cost=Known(10.0))


def test_announced_rows_that_do_not_come_cost_one_batch_at_most() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        batcher.announce(1)
        assert answers(await asyncio.wait_for(batcher.submit(rows(1), soon()), 5)) == [2]
        assert model.batches == [[1]]

    play(scenario, mode="inline", cost=Known(0.01))


def test_a_full_batch_waits_for_nothing_that_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "_LONGEST_GATHERING", 60.0)

    async def scenario(batcher: Batcher, model: Doubler) -> None:
        batcher.announce(1)
        first = batcher.submit(rows(1), soon(60))
        await asyncio.sleep(0.05)
        assert not first.done()
        second = batcher.submit(rows(2, 3, 4), soon(60))
        await asyncio.wait_for(asyncio.gather(first, second), 5)
        assert model.batches == [[1, 2, 3, 4]]

    play(scenario, mode="inline", cost=Known(10.0))


def test_gathering_lets_no_deadline_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "_LONGEST_GATHERING", 60.0)

    async def scenario(batcher: Batcher, model: Doubler) -> None:
        batcher.announce(1)
        assert answers(await batcher.submit(rows(1), soon(0.9))) == [2]
        assert model.batches == [[1]]

    play(scenario, mode="inline", cost=Known(1.0))


@pytest.mark.parametrize("mode", ["inline", "thread"])
@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 11), min_size=1, max_size=12), poison=st.integers(0, 40))
def test_every_row_comes_back_whatever_the_sizes(mode: str, sizes: list[int], poison: int) -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        expected, futures, number = [], [], 0
        for size in sizes:
            values = [float(-1 if number + i == poison else number + i) for i in range(size)]
            number += size
            expected.append(values)
            futures.append(batcher.submit(rows(*values), soon()))
        results = await asyncio.gather(*futures, return_exceptions=True)
        for values, result in zip(expected, results, strict=True):
            if -1 in values:
                assert isinstance(result, ModelFault)
            else:
                assert not isinstance(result, BaseException)
                assert answers(result) == [value * 2 for value in values]
        assert max(len(batch) for batch in model.batches) <= 4
        await asyncio.sleep(0)
        assert batcher.pending_rows == batcher.pending_bytes == 0

    play(scenario, mode=mode)


def test_rows_and_bytes_are_bounded() -> None:
    async def scenario(batcher: Batcher, _: Doubler) -> None:
        held = [batcher.submit(rows(1, 2, 3, 4), soon()) for _ in range(2)]
        with pytest.raises(Unavailable) as full:
            batcher.submit(rows(1), soon())
        assert (full.value.reason, full.value.retry_after) == ("full", 1)
        await asyncio.gather(*held)
        assert answers(await batcher.submit(rows(1), soon())) == [2]

    play(scenario, seconds=0.02, max_pending_rows=8)
    play(scenario, seconds=0.02, max_pending_bytes=64)


def test_a_batch_is_bounded_in_bytes() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        await asyncio.gather(*[batcher.submit(rows(value), soon()) for value in range(6)])
        assert [len(batch) for batch in model.batches] == [2, 2, 2]

    play(scenario, max_bytes=16)


def test_what_cannot_make_its_deadline_is_refused_at_once() -> None:
    cost = BatchCost()
    for count in (1, 2, 4):
        cost.observe(count, 1.0)

    async def scenario(batcher: Batcher, _: Doubler) -> None:
        futures = [batcher.submit(rows(1, 2, 3, 4), soon()) for _ in range(3)]
        with pytest.raises(Unavailable) as hopeless:
            batcher.submit(rows(1), soon(2.0))
        assert hopeless.value.reason == "hopeless"
        assert hopeless.value.retry_after == 3
        assert answers(await batcher.submit(rows(1), soon(10.0))) == [2]
        await asyncio.gather(*futures)

    play(scenario, cost=cost)


def test_an_idle_model_is_always_tried() -> None:
    """A wrong estimate must not lock everybody out for ever."""
    cost = BatchCost()
    cost.observe(1, 1000.0)

    async def scenario(batcher: Batcher, _: Doubler) -> None:
        assert answers(await batcher.submit(rows(1), soon(1.0))) == [2]

    play(scenario, cost=cost)


def test_the_expired_never_reach_the_model() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = batcher.submit(rows(1), soon())
        await asyncio.sleep(0.01)
        late = batcher.submit(rows(2), soon(0.05))
        with pytest.raises(Expired):
            await late
        assert not first.done()
        await first
        await asyncio.sleep(0.05)
        assert model.batches == [[1]]
        assert batcher.pending_rows == 0

    play(scenario, seconds=0.3)


def test_a_deadline_passes_while_the_model_runs() -> None:
    async def scenario(batcher: Batcher, _: Doubler) -> None:
        with pytest.raises(Expired):
            await batcher.submit(rows(1), soon(0.05))
        assert batcher.running_seconds() > 0, "the model is still at it"

    play(scenario, seconds=0.5)


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_nobody_is_watched_after_the_answer(mode: str) -> None:
    async def scenario(batcher: Batcher, _: Doubler) -> None:
        outcomes: list[Result | Problem] = []
        never = asyncio.Event()

        async def gone() -> None:
            await never.wait()

        for value in range(40):
            batcher.submit_then(rows(value), soon(), gone, outcomes.append)
        watched = 0
        while len(outcomes) < 40:
            await asyncio.sleep(0.001)
            watched = max(watched, len(asyncio.all_tasks()) - 1)
        assert watched > 0
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == 1
        assert [answers(outcome) for outcome in outcomes if not isinstance(outcome, Problem)] == [
            [2.0 * value] for value in range(40)
        ]
        assert (batcher.pending_rows, batcher.pending_bytes) == (0, 0)

    play(scenario, seconds=0.011, mode=mode)


def test_an_answer_that_cannot_be_given_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        def broken(_: Result | Problem) -> None:
            raise RuntimeError("the connection is in an odd state")

        batcher.submit_then(rows(1), soon(), None, broken)
        assert answers(await batcher.submit(rows(2), soon())) == [4]
        assert model.batches == [[1, 2]]
        assert batcher.pending_rows == 0

    play(scenario)
    assert "its request may have no answer" in caplog.text


def test_clients_that_leave_and_tasks_that_are_cancelled_free_the_queue() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        first = batcher.submit(rows(1), soon())
        await asyncio.sleep(0.01)
        left = asyncio.Event()

        async def gone() -> None:
            await left.wait()

        leaver = batcher.submit(rows(2), soon(), gone)
        cancelled = batcher.submit(rows(3), soon())
        stayer = batcher.submit(rows(4), soon())
        await asyncio.sleep(0.05)
        left.set()
        cancelled.cancel()
        with pytest.raises(ClientGone):
            await leaver
        assert answers(await stayer) == [8]
        await first
        assert model.batches == [[1], [4]]
        assert batcher.pending_rows == 0

    play(scenario, seconds=0.2)


def test_jobs_wait_for_online_rows_and_fail_row_by_row() -> None:
    async def scenario(batcher: Batcher, model: Doubler) -> None:
        job = asyncio.create_task(batcher.background(rows(10, 11, -1, 13, 14)))
        online = [batcher.submit(rows(value), soon()) for value in (1, 2, 3, 4)]
        assert [answers(await future) for future in online] == [[2], [4], [6], [8]]
        outcomes = await job
        assert [isinstance(outcome, Problem) for outcome in outcomes] == [False, False, True, False, False]
        good = [answers(outcome) for outcome in outcomes if not isinstance(outcome, Problem)]
        assert good == [[20], [22], [26], [28]]
        assert model.batches[0] == [1, 2, 3, 4]
        assert batcher.background_rows == 0

    play(scenario, seconds=0.005)


def test_jobs_are_held_back_when_two_batches_wait() -> None:
    async def scenario(batcher: Batcher, _: Doubler) -> None:
        jobs = [asyncio.create_task(batcher.background(rows(1, 2, 3, 4))) for _ in range(6)]
        await asyncio.sleep(0.02)
        assert batcher.background_rows <= 8
        jobs[-1].cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert batcher.background_rows == 0

    play(scenario, seconds=0.01)


def test_online_requests_pass_a_stream_of_job_rows() -> None:
    async def scenario(batcher: Batcher, _: Doubler) -> None:
        stop = False

        async def stream() -> None:
            while not stop:
                await batcher.background(rows(*range(100, 104)))

        jobs = [asyncio.create_task(stream()) for _ in range(4)]
        await asyncio.sleep(0.05)
        waits = []
        for _ in range(10):
            started = time.monotonic()
            await batcher.submit(rows(1), soon())
            waits.append(time.monotonic() - started)
        stop = True
        await asyncio.gather(*jobs)
        assert sorted(waits)[5] < 0.1, "at most one batch of a job stands before an online row"

    play(scenario, seconds=0.01)


def test_the_cost_of_batches_is_learned() -> None:
    cost = BatchCost()
    for _ in range(20):
        for count in (1, 8, 32):
            cost.observe(count, 0.002 * count + 0.01)
    slope, base = cost.line()
    assert slope == pytest.approx(0.002, rel=0.05)
    assert base == pytest.approx(0.01, rel=0.05)
    assert cost.seconds(16) == pytest.approx(0.042, rel=0.05)
    assert cost.rows_within(0.05) == pytest.approx(20, abs=1)
    only = BatchCost()
    only.observe(4, 0.4)
    assert only.seconds(8) == pytest.approx(0.8)
    assert BatchCost().seconds(5) == 0.0


# ---- the same over HTTP


def ask(server: ThreadedServer, name: str, **headers: str) -> httpx.Response:
    with server.client() as client:
        return client.post("/predict", json={"instances": [person(name)]}, headers=headers)


def test_deadlines_over_http(people_server: ThreadedServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(ask, people_server, "sleep 1.0")
        time.sleep(0.15)
        late = ask(people_server, "Ada", **{"x-request-timeout": "0.1"})
        assert late.status_code == 408
        assert not slow.done(), "the answer waited for the model"
        assert slow.result().status_code == 200
    for wrong in ("soon", "-1", "0", "nan", "inf"):
        assert ask(people_server, "Ada", **{"x-request-timeout": wrong}).status_code == 400


def test_overload_is_503_with_retry_after_and_never_500(tmp_path: Path) -> None:
    bundle = people(tmp_path, batching={"max_rows": 2, "max_pending_rows": 4})
    with threaded(bundle) as server, ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(lambda _: ask(server, "sleep 0.1"), range(20)))
        statuses = [response.status_code for response in responses]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 4
        refused = next(response for response in responses if response.status_code == 503)
        assert int(refused.headers["retry-after"]) >= 1
        with server.client() as client:
            metrics = client.get("/metrics").text
        assert 'modelserve_rejected_total{model="people",reason="full",version="7"}' in metrics


def test_a_client_that_hangs_up_is_not_computed(people_server: ThreadedServer) -> None:
    with ThreadPoolExecutor(1) as pool, people_server.client() as client:
        slow = pool.submit(ask, people_server, "sleep 0.5")
        time.sleep(0.1)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/predict", json={"instances": [person("sleep 3")]}, timeout=0.15)
        slow.result()
        started = time.monotonic()
        assert ask(people_server, "Ada").status_code == 200
        assert time.monotonic() - started < 2.5, "the row of the client that left was computed"
