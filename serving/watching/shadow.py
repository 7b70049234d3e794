"""Copies of requests to another release, whose answers are compared with ours and thrown away.

A copy is queued after the user's answer has been sent, in a queue of its own that drops when it is full.
Nothing that the shadow does (hang, refuse, answer garbage) can be seen by a user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import ssl
import time
from collections import deque
from typing import Any
from urllib.parse import SplitResult, urlsplit

import orjson

from serving.spec import ShadowSpec
from serving.telemetry import Telemetry

logger = logging.getLogger("serving.watching.shadow")

_CONNECTIONS = 16
_GATHER_SECONDS = 0.1
"""Copies leave together, each on its own connection: waking another process costs more than sending."""
_MOST_HEAD_BYTES = 65536
_MOST_ANSWER_BYTES = 64 << 20
_PAUSE_AFTER_FAILURE = 0.25
_IDLE_SECONDS = 1.0
"""That long an unused connection is kept: shorter than servers and firewalls keep theirs."""


class ShadowFailed(Exception):
    """The shadow did not answer 200 with predictions."""


class _Unanswered(EOFError):
    """The connection ended before a byte of the answer came."""


class Shadow:
    """Ask whether a request is `chosen`, and `offer` it when it was answered; the rest happens beside the
    traffic."""

    def __init__(self, url: str, share: float, spec: ShadowSpec, telemetry: Telemetry) -> None:
        self._address = urlsplit(url)
        self._share = share
        self._spec = spec
        self._telemetry = telemetry
        self._queue: deque[tuple[bytes, bytes, str, float]] = deque()
        self._gathering: asyncio.TimerHandle | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[_Connection] = []
        self._tidying: asyncio.TimerHandle | None = None
        self._closed = False
        self._allowance = spec.per_second
        self._refilled = time.monotonic()

    def chosen(self) -> bool:
        """Whether the next request is copied. One of the sampled share is dropped and counted when the shadow
        is behind or gets enough already: before anything is made for it, since that is most of them."""
        if self._share < 1.0 and random.random() >= self._share:
            return False
        now = time.monotonic()
        most = max(1.0, self._spec.per_second)
        self._allowance = min(most, self._allowance + (now - self._refilled) * self._spec.per_second)
        self._refilled = now
        if self._allowance < 1.0 or len(self._queue) >= self._spec.max_pending or self._closed:
            self._telemetry.count("shadow_dropped")
            return False
        self._allowance -= 1.0
        return True

    def offer(self, body: bytes, answer: bytes, request_id: str, seconds: float) -> None:
        """Queue the copy of a request that was chosen, now that it was answered."""
        self._queue.append((body, answer, request_id, seconds))
        if self._gathering is None and not self._closed:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._leave)

    async def close(self) -> None:
        self._closed = True
        for timer in (self._gathering, self._tidying):
            if timer is not None:
                timer.cancel()
        for worker in list(self._workers):
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for connection in self._idle:
            connection.abort()

    def _leave(self) -> None:
        """Send what has gathered. Where all connections are busy, they take it when they are done."""
        self._gathering = None
        for _ in range(min(len(self._queue), _CONNECTIONS - len(self._workers))):
            self._workers.add(asyncio.get_running_loop().create_task(self._work()))

    async def _work(self) -> None:
        try:
            while self._queue:
                await self._copy(*self._queue.popleft())
        finally:
            worker = asyncio.current_task()
            assert worker is not None
            self._workers.discard(worker)

    async def _copy(self, body: bytes, answer: bytes, request_id: str, seconds: float) -> None:
        """Send one copy and compare."""
        self._telemetry.count("shadow_sent")
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._spec.timeout_seconds):
                theirs = await self._answered(body, request_id)
            self._compare(answer, theirs, time.monotonic() - started - seconds)
        except (OSError, EOFError, ValueError, ShadowFailed) as error:
            self._telemetry.count("shadow_failed")
            logger.debug("the shadow failed: %s", error)
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)

    async def _answered(self, body: bytes, request_id: str) -> bytes:
        """The shadow's answer, over a connection that is open still: opening one takes longer than ten
        predictions. One that the shadow has closed just then says nothing about the release."""
        while self._idle:
            with contextlib.suppress(_Unanswered):
                return await self._over(self._idle.pop(), body, request_id)
        return await self._over(await _Connection.open(self._address), body, request_id)

    async def _over(self, connection: _Connection, body: bytes, request_id: str) -> bytes:
        try:
            theirs = await connection.post(self._address.path + "/predict", body, request_id)
        except BaseException:
            connection.abort()
            raise
        self._idle.append(connection)
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._tidy)
        return theirs

    def _tidy(self) -> None:
        """Close what was not used for a while."""
        self._tidying = None
        oldest = time.monotonic() - _IDLE_SECONDS
        for connection in self._idle:
            if connection.answered < oldest:
                connection.abort()
        self._idle = [connection for connection in self._idle if connection.answered >= oldest]
        if self._idle:
            self._tidying = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._tidy)

    def _compare(self, ours: bytes, theirs: bytes, latency_difference: float) -> None:
        mine = orjson.loads(ours)["predictions"]
        answer = orjson.loads(theirs)
        other = answer.get("predictions") if isinstance(answer, dict) else None
        if not isinstance(other, list) or len(other) != len(mine):
            raise ShadowFailed("not one prediction a row")
        largest: float | None = None
        for left, right in zip(mine, other, strict=True):
            agrees, difference = compare(left, right, self._spec)
            self._telemetry.count("shadow_compared")
            if not agrees:
                self._telemetry.count("shadow_disagreed")
            if difference is not None:
                largest = difference if largest is None else max(largest, difference)
        self._telemetry.shadow_compared(largest, latency_difference)


def compare(ours: Any, theirs: Any, spec: ShadowSpec) -> tuple[bool, float | None]:
    """Whether two predictions agree by the model's own comparison, and their largest numeric difference."""
    if _is_number(ours) and _is_number(theirs):
        tolerance = spec.absolute_tolerance + spec.relative_tolerance * abs(ours)
        difference = abs(ours - theirs)
        return difference <= tolerance, difference
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return False, None
        return _all([compare(ours[name], theirs[name], spec) for name in ours])
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return False, None
        agrees, difference = _all([compare(a, b, spec) for a, b in zip(ours, theirs, strict=True)])
        if spec.classes and ours and all(_is_number(value) for value in (*ours, *theirs)):
            agrees = ours.index(max(ours)) == theirs.index(max(theirs))
        return agrees, difference
    return type(ours) is type(theirs) and ours == theirs, None


