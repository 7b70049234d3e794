"""The way of a client's rows: the cache, the model, the samples, the answer, the shadow's copy.

Each step of a prediction is called by the one before, in the turn of the event loop that brings the outcome.
A task for each request would cost as much as reading its body does; the cache needs one for several rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from serving.cache.cache import RedisCache
from serving.cache.recent import RecentAnswers
from serving.errors import Problem
from serving.exchange import JSON, Answer, Call, failed
from serving.inference.batcher import Batcher
from serving.inference.codec import Codec
from serving.inference.rows import Payload, Result
from serving.receipts import HEADER as RECEIPT
from serving.receipts import Receipts, request_of
from serving.telemetry import Telemetry
from serving.watching.samples import Sampler
from serving.watching.segments import Segments
from serving.watching.shadow import Shadow

_HIT: tuple[tuple[bytes, bytes], ...] = ((b"x-cache", b"hit"), (b"x-envoy-upstream-canary", b"true"))
"""For clients, and for Envoy, which keeps a histogram of its own for answers that say so: the judge compares
known answers with known ones and computed with computed ones."""
Done = Callable[[Answer], None]


class Predictions:
    """Everything but the batcher and the codec is optional."""

    def __init__(self, batcher: Batcher, codec: Codec, telemetry: Telemetry) -> None:
        self.batcher = batcher
        self.codec = codec
        self.telemetry = telemetry
        self.recent: RecentAnswers | None = None
        self.cache: RedisCache | None = None
        self.sampler: Sampler | None = None
        self.shadow: Shadow | None = None
        self.segments: Segments | None = None
        self.receipts: Receipts | None = None

    def answer(self, call: Call, deadline: float, done: Done) -> Answer | None:
        """The answer to the body of the call, or None when `done` will be called with it. Raises a Problem
        when it cannot be taken."""
        assert call.body is not None
        if self.recent is not None:
            known = self.recent.get(call.body)
            if known is not None:
                content, rows = known
                self.telemetry.cache_hits += rows
                return self.answered(call, content, hit=True)
        payload = self.codec.decode(call.body)
        payload.counted = not call.pinned
        asked = _Asked(self, call, payload, deadline, done)
        try:
            if self.cache is None:
                asked.compute(payload, None, asked.computed)
            else:
                self.cache.answer(asked)
        except Problem as problem:
            self.ended(payload, problem.status)
            raise
        return None

    def answered(self, call: Call, content: bytes, hit: bool = False) -> Answer:
        shadow = self.shadow
        if shadow is not None and not call.pinned and shadow.chosen():
            assert call.body is not None
            seconds = time.monotonic() - call.started
            call.after = partial(shadow.offer, call.body, content, call.request_id, seconds)
        headers = _HIT if hit else ()
        if call.receipt:
            headers = (*headers, (RECEIPT, call.receipt.encode()))
        return Answer(200, content, JSON, headers)

    def acknowledge(self, call: Call, rows: int) -> None:
        """Give the answer to come an id for its outcomes. Answers that are not sampled carry none: their
        outcomes could be joined with nothing, and most answers of a busy server are such."""
        if self.receipts is not None:
            call.receipt = self.receipts.issue(call.client, rows)

    def ended(self, payload: Payload, status: int) -> None:
        """Count a request of the split whose rows could be read, answered from the cache in Redis or by the
        model."""
        if self.segments is not None and payload.counted:
            self.segments.count(payload, status)

    async def run(self, call: Call, payload: Payload, deadline: float) -> Result:
        """Rows through the model for a client that waits, without the cache and the shadow."""
        payload.counted = not call.pinned
        self.acknowledge(call, payload.count)
        try:
            result = await self.batcher.submit(payload, deadline, call.gone)
        except Problem as problem:
            self.ended(payload, problem.status)
            raise
        self.ended(payload, 200)
        if self.sampler is not None:
            self.sampler.offer(request_of(call.receipt), payload, result)
        return result

    async def close(self) -> None:
        """Write what is to be kept, and stop asking the shadow."""
        for part in (self.shadow, self.cache, self.sampler):
            if part is not None:
                await part.close()


class _Asked:
    """One request on its way."""

    __slots__ = ("_call", "_done", "_way", "deadline", "payload")

    def __init__(self, way: Predictions, call: Call, payload: Payload, deadline: float, done: Done) -> None:
        self._way = way
        self._call = call
        self._done = done
        self.payload = payload
        self.deadline = deadline

    def compute(
        self, payload: Payload, rows: Sequence[int] | None, then: Callable[[Result | Problem], None]
    ) -> None:
        """See the cache's Question; `rows` is None for all of them."""
        call, way = self._call, self._way
        sampler = way.sampler
        if sampler is None or sampler.exhausted(payload.count):
            way.batcher.submit_then(payload, self.deadline, call.gone, then)
            return

        def sampled(outcome: Result | Problem) -> None:
            if not isinstance(outcome, Problem):
                way.acknowledge(call, self.payload.count)
            then(outcome)
            if not isinstance(outcome, Problem):
                sampler.offer(request_of(call.receipt), payload, outcome, rows)

        way.batcher.submit_then(payload, self.deadline, call.gone, sampled)

    def computed(self, outcome: Result | Problem) -> None:
        """The end of the way without a cache in Redis."""
        way, call = self._way, self._call
        if isinstance(outcome, Problem):
            self.failed(outcome)
            return
        try:
            content = way.codec.encode(outcome)
            if way.recent is not None:
                self._remember(way.recent, content)
                way.telemetry.cache_misses += self.payload.count
            answer = way.answered(call, content)
        except Exception as error:
            answer = failed(call, error)
        self._end(answer)

    def found(self, fragments: list[bytes], hit: bool) -> None:
        """See the cache's Question."""
        way, call = self._way, self._call
        try:
            content = b'{"predictions":[' + b",".join(fragments) + b"]}"
            if way.recent is not None:
                self._remember(way.recent, content)
            answer = way.answered(call, content, hit)
        except Exception as error:
            answer = failed(call, error)
        self._end(answer)

    def failed(self, error: Exception) -> None:
        """See the cache's Question."""
        self._end(failed(self._call, error))

    def _end(self, answer: Answer) -> None:
        self._way.ended(self.payload, answer.status)
        self._done(answer)

    def _remember(self, recent: RecentAnswers, content: bytes) -> None:
        assert self._call.body is not None
        recent.put(self._call.body, content, self.payload.count)
