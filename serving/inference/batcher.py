"""Zero-wait, work-conserving batching in front of one model.

There is no timer that collects a batch. A batch starts when the event loop has nothing more to bring: each of
its turns reads what has arrived, and after a few turns without another row (5 us each when the loop is idle)
the model runs. So a lone request does not wait, and a busy loop makes large batches, whose fixed cost (calls,
weights that have left the cache) is shared. While a batch runs in the model's thread, arrivals queue; when it
ends, the next one starts at once with what is there. Rows are counted, not requests. A request larger than a
batch is split and joined again.

Two lanes: `online` for requests that a client waits for, `background` for jobs. Background rows run when no
online row waits, in batches of at most 20 ms, and fill up online batches by as much.

For jobs: `await batcher.background(payload)` waits for room and returns one outcome a row (a Result of one
row or a Problem); cancel the awaiting task and rows that have not started never run. `Service.run_rows`
(service.py) is the same from and to JSON, and is what serving/jobs calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from serving.errors import ClientGone, Expired, Hopeless, Problem, Unavailable
from serving.inference.cost import BatchCost
from serving.inference.engine import Engine
from serving.inference.execution import ModelThread, Outcome, RowsFailed, run_batch
from serving.inference.reply import Reply
from serving.inference.rows import Payload, Result, joined, separated
from serving.spec import BatchingSpec

logger = logging.getLogger("serving.inference.batcher")

_QUIET_TURNS = 2
"""Of the event loop."""
_LONGEST_GATHERING = 0.01
_SWEEP_SECONDS = 0.02
_INLINE_GIVES_UP_SECONDS = 0.01
_INLINE_SLOW_BATCHES = 5
_BACKGROUND_SECONDS = 0.02


class Observer(Protocol):
    """Told about every batch; the metrics implement it."""

    def batch(self, rows: int, seconds: float | None, waits: list[float]) -> None: ...


class Entry:
    """A request in the queue: `taken` rows are in batches, `done` rows have come back."""

    watcher: asyncio.Task[None] | None = None
    taken = 0
    done = 0

    def __init__(
        self,
        payload: Payload,
        deadline: float,
        enqueued: float,
        future: asyncio.Future[Any] | Reply,
        gone: Callable[[], Awaitable[None]] | None,
        background: bool,
    ) -> None:
        self.payload = payload
        self.count = payload.count
        self.size = payload.size
        self.deadline = deadline
        self.enqueued = enqueued
        self.future = future
        self.gone = gone
        self.background = background
        self.outcomes: list[Outcome] = []


class Batcher:
    """Bounded in rows and bytes; to be used from one event loop.

    `cost` holds what warm-up has measured; `prefer_thread` says that a batch may take long.
    """

    def __init__(
        self,
        engine: Engine,
        spec: BatchingSpec,
        *,
        cost: BatchCost,
        observer: Observer,
        prefer_thread: bool = False,
    ) -> None:
        self._engine = engine
        self._spec = spec
        self._observer = observer
        self.cost = cost
        self._online: deque[Entry] = deque()
        self._background: deque[Entry] = deque()
        self._loop = asyncio.get_running_loop()
        # Not the loop's clock: uvloop's has a resolution of a millisecond and stands still within a tick.
        self._clock = time.monotonic
        self._active: list[Entry] = []
        self._scheduled = False
        self._quiet_turns = self._seen_rows = 0
        self._gather_until = 0.0
        self._due = math.inf
        self._running = False
        self._started = 0.0
        self._running_rows = 0
        self._sweeping = False
        self._room: deque[asyncio.Future[None]] = deque()
        self._inline = spec.mode == "inline" or (spec.mode == "auto" and not prefer_thread)
        self._slow = 0
        self._suspicious = False
        self._thread: ModelThread | None = None
        self.pending_rows = 0
        """Online rows that wait or run: the signal for autoscalers."""
        self.pending_bytes = 0
        self.background_rows = 0
        self._announced = 0
        self._closed = False
        self._parked: asyncio.TimerHandle | None = None

    @property
    def inline(self) -> bool:
        """Whether batches run in the event loop's own thread."""
        return self._inline

    # ---- entry

    def submit(
        self, payload: Payload, deadline: float, gone: Callable[[], Awaitable[None]] | None = None
    ) -> asyncio.Future[Result]:
        """Queue rows of a request; the future gives their Result or raises a Problem.

        `deadline` is on the clock of time.monotonic. `gone` is awaited while the request waits for long; when
        it returns, the client has left, and the rows that have not started never run. Raises Unavailable when
        the queue is full or the deadline cannot be met.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self._enter(payload, deadline, gone, future)
        return future

    def submit_then(
        self,
        payload: Payload,
        deadline: float,
        gone: Callable[[], Awaitable[None]] | None,
        then: Callable[[Result | Problem], None],
    ) -> None:
        """As `submit`, with a function that is called with the outcome."""
        self._enter(payload, deadline, gone, Reply(then))

    def _enter(
        self,
        payload: Payload,
        deadline: float,
        gone: Callable[[], Awaitable[None]] | None,
        future: asyncio.Future[Any] | Reply,
    ) -> None:
        spec = self._spec
        now = self._clock()
        if self._closed:
            raise Unavailable("the server stops", reason="draining", retry_after=1)
        if self.pending_rows:
            if (
                self.pending_rows + payload.count > spec.max_pending_rows
                or self.pending_bytes + payload.size > spec.max_pending_bytes
            ):
                raise Unavailable("the queue is full", reason="full", retry_after=self._retry_after(now))
            # Where the next batch has room, the wait is the batch's own time, as for the first request.
            if (
                self._running
                or self.pending_rows + payload.count > spec.max_rows
                or self.pending_bytes + payload.size > spec.max_bytes
            ):
                wait = self.expected_wait(payload.count, now)
                if now + wait > deadline:
                    raise Hopeless(
                        f"about {wait:.2f} s of work wait before this request; its deadline is sooner",
                        retry_after=self._retry_after(now),
                    )
        elif payload.count > spec.max_pending_rows or payload.size > spec.max_pending_bytes:
            raise Unavailable("the request is larger than the whole queue", reason="full", retry_after=1)
        entry = Entry(payload, deadline, now, future, gone, False)
        self.pending_rows += entry.count
        self.pending_bytes += entry.size
        self._online.append(entry)
        if not (self._scheduled and self._sweeping):
            self._wake()
        if deadline < self._due:
            self._due = deadline
        if self._parked is not None and self.pending_rows >= spec.max_rows:
            self._unpark()

    def announce(self, requests: int) -> None:
        """So many requests may submit rows very soon (they are being looked up): a batch that is gathering
        waits for them, though no longer than a full batch takes. Negative: so many have been looked up."""
        self._announced += requests
        if self._parked is not None and self._announced <= 0:
            self._unpark()

    async def background(self, payload: Payload) -> list[Result | Problem]:
        """Run rows when no online row waits; one outcome a row. Waits while two batches are queued."""
        room = 2 * self._spec.max_rows
        while self.background_rows and self.background_rows + payload.count > room:
            turn: asyncio.Future[None] = self._loop.create_future()
            self._room.append(turn)
            await turn
        future: asyncio.Future[Any] = self._loop.create_future()
        entry = Entry(payload, math.inf, self._clock(), future, None, True)
        self.background_rows += entry.count
        self._background.append(entry)
        self._wake()
        await future
        return _by_row(entry)

    def expected_wait(self, rows: int, now: float | None = None) -> float:
        """Seconds until that many more rows would be answered."""
        spec = self._spec
        queued = self.pending_rows - self._running_rows + rows
        slope, base = self.cost.line()
        wait = math.ceil(queued / spec.max_rows) * base + queued * slope
        if self._running:
            elapsed = (now if now is not None else self._clock()) - self._started
            wait += max(0.0, slope * self._running_rows + base - elapsed)
        return wait

    def running_seconds(self) -> float:
        """How long the current model call has been running; 0 when the model is idle."""
        return self._clock() - self._started if self._running else 0.0

    def thread_alive(self) -> bool:
        return self._thread is None or self._thread.alive()

    def close(self) -> None:
        """Fail what waits, and what still comes; the model thread ends after its current batch."""
        self._closed = True
        for entry in (*self._online, *self._background, *self._active):
            _resolve(entry, Unavailable("the server stops", reason="draining", retry_after=1))
        self._online.clear()
        self._background.clear()
        if self._thread is not None:
            self._thread.stop()

    # ---- batches

    def _wake(self) -> None:
        if not self._scheduled and not self._running:
            self._scheduled = True
            self._quiet_turns = self._seen_rows = 0
            longest = min(_LONGEST_GATHERING, self.cost.seconds(self._spec.max_rows))
            self._gather_until = self._clock() + longest
            self._due = math.inf
            self._loop.call_soon(self._gather)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _gather(self) -> None:
        """Once a turn of the loop. Start when the turns bring nothing more, when the batch is full, or when
        gathering has taken as long as a full batch would, or would let a deadline pass."""
        rows = self.pending_rows
        if rows != self._seen_rows:
            self._quiet_turns, self._seen_rows = 0, rows
        else:
            self._quiet_turns += 1
        left = min(self._gather_until, self._due - self.cost.seconds(rows)) - self._clock()
        if rows >= self._spec.max_rows or left <= 0:
            self._flush()
        elif self._quiet_turns < _QUIET_TURNS:
            self._loop.call_soon(self._gather)
        elif self._announced > 0:
            self._parked = self._loop.call_later(left, self._unpark)
        else:
            self._flush()

    def _unpark(self) -> None:
        """What was announced has come, or takes too long, or there is enough without it."""
        if self._parked is not None:
            self._parked.cancel()
            self._parked = None
        # Who has been looked up becomes rows after this.
        self._seen_rows = -1
        self._loop.call_soon(self._gather)

    def _flush(self) -> None:
        self._scheduled = False
        if self._running:
            return
        members = self._form()
        if not members:
            return
        now = self._clock()
        payloads = [
            entry.payload if stop - start == entry.count else entry.payload.part(start, stop)
            for entry, start, stop in members
        ]
        deadlines = [entry.deadline for entry, _, _ in members]
        rows = 0
        waits: list[float] = []
        for entry, start, stop in members:
            if not entry.background:
                rows += stop - start
                if start == 0:
                    waits.append(now - entry.enqueued)
        self._running_rows = rows
        if self._inline:
            self._started = now
            # In CPU time, so that a neighbour that takes the CPU does not look like a slow model; but reading
            # it costs a system call, so only after a batch that took long by the clock.
            before = time.thread_time() if self._suspicious else 0.0
            outcomes, seconds = run_batch(self._engine, payloads, deadlines, self._clock)
            if self._suspicious:
                used = time.thread_time() - before
                self._slow = self._slow + 1 if used > _INLINE_GIVES_UP_SECONDS else 0
                if self._slow > _INLINE_SLOW_BATCHES and self._spec.mode == "auto":
                    logger.info("batches run in a thread from now on", extra={"batch_cpu_seconds": used})
                    self._inline = False
            self._suspicious = seconds is None or seconds > _INLINE_GIVES_UP_SECONDS
            self._finish(members, outcomes, seconds, waits)
            return
        self._running = True
        self._started = now
        self._active = [entry for entry, _, _ in members]
        if self._thread is None:
            self._thread = ModelThread()
        loop, engine, clock = self._loop, self._engine, self._clock

        def job() -> None:
            result = run_batch(engine, payloads, deadlines, clock)
            # The loop is closed when a model outlasted the drain; nobody waits for its answer then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._finish, members, *result, waits)

        self._thread.submit(job)

    def _form(self) -> list[tuple[Entry, int, int]]:
        spec = self._spec
        members: list[tuple[Entry, int, int]] = []
        rows = self._take(self._online, spec.max_rows, spec.max_bytes, members)
        if self._background:
            spare = min(spec.max_rows - rows, self.cost.rows_within(_BACKGROUND_SECONDS))
            if spare > 0:
                self._take(self._background, spare, spec.max_bytes, members)
        return members

    def _take(
        self, lane: deque[Entry], most_rows: int, most_bytes: int, members: list[tuple[Entry, int, int]]
    ) -> int:
        rows = size = 0
        now = self._clock()
        while lane and rows < most_rows:
            entry = lane[0]
            if entry.future.done():  # cancelled, expired or failed in an earlier part
                lane.popleft()
                self._release(entry, entry.count - entry.taken)
                continue
            if now > entry.deadline:
                lane.popleft()
                _resolve(entry, Expired("the deadline passed before the model was free"))
                self._release(entry, entry.count - entry.taken)
                continue
            if entry.taken == 0 and entry.count <= most_rows - rows and entry.size <= most_bytes - size:
                # Nearly all: the whole request has room.
                lane.popleft()
                entry.taken = entry.count
                members.append((entry, 0, entry.count))
                rows += entry.count
                size += entry.size
                continue
            row_bytes = entry.size / entry.count
            fits = most_rows - rows
            if row_bytes * min(fits, entry.count - entry.taken) + size > most_bytes:
                fits = int((most_bytes - size) // row_bytes) if row_bytes else fits
                if fits < 1:
                    if rows:
                        break
                    fits = 1  # a single row above the limit still has to run
            start = entry.taken
            stop = min(entry.count, start + fits)
            entry.taken = stop
            members.append((entry, start, stop))
            rows += stop - start
            size += int(row_bytes * (stop - start))
            if stop == entry.count:
                lane.popleft()
        return rows

    def _finish(
        self,
        members: list[tuple[Entry, int, int]],
        outcomes: Sequence[Outcome],
        seconds: float | None,
        waits: list[float],
    ) -> None:
        self._running = False
        self._running_rows = 0
        self._active = []
        rows = 0
        for (entry, start, stop), outcome in zip(members, outcomes, strict=True):
            rows += stop - start
            if entry.background or start > 0 or stop < entry.count:
                entry.done += stop - start
                self._release(entry, stop - start)
                self._collect(entry, outcome)
                continue
            self.pending_rows -= entry.count
            self.pending_bytes -= entry.size
            _resolve(entry, outcome)
        if not self.pending_rows:
            self.pending_bytes = 0  # shares of split requests are rounded
        if seconds is not None:
            self.cost.observe(rows, seconds)
        self._observer.batch(rows, seconds, waits)
        if (self._online or self._background) and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _collect(self, entry: Entry, outcome: Outcome) -> None:
        """A part of a split request, or rows of a job: joined when all are there."""
        entry.outcomes.append(outcome)
        if entry.future.done():
            return
        if entry.background:
            if entry.done == entry.count:
                entry.future.set_result(None)
        elif isinstance(outcome, Problem):
            _resolve(entry, outcome)
        elif entry.done == entry.count:
            entry.future.set_result(
                joined([part for part in entry.outcomes if not isinstance(part, Problem)])
            )

    def _release(self, entry: Entry, rows: int) -> None:
        if entry.background:
            self.background_rows -= rows
            while self._room and self.background_rows < 2 * self._spec.max_rows:
                turn = self._room.popleft()
                if not turn.done():
                    turn.set_result(None)
            return
        self.pending_rows -= rows
        self.pending_bytes -= entry.size * rows // entry.count
        if not self.pending_rows:
            self.pending_bytes = 0

    # ---- deadlines and clients that leave

    def _sweep(self) -> None:
        """While something waits: expire it on time, and watch for clients that leave."""
        now = self._clock()
        kept: deque[Entry] = deque()
        late: list[Entry] = []
        for entry in self._online:
            over = entry.future.done()
            if not over and now > entry.deadline:
                late.append(entry)
                over = True
            if over and entry.taken == 0:
                self._release(entry, entry.count)
                continue
            kept.append(entry)
            unwatched = entry.gone is not None and entry.watcher is None
            if not over and unwatched and now - entry.enqueued > _SWEEP_SECONDS / 2:
                entry.watcher = self._loop.create_task(_watch(entry))
        self._online = kept
        for entry in late:
            _resolve(entry, Expired("the deadline passed before the model was free"))
        for entry in self._active:
            if now > entry.deadline:
                _resolve(entry, Expired("the deadline passed while the model was running"))
        if self._online or self._background or self._running:
            self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        else:
            self._sweeping = False

    def _retry_after(self, now: float) -> int:
        return max(1, min(60, math.ceil(self.expected_wait(0, now))))


async def _watch(entry: Entry) -> None:
    assert entry.gone is not None
    if entry.future.done():
        return
    entry.future.add_done_callback(lambda _: _stop_watching(entry))
    await entry.gone()
    if not entry.future.done():
        entry.future.set_exception(ClientGone("the client closed the connection"))


def _stop_watching(entry: Entry) -> None:
    watcher, entry.watcher = entry.watcher, None
    if watcher is not None:
        watcher.cancel()


def _resolve(entry: Entry, outcome: Outcome) -> None:
    if entry.future.done():
        return
    if isinstance(outcome, Problem):
        entry.future.set_exception(outcome)
    else:
        entry.future.set_result(outcome)


def _by_row(entry: Entry) -> list[Result | Problem]:
    rows: list[Result | Problem] = []
    for part in entry.outcomes:
        if isinstance(part, RowsFailed):
            merged: dict[int, Result | Problem] = {**part.rows, **part.results}
            rows += [merged[index] for index in range(len(merged))]
        elif isinstance(part, Problem):
            rows.append(part)
        else:
            rows += separated(part)
    return rows
