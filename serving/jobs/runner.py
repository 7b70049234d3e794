"""Takes jobs of its release, one at a time, and runs them chunk by chunk beside online traffic."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import orjson

from serving.errors import Invalid, Problem, Unavailable
from serving.jobs.chunks import Chunks
from serving.jobs.inputs import Format, rows_of, within
from serving.jobs.table import DatabaseAway, Job, JobTable, LeaseLost
from serving.spec import ModelFile
from serving.telemetry import Telemetry

logger = logging.getLogger("serving.jobs")

RunRows = Callable[[Sequence[bytes]], Awaitable[list[bytes | Problem]]]
"""Rows as JSON values through the model; each one's prediction as JSON or its problem."""

_POLL_SECONDS = 2.0
_RENEW_SECONDS = 2.0
"""Also how soon a job stops that was cancelled through another replica."""
_STOP_SECONDS = 3.0
_LONGEST_PAUSE = 30.0
_TEND_SECONDS = 30.0
_GONE_SECONDS = 3600.0
_SLICE_ROWS = 64
_SLICES_AT_ONCE = 2


class JobRunner:
    def __init__(
        self,
        table: JobTable,
        chunks: Chunks,
        model: ModelFile,
        run_rows: RunRows,
        ready: Callable[[], bool],
        lease_seconds: float,
        telemetry: Telemetry,
    ) -> None:
        self._table = table
        self._chunks = chunks
        self._model = model
        self._run_rows = run_rows
        self._ready = ready
        self._lease = lease_seconds
        self._telemetry = telemetry
        self._ended = {"done": 0, "failed": 0, "cancelled": 0}
        self.waiting = 0
        """Jobs of the release that nobody ran when it was last looked."""
        self._wanted = asyncio.Event()
        self._job: Job | None = None
        self._work: asyncio.Task[None] | None = None
        self._loops = [asyncio.create_task(self._loop()), asyncio.create_task(self._tend())]

    def wake(self) -> None:
        """A job has been added."""
        self._wanted.set()

    def dropped(self, job: str) -> None:
        """A job was cancelled here; when it runs here, its rows stop at once."""
        if self._job is not None and self._job.id == job and self._work is not None:
            self._work.cancel()

    async def stop(self) -> None:
        """Give back the job under way, so that another replica goes on with it at once."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        with contextlib.suppress(DatabaseAway, LeaseLost, TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                if self._job is not None:
                    await self._table.release(self._job)
                await self._table.close()

    # ---- which job

    async def _loop(self) -> None:
        pause = _POLL_SECONDS
        while True:
            job = None
            try:
                job = await self._table.take() if self._ready() else None
                pause = _POLL_SECONDS
            except DatabaseAway as error:
                if pause == _POLL_SECONDS:
                    logger.warning("jobs wait for the database: %s", error)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except Exception:
                logger.exception("jobs cannot be looked for")
                pause = min(2 * pause, _LONGEST_PAUSE)
            if job is not None:
                await self._hold(job)
                continue
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause)

    async def _hold(self, job: Job) -> None:
        """Run it while its lease can be renewed."""
        self._job = job
        self._telemetry.jobs("running", 1)
        self._work = work = asyncio.create_task(self._run(job))
        try:
            while not (await asyncio.wait({work}, timeout=min(self._lease / 3, _RENEW_SECONDS)))[0]:
                try:
                    await self._table.renew(job)
                except LeaseLost:
                    work.cancel()
                except DatabaseAway:
                    pass  # a chunk cannot be finished without it either, and the lease runs out
            outcome = await self._outcome(work, job)
        finally:
            if work.done():
                self._job = self._work = None
            self._telemetry.jobs("running", 0)
        if outcome in self._ended:
            self._ended[outcome] += 1
            self._telemetry.jobs(outcome, self._ended[outcome])
        logger.info("job %s: %s", job.id, outcome, extra={"job": job.id, "fence": job.fence})

    async def _outcome(self, work: asyncio.Task[None], job: Job) -> str:
        """What came of it, in a word; a job that failed by itself is marked so."""
        try:
            await work
            return "done"
        except (asyncio.CancelledError, LeaseLost):
            if not work.done():
                raise  # it is this loop that is cancelled
            return "cancelled"
        except DatabaseAway as error:
            return f"interrupted ({error})"
        except Unavailable as problem:
            reason = problem.detail
            with contextlib.suppress(DatabaseAway, LeaseLost):
                await self._table.release(job)
            await asyncio.sleep(_POLL_SECONDS)
            return f"given back ({reason})"
        except Problem as problem:
            reason = problem.detail
        except OSError as error:
            # Artifact stores fail for a while or for good; what they say may name buckets and paths.
            logger.exception("job %s: its files cannot be reached", job.id, exc_info=error)
            reason = f"the input or the store of results cannot be reached ({type(error).__name__})"
        except Exception as error:
            logger.exception("job %s failed", job.id, exc_info=error)
            reason = "the server failed; its log has the reason under the job's id"
        with contextlib.suppress(DatabaseAway, LeaseLost):
            await self._table.fail(job, reason.replace("\0", "")[:1000])
        return "failed"

    # ---- one job

    async def _run(self, job: Job) -> None:
        rows, fence = job.rows, job.split_fence
        if rows is None:
            rows, fence = await asyncio.to_thread(self._split, job), job.fence
            await self._table.split(job, rows)
        numbers = range(-(-rows // job.chunk_rows))
        there = await self._table.chunk_fences(job.id)
        for number in numbers:
            if number in there:
                continue
            inputs = await asyncio.to_thread(self._chunks.input, job.id, fence, number)
            first = number * job.chunk_rows
            answers = await self._answers(inputs)
            failed = sum(isinstance(answer, Problem) for answer in answers)
            lines = [_line(first + index, answer) for index, answer in enumerate(answers)]
            await asyncio.to_thread(self._chunks.keep, job.id, job.fence, number, lines)
            await self._table.finish_chunk(job, number, len(lines), failed)
            there[number] = job.fence
        await asyncio.to_thread(self._chunks.finish, job.id, [there[number] for number in numbers])
        await self._table.finish(job)

    def _split(self, job: Job) -> int:
        """The rows behind the job's URI into input chunks; how many there are."""
        import fsspec

        assert job.source_uri is not None
        spec = self._model.serving.jobs
        try:
            opened = fsspec.open(job.source_uri, "rb").open()
        except (FileNotFoundError, IsADirectoryError):
            raise Invalid(f"there is no file {job.source_uri}") from None
        # fsspec's own files cannot limit the length of a line.
        with io.BufferedReader(opened) as stream:
            read = rows_of(stream, cast(Format, job.source_format), self._model)
            rows = within(read, spec.max_decoded_bytes)
            total = self._chunks.split(job.id, job.fence, rows, job.chunk_rows, spec.max_rows)
        return checked_total(total, spec.max_rows)

    async def _answers(self, inputs: list[bytes]) -> list[bytes | Problem]:
        """A few slices at once keep the model busy; more would only wait, and decoding all of a chunk in one
        go would hold up online requests."""
        size = min(_SLICE_ROWS, self._model.serving.batching.max_rows)
        gate = asyncio.Semaphore(_SLICES_AT_ONCE)

        async def run(part: list[bytes]) -> list[bytes | Problem]:
            async with gate:
                return await self._run_rows(part)

        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(run(inputs[start : start + size]))
                    for start in range(0, len(inputs), size)
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [answer for part in parts for answer in part.result()]

    # ---- housekeeping

    async def _tend(self) -> None:
        keep = self._model.serving.jobs.keep_seconds
        await asyncio.sleep(_POLL_SECONDS)  # not while the server starts
        while True:
            try:
                self.waiting = await self._table.stand_by()
                await self._table.bury(_GONE_SECONDS)
                for job in await self._table.forget(keep):
                    await asyncio.to_thread(self._chunks.remove, job)
            except DatabaseAway:
                pass  # the other loop has said so
            except Exception:
                logger.exception("old jobs cannot be tended")
            await asyncio.sleep(_TEND_SECONDS)


def checked_total(total: int | None, most: int) -> int:
    """The number of rows of a job; Invalid when there are none or too many."""
    if total is None:
        raise Invalid(f"a job may have at most {most} rows")
    if total == 0:
        raise Invalid("the input has no rows")
    return total


def _line(row: int, answer: bytes | Problem) -> bytes:
    """One line of the results."""
    if isinstance(answer, bytes):
        return b'{"row":%d,"prediction":%s}' % (row, answer)
    error: dict[str, Any] = {"status": answer.status, "title": answer.title, "detail": answer.detail}
    if answer.pointer is not None:
        error["pointer"] = answer.pointer
    return orjson.dumps({"row": row, "error": error})
