"""uvicorn's HTTP protocol with two guards: a time limit for request heads, and our form of the 400."""

from __future__ import annotations

import asyncio
import time

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BODY = {
    "type": "about:blank",
    "title": "Malformed request",
    "status": 400,
    "request_id": "",
}


class GuardedProtocol(HttpToolsProtocol):
    """`_head_since` is when the server began to wait for a request head, or 0 while it does not."""

    _head_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = time.monotonic()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_since == 0.0:
            self._head_since = time.monotonic()

    def on_headers_complete(self) -> None:
        self._head_since = 0.0
        super().on_headers_complete()

    def close_if_head_is_late(self, oldest: float) -> None:
        """Close when the head has been awaited since before `oldest` (time.monotonic)."""
        if 0.0 < self._head_since < oldest and not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """The bytes are not HTTP, so there is no request and no id."""
        body = orjson.dumps({**_BODY, "detail": msg})
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
            b"x-content-type-options: nosniff\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()
