"""One HTTP request and its answer, between the edge and the handlers, whatever route it came by."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from serving.errors import (
    BadRequest,
    ClientDeadline,
    ClientGone,
    Expired,
    Hopeless,
    Problem,
    SlowBody,
    TooLarge,
    Unsupported,
)

logger = logging.getLogger("serving.request")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"
PROBLEM = b"application/problem+json"
_JSON_TYPES = frozenset({b"", JSON, b"application/json; charset=utf-8", b"application/json;charset=utf-8"})
VERSION_HEADER = b"x-model-version"
CLOSE = (b"connection", b"close")
"""The header of a connection's last answer."""
_SWEEP_SECONDS = 0.25


class Answer:
    """A whole answer. `headers` are those beside content-type, content-length and the edge's own."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


class Call:
    """A request as the handlers see it. `started` is on the clock of time.monotonic."""

    __slots__ = (
        "after",
        "body",
        "client",
        "headers",
        "hurried",
        "problem",
        "receipt",
        "receive",
        "request_id",
        "scope",
        "started",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        headers: dict[bytes, bytes],
        request_id: str,
        started: float,
        body: bytes | None = None,
    ) -> None:
        self.body = body
        """The whole body where it is here already; None where it must be received."""
        self.scope = scope
        self.receive = receive
        self.headers = headers
        self.request_id = request_id
        self.started = started
        self.after: Callable[[], None] | None = None
        """Run once the answer has been sent: what must never delay it."""
        self.problem: Problem | None = None
        self.receipt = ""
        """What the answer shows that it was given here, where outcomes are taken."""
        self.client = ""
        """Whose key it came with, where keys are needed."""
        self.hurried = False
        """The client has chosen a deadline that is shorter than the server's own."""

    @property
    def pinned(self) -> bool:
        """The client has named the release, by a header that nothing carries which the split sends. Whoever
        chooses his release must not move what releases are compared by."""
        return VERSION_HEADER in self.headers

    async def gone(self) -> None:
        """Return when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def deadline(self, default_seconds: float) -> float:
        """When the answer is due; the client's X-Request-Timeout (seconds) may only shorten the default."""
        wanted = self.headers.get(b"x-request-timeout")
        if wanted is None:
            return self.started + default_seconds
        try:
            seconds = float(wanted)
        except ValueError:
            seconds = math.nan
        if not seconds > 0 or math.isinf(seconds):
            raise BadRequest("X-Request-Timeout must be a number of seconds above 0")
        self.hurried = seconds < default_seconds
        return self.started + min(seconds, default_seconds)

    def ended_in(self, error: Exception) -> Problem:
        """What the client is told of it, which is also kept as the call's problem."""
        problem = error if isinstance(error, Problem) else fault(self, error)
        if self.hurried and isinstance(problem, Expired | Hopeless):
            problem = ClientDeadline(problem.detail, retry_after=problem.retry_after)
        self.problem = problem.without_traceback()
        return problem


Handler = Callable[[Call], Awaitable[Answer]]


async def answered(handler: Handler, call: Call) -> Answer:
    """The handler's answer, or the problem it ended in. Nothing but cancellation gets out."""
    try:
        return await handler(call)
    except Exception as error:
        return failed(call, error)


def failed(call: Call, error: Exception) -> Answer:
    """The answer that a call gets which ended in `error`."""
    return problem_answer(call.ended_in(error), call.request_id)


def fault(call: Call, error: BaseException) -> Problem:
    """What a client is told of an exception that nobody expected; the log is told all of it."""
    logger.exception("request failed", extra={"request_id": call.request_id}, exc_info=error)
    return Problem("the server failed; its log has the reason under this request id")


def problem_answer(problem: Problem, request_id: str) -> Answer:
    headers = problem.headers
    if problem.retry_after is not None:
        headers = (*headers, (b"retry-after", str(problem.retry_after).encode()))
    return Answer(problem.status, problem.body(request_id), PROBLEM, headers)


def reporting(handler: Handler) -> Handler:
    """The handler with problems in the form that clients of KServe and Triton read."""

    async def reported(call: Call) -> Answer:
        try:
            return await handler(call)
        except Problem as problem:
            return error_answer(call.ended_in(problem), call.request_id)

    return reported


def error_answer(problem: Problem, request_id: str) -> Answer:
    """The problem document with the member `error`, which these clients show."""
    answer = problem_answer(problem, request_id)
    content = orjson.loads(answer.body)
    content["error"] = content["detail"]
    answer.body = orjson.dumps(content)
    return answer


def refusal(path: str, problem: Problem, request_id: str) -> Answer:
    """The answer of a path that no handler has seen."""
    form = error_answer if path.startswith(("/v1", "/v2")) else problem_answer
    return form(problem, request_id)


class BodyReader:
    """Reads bodies within a size and a time. One timer for all of them: a timer each would cost more than
    reading does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._armed = False

    async def read(self, call: Call, limit: int) -> bytes:
        """The body. TooLarge by Content-Length before reading and by counting; SlowBody; ClientGone."""
        if call.body is not None:
            return fitting(call.body, limit)
        declared = call.headers.get(b"content-length")
        # The HTTP parser has checked that it is a number.
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        task = asyncio.current_task()
        assert task is not None
        self._reading[task] = call.started + self._seconds
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)
        try:
            message = await call.receive()
            if message["type"] != "http.request":
                raise ClientGone("the client closed the connection while sending")
            body: bytes = message.get("body", b"")
            if message.get("more_body", False):
                body = await self._rest(call, body, limit)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise SlowBody(f"the body did not arrive within {self._seconds:g} s", headers=(CLOSE,)) from None
        finally:
            del self._reading[task]
        return fitting(body, limit)

    async def _rest(self, call: Call, first: bytes, limit: int) -> bytes:
        parts, size = [first], len(first)
        while True:
            message = await call.receive()
            if message["type"] != "http.request":
                raise ClientGone("the client closed the connection while sending")
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _sweep(self) -> None:
        now = time.monotonic()
        for task, due in self._reading.items():
            if now > due and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._armed = bool(self._reading)
        if self._armed:
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)


def fitting(body: bytes, limit: int) -> bytes:
    """The body as it is; TooLarge."""
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> TooLarge:
    # What the client still sends is not read, so the connection cannot be used again.
    return TooLarge(f"the body may have at most {limit} bytes", headers=(CLOSE,))


def check_json_type(headers: dict[bytes, bytes]) -> None:
    """Unsupported unless the body is JSON or of no stated type."""
    stated = headers.get(b"content-type", b"")
    if stated not in _JSON_TYPES:
        media = stated.split(b";", 1)[0].strip().lower()
        if media != JSON and not (media.startswith(b"application/") and media.endswith(b"+json")):
            raise Unsupported("the body must be application/json")
