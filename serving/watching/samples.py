"""Answered rows, into the Redis stream that the drift analysis reads.

Sampling never delays an answer: rows wait in a bounded queue that a task empties four times a second; what
does not fit is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import orjson

from serving.inference.codec import Codec
from serving.inference.rows import Payload, Result
from serving.personal import Personal
from serving.redis.link import RedisAbsent, RedisLink
from serving.redis.wire import bulk, packed
from serving.spec import SamplesSpec
from serving.telemetry import Telemetry

logger = logging.getLogger("serving.watching.samples")

_FLUSH_SECONDS = 0.25
_REDIS_SECONDS = 2.0
_MOST_QUEUED = 2000
_BURST_SECONDS = 2.0
_EXHAUSTED_SECONDS = 0.05
_APPEND = b"for i = 2, #ARGV do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'data', ARGV[i]) end"


class Sampler:
    """Takes a share of the answered rows, at most so many a second, to the stream `samples:<model>`."""

    def __init__(
        self,
        link: RedisLink,
        codec: Codec,
        personal: Personal,
        spec: SamplesSpec,
        model: str,
        version: str,
        telemetry: Telemetry,
    ) -> None:
        self._link = link
        self._codec = codec
        self._personal = personal
        self._spec = spec
        self._release = f"{model}-v{version}"
        self._stream = f"samples:{model}"
        self._telemetry = telemetry
        self._queue: deque[tuple[str, Sequence[int], float, Payload, Result]] = deque()
        self._rows = 0
        self._allowance = spec.per_second * _BURST_SECONDS
        self._refilled = time.monotonic()
        self._exhausted = False
        self._task: asyncio.Task[None] | None = None

    def offer(
        self, request_id: str, payload: Payload, result: Result, rows: Sequence[int] | None = None
    ) -> None:
        """Maybe queue rows of an answered request; `rows` says which they are when they are not all."""
        if self.exhausted(payload.count):
            return
        spec = self._spec
        if spec.share < 1.0 and random.random() >= spec.share:
            return
        if self._allowance < payload.count:
            self._refill()
            if self._allowance < payload.count:
                self._telemetry.dropped_samples += payload.count
                # Most rows of a busy server come here: for a moment they are not even looked at.
                self._exhausted = True
                asyncio.get_running_loop().call_later(_EXHAUSTED_SECONDS, self._look_again)
                return
        if self._rows + payload.count > _MOST_QUEUED or payload.size > spec.max_row_bytes * payload.count:
            self._telemetry.count("samples_dropped", payload.count)
            return
        self._allowance -= payload.count
        self._rows += payload.count
        numbers = range(payload.count) if rows is None else rows
        self._queue.append((request_id, numbers, time.time(), payload, result))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())

    def exhausted(self, rows: int) -> bool:
        """Whether this moment's samples are taken; then these rows are counted as dropped, as most are of a
        busy server."""
        if self._exhausted:
            self._telemetry.dropped_samples += rows
        return self._exhausted

    async def close(self) -> None:
        """Write what is queued."""
        while self._task is not None:
            await self._task

    def _look_again(self) -> None:
        self._exhausted = False

    def _refill(self) -> None:
        now = time.monotonic()
        most = self._spec.per_second * _BURST_SECONDS
        self._allowance = min(most, self._allowance + (now - self._refilled) * self._spec.per_second)
        self._refilled = now

    async def _flush(self) -> None:
        await asyncio.sleep(_FLUSH_SECONDS)
        queue, self._queue, rows, self._rows = self._queue, deque(), self._rows, 0
        self._task = None
        try:
            entries = [entry for item in queue for entry in self._entries(*item)]
            await append(self._link, self._stream, entries, self._spec.max_length)
            self._telemetry.count("samples_sent", len(entries))
        except RedisAbsent:
            self._telemetry.count("samples_dropped", rows)
        except Exception:
            logger.exception("samples could not be written")
            self._telemetry.count("samples_dropped", rows)

    def _entries(
        self, request_id: str, numbers: Sequence[int], at: float, payload: Payload, result: Result
    ) -> list[bytes]:
        return [
            orjson.dumps(
                {
                    "release": self._release,
                    "request_id": request_id,
                    "row": number,
                    "at": at,
                    "features": self._personal.features(self._codec.features(payload, row)),
                    "prediction": self._personal.prediction(self._codec.prediction(result, row)),
                },
                option=orjson.OPT_SERIALIZE_NUMPY,
                default=_plain,
            )
            for row, number in enumerate(numbers)
        ]


async def append(link: RedisLink, stream: str, entries: list[bytes], max_length: int) -> None:
    """One command and one reply for all entries. RedisAbsent."""
    arguments = (b"EVAL", _APPEND, b"1", stream.encode(), b"%d" % max_length, *entries)
    await link.command(packed([bulk(argument) for argument in arguments]), _REDIS_SECONDS)


def _plain(value: Any) -> Any:
    """numpy values that orjson does not know: object arrays and their scalars."""
    tolist = getattr(value, "tolist", None)
    if tolist is None:
        raise TypeError(f"{type(value).__name__} is not JSON")
    return tolist()
