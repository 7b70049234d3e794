"""Runs a batch so that a poisoned row fails alone, inline or in the one thread that owns the model."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from serving.errors import Expired, InvalidOutput, ModelFault, Problem, Unavailable
from serving.inference.engine import Engine
from serving.inference.rows import Payload, Result, joined

logger = logging.getLogger("serving.inference.model")

Outcome = Result | Problem


class RowsFailed(ModelFault):
    """Some rows of one request failed. `rows` maps the row's index to what was wrong with it."""

    def __init__(self, rows: dict[int, Problem], results: dict[int, Result]) -> None:
        first = min(rows)
        super().__init__(
            f"{len(rows)} of {len(rows) + len(results)} rows failed, first row {first}: {rows[first].detail}",
            pointer=f"#/instances/{first}",
            reason=rows[first].reason,
        )
        self.rows = rows
        self.results = results


def run_batch(
    engine: Engine, payloads: Sequence[Payload], deadlines: Sequence[float], clock: Callable[[], float]
) -> tuple[Sequence[Outcome], float | None]:
    """One outcome for each payload, and the seconds of the model call when the whole batch succeeded.

    When the batch fails, every member is run once by itself, and the rows of a failing member one by one, so
    that only the rows at fault fail. Members whose deadline passes meanwhile are not run.
    """
    started = time.perf_counter()
    try:
        results = engine.infer(payloads)
        return results, time.perf_counter() - started
    except BaseException as error:  # also what ends a thread: a handler that calls sys.exit() ends no server
        if len(payloads) == 1 and payloads[0].count == 1:
            return [_fault(error)], None
    outcomes = [
        _alone(engine, payload, deadline, clock, retry=len(payloads) > 1)
        for payload, deadline in zip(payloads, deadlines, strict=True)
    ]
    return outcomes, None


def _alone(
    engine: Engine, payload: Payload, deadline: float, clock: Callable[[], float], *, retry: bool
) -> Outcome:
    if retry:
        if clock() > deadline:
            return Expired("the deadline passed while the batch was run again")
        try:
            return engine.infer([payload])[0]
        except BaseException as error:
            if payload.count == 1:
                return _fault(error)
    results: dict[int, Result] = {}
    faults: dict[int, Problem] = {}
    for row in range(payload.count):
        if clock() > deadline:
            return Expired("the deadline passed while the rows were run one by one")
        try:
            results[row] = engine.infer([payload.part(row, row + 1)])[0]
        except BaseException as error:
            faults[row] = _fault(error)
    if faults:
        return RowsFailed(faults, results)
    # Each row is fine alone and the batch is not: the model's own fault with batches, e.g. out of memory.
    return joined([results[row] for row in range(payload.count)])


def _fault(error: BaseException) -> Problem:
    if isinstance(error, InvalidOutput):
        logger.error("invalid output: %s", error.detail)
        return InvalidOutput(error.detail)
    if isinstance(error, Problem):
        return error
    if isinstance(error, MemoryError):
        return Unavailable("the model ran out of memory on this input", reason="memory", retry_after=1)
    logger.error("the model raised %s", type(error).__name__, exc_info=error)
    # The message of an exception may quote inputs or paths: it stays in the log.
    return ModelFault(f"the model raised {type(error).__name__}")


class ModelThread:
    """The one thread that calls the model when a call is too long for the event loop."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any]) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        self._jobs.put(None)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
