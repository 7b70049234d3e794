"""Requests that arrive whole, head and body in one piece, as nearly all predictions do.

They are answered without ASGI's messages, which cost more than a small prediction. Whatever is less simple (a
body still on its way, `Expect`, a second request before the first is answered, a client that does
not read its answers) goes through uvicorn and ASGI, with the same handlers and the same answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serving.exchange import CLOSE, Answer, Handler, Scope


class Connection(Protocol):
    """What an answer is written to."""

    loop: asyncio.AbstractEventLoop

    def write_answer(self, head: bytes, body: bytes, *, close: bool) -> None: ...


class WholeRequest:
    """Stands in the place of uvicorn's cycle while the request lasts: uvicorn looks at `response_complete`,
    clears `keep_alive` when it shuts down, and sets `disconnected` and the event when the client has left."""

    __slots__ = (
        "_connection",
        "_defaults",
        "_event",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "loop",
        "response_complete",
        "scope",
        "task",
    )

    def __init__(
        self,
        connection: Connection,
        scope: Scope,
        headers: dict[bytes, bytes],
        body: bytes,
        keep_alive: bool,
        defaults: bytes,
    ) -> None:
        self._connection: Connection | None = connection
        # Asking asyncio for the loop is a system call each time.
        self.loop = connection.loop
        self._defaults = defaults
        self._event: asyncio.Event | None = None
        self.scope = scope
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.task: asyncio.Task[None] | None = None
        """The loop itself keeps no task alive."""

    @property
    def message_event(self) -> asyncio.Event:
        if self._event is None:
            self._event = asyncio.Event()
            if self.disconnected:
                self._event.set()
        return self._event

    async def receive(self) -> dict[str, Any]:
        """As ASGI's `receive` after the body: comes back when the client has left."""
        await self.message_event.wait()
        return {"type": "http.disconnect"}

    def respond(self, answer: Answer, request_id: bytes, own: bytes, *, close: bool) -> None:
        """Write a whole answer. `own`: more header lines; `close`: it is the last."""
        headers = answer.headers
        if close or not self.keep_alive:
            headers = (*(header for header in headers if header != CLOSE), CLOSE)
        head = b"%s%scontent-type: %s\r\ncontent-length: %d\r\nx-request-id: %s\r\n%s%s\r\n" % (
            STATUS_LINE[answer.status],
            self._defaults,
            answer.content_type,
            len(answer.body),
            request_id,
            own,
            header_lines(headers) if headers else b"",
        )
        body = b"" if self.scope["method"] == "HEAD" else answer.body
        self._end(head, body, close=CLOSE in headers)

    def drop(self) -> None:
        """End the connection without an answer."""
        self._end(b"", b"", close=True)

    def _end(self, head: bytes, body: bytes, *, close: bool) -> None:
        # The connection keeps this object until its next request: nothing large and no circle may stay in it.
        connection, self._connection, self.body = self._connection, None, b""
        self.response_complete = True
        if connection is not None and not self.disconnected:
            connection.write_answer(head, body, close=close)


class WholeRequests(Protocol):
    """The application behind them; the edge is one."""

    def short_way(self, method: bytes, url: bytes) -> Handler | None:
        """The handler of a request that needs no routing; None for all others."""

    def whole(self, request: WholeRequest, handler: Handler) -> None:
        """Answer it, now or later."""


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%s: %s\r\n" % header for header in headers])