def _all(pairs: list[tuple[bool, float | None]]) -> tuple[bool, float | None]:
    differences = [difference for _, difference in pairs if difference is not None]
    return all(agrees for agrees, _ in pairs), max(differences, default=None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Connection(asyncio.Protocol):
    """As much of an HTTP/1.1 client as copies need: a general one costs five times a prediction."""

    def __init__(self, host: str) -> None:
        self._host = host.encode("idna")
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._buffer = b""
        self.answered = 0.0
        """When the last answer came (time.monotonic)."""

    @classmethod
    async def open(cls, address: SplitResult) -> _Connection:
        secure = address.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(address.netloc),
            address.hostname or "",
            address.port or (443 if secure else 80),
            ssl=ssl.create_default_context() if secure else None,
        )
        return connection

    async def post(self, path: str, body: bytes, request_id: str) -> bytes:
        """The body of the answer. ShadowFailed unless it is a 200; OSError, EOFError, ValueError."""
        if self._transport is None or self._transport.is_closing():
            raise _Unanswered("the shadow closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(
            b"POST %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\nx-request-id: %s\r\n"
            b"content-length: %d\r\n\r\n%s"
            % (path.encode(), self._host, request_id.encode(), len(body), body)
        )
        return await self._answer

    def abort(self) -> None:
        """Close without waiting for the other side, which may never read what is still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio's protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._buffer:
            self._end(error or EOFError("the shadow closed the connection"))
        else:
            self._end(_Unanswered("the shadow closed the connection"))

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.abort()  # nobody has asked
            return
        self._buffer += data
        try:
            found = _answer_in(self._buffer)
        except (ValueError, ShadowFailed) as error:
            self._end(error)
            return
        if found is None:
            return
        body, last = found
        if last:
            self.abort()
        self.answered = time.monotonic()
        self._end(body)

    def _end(self, outcome: bytes | Exception) -> None:
        """Nothing large stays with an idle connection."""
        answer, self._answer, self._buffer = self._answer, None, b""
        if answer is None or answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


def _answer_in(buffer: bytes) -> tuple[bytes, bool] | None:
    """The body of the answer, and whether it is the connection's last; None while it is not whole."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > _MOST_HEAD_BYTES:
            raise ShadowFailed("no end of the head")
        return None
    lines = buffer[:end].lower().split(b"\r\n")
    length = None
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            length = int(value)
    if length is None or not 0 <= length <= _MOST_ANSWER_BYTES:
        raise ShadowFailed("no answer of a known length")
    if len(buffer) < end + 4 + length:
        return None
    status = lines[0].split(b" ")
    if len(status) < 2 or status[1] != b"200":
        raise ShadowFailed(f"answered {lines[0][:40]!r}")
    # What follows the answer belongs to no question.
    last = b"connection: close" in lines or len(buffer) > end + 4 + length
    return buffer[end + 4 : end + 4 + length], last
