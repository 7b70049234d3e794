"""Everybody who asks the model something during a replay, and tells it later what was true.

Users do not wait for each other: requests leave on schedule whether or not answers come (an open loop, so
a slow server does not slow its own measurement). Nothing is sent twice, and every request that got no good
answer is counted as failed.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import orjson

from flows.demo.traffic_rows import Row, Selection
from flows.demo.traffic_statistics import NO_ANSWER, NOBODY, Statistics
from flows.domain.errors import DependencyDown, ModelServeError

PATIENCE = 1.0
"""Seconds that the replay may lag behind its schedule; what is more is given up, not sent as a burst."""
END_SECONDS = 10.0
"""Time for answers and outcomes that are still outstanding at the end."""
LONGEST_SLEEP = 0.25
"""Seconds after which a sleeping loop looks whether it should stop."""
REPORT_SECONDS, LINE_SECONDS = 1.0, 10.0
"""Between two writings of the statistics, and between two lines of progress where there is no terminal."""


@dataclass(frozen=True)
class Replay:
    """What is replayed, and how."""

    rows: Path
    model: str
    gateway: str = "http://127.0.0.1:10000"
    rate: float = 150.0
    """Requests a second, one row each."""
    duration: float | None = None
    """Seconds; None: until the rows end or a signal comes."""
    selection: Selection = field(default_factory=Selection)
    repeat: bool = False
    """Start again when the rows end."""
    concurrency: int = 64
    """Most requests that wait for an answer at a time; as many outcomes may be under way beside them."""
    timeout: float = 10.0
    feedback: bool = True
    feedback_delay: float = 2.0
    """Seconds between an answer and the outcome of its row."""
    wait: float = 0.0
    """Seconds to wait at the start until the gateway has a release of the model."""
    statistics: Path | None = None
    log: Path | None = None
    """One JSON line a request: at, request_id, version, status, milliseconds."""
    progress: bool = True


class Users:
    """Everybody who asks the model something during one replay."""

    def __init__(self, replay: Replay, session: aiohttp.ClientSession, log: TextIO | None) -> None:
        self.statistics = Statistics(replay.model, replay.rate, time.time())
        self._replay = replay
        self._session = session
        self._log = log
        self._root = f"{replay.gateway.rstrip('/')}/models/{replay.model}"
        self._stopping = False
        self._places = asyncio.Semaphore(replay.concurrency)
        self._feedback_places = asyncio.Semaphore(replay.concurrency)
        self._busy: set[asyncio.Task[None]] = set()
        self._outcomes: deque[tuple[float, bytes]] = deque()
        """When each is due (monotonic seconds), and the body of its request."""

    def stop(self) -> None:
        self._stopping = True

    async def wait_for_a_release(self) -> None:
        """Return when the model answers at the gateway. DependencyDown after the time to wait."""
        url, deadline = f"{self._root}/v2/health/ready", time.monotonic() + self._replay.wait
        while self._replay.wait > 0 and not self._stopping:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.get(url) as answer:
                    if answer.status == 200:
                        return
            if time.monotonic() > deadline:
                raise DependencyDown(
                    f"gateway: {url} did not answer within {self._replay.wait:g} s; "
                    "start the stack (modelserve up) and promote a release"
                )
            await asyncio.sleep(LONGEST_SLEEP)

    async def send_rows(self) -> None:
        """Send rows on schedule until they end, the time is up, or somebody says stop."""
        self.statistics.started_at = time.time()
        start = time.monotonic()
        end = float("inf") if self._replay.duration is None else start + self._replay.duration
        run = f"{random.SystemRandom().getrandbits(40):010x}"
        for number, row in enumerate(self._rows()):
            due = start + number / self._replay.rate
            await self._sleep_until(min(due, end))
            if self._stopping or time.monotonic() >= end:
                return
            await self._places.acquire()
            lag = time.monotonic() - due
            if lag > PATIENCE:
                start += lag
                self.statistics.skipped_seconds += lag
            self.statistics.sent += 1
            self.statistics.last_sent_at = time.time()
            self.statistics.row_time = row.at.isoformat(timespec="minutes")
            self._begin(self._ask(row, f"{run}-{number:08d}"), self._places)

    async def send_outcomes(self) -> None:
        """Post each outcome when its time has come; ends only by being cancelled."""
        while True:
            now = time.monotonic()
            while self._outcomes and self._outcomes[0][0] <= now:
                await self._feedback_places.acquire()
                self._begin(self._tell(self._outcomes.popleft()[1]), self._feedback_places)
            await asyncio.sleep(0.05)

    async def finish(self) -> None:
        """Give outstanding answers and outcomes a little time, then count what is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                while self._busy or self._outcomes:
                    if self._outcomes:
                        self._outcomes = deque((0.0, body) for _, body in self._outcomes)
                    await asyncio.sleep(0.05)
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        self.statistics.feedback_unsent = len(self._outcomes)
        self.statistics.finished_at = time.time()

    async def report(self) -> None:
        """Write the statistics every second, and the progress where somebody sees it; ends by cancelling."""
        terminal = sys.stderr.isatty()
        next_line = time.monotonic()
        while True:
            self.write()
            if self._replay.progress and (terminal or time.monotonic() >= next_line):
                end = "\033[K\r" if terminal else "\n"
                print(self.statistics.line(), end=end, file=sys.stderr, flush=True)
                next_line += LINE_SECONDS
            await asyncio.sleep(REPORT_SECONDS)

    def write(self) -> None:
        if self._replay.statistics is not None:
            self.statistics.write(self._replay.statistics, time.time())
        if self._log is not None:
            self._log.flush()

    def _rows(self) -> Iterator[Row]:
        """The selected rows, over and over when asked to. ModelServeError when there are none."""
        nothing = True
        while True:
            for row in self._replay.selection.rows(self._replay.rows):
                nothing = False
                yield row
            if nothing:
                raise ModelServeError(f"{self._replay.rows}: no rows in this period; choose other dates")
            if not self._replay.repeat:
                return

    async def _sleep_until(self, moment: float) -> None:
        while not self._stopping and (rest := moment - time.monotonic()) > 0:
            await asyncio.sleep(min(rest, LONGEST_SLEEP))

    def _begin(self, work: Coroutine[Any, Any, None], place: asyncio.Semaphore) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._busy.discard(task)
            place.release()

        task = asyncio.get_running_loop().create_task(work)
        self._busy.add(task)
        task.add_done_callback(ended)

    async def _ask(self, row: Row, request_id: str) -> None:
        """One request of one user. Never repeated: a user does not see a retry as no failure."""
        version, status, receipt = NOBODY, NO_ANSWER, None
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        started = time.monotonic()
        self.statistics.in_flight += 1
        try:
            async with self._session.post(f"{self._root}/predict", data=row.body, headers=headers) as answer:
                version = answer.headers.get("X-Model-Version", NOBODY)
                # A gateway may have put an id of its own in place of ours.
                request_id = answer.headers.get("X-Request-Id", request_id)
                receipt = answer.headers.get("X-Feedback-Id")
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status = NO_ANSWER
            self.statistics.last_error = f"{type(error).__name__}: {error}".rstrip(": ")
        finally:
            self.statistics.in_flight -= 1
            seconds, now = time.monotonic() - started, time.time()
            self.statistics.answer(version, status, seconds, now)
            if self._log is not None:
                entry = {"at": now, "request_id": request_id, "version": version, "status": status}
                line = orjson.dumps(entry | {"milliseconds": round(seconds * 1000, 2)})
                self._log.write(line.decode() + "\n")
        if status == 200 and self._replay.feedback:
            self._remember(row, receipt)

    def _remember(self, row: Row, receipt: str | None) -> None:
        if row.outcome is None or receipt is None:
            self.statistics.without_outcome += 1
            return
        body = orjson.dumps({"request_id": receipt, "outcomes": [row.outcome]})
        self._outcomes.append((time.monotonic() + self._replay.feedback_delay, body))

    async def _tell(self, body: bytes) -> None:
        """What turned out to be true about one request."""
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(f"{self._root}/feedback", data=body, headers=headers) as answer:
                await answer.read()
                accepted = answer.status == 202
        except (aiohttp.ClientError, TimeoutError, OSError):
            accepted = False
        self.statistics.feedback_sent += 1
        self.statistics.feedback_failed += not accepted
