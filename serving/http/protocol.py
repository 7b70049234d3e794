"""uvicorn's HTTP protocol with guards (late request heads, our form of the 400, bodies behind an offer to
upgrade) and three economies.

Requests that arrive whole are answered without ASGI (see whole.py). On ASGI's way an answer leaves in one
system call, not in one for its head and one for its body. And idle connections are found by a sweep, not by a
timer that is set and cancelled for each request.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, ClassVar, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.exchange import Handler
from serving.http.joining import JOIN_BYTES, HoldingFlow, JoiningTransport
from serving.http.whole import WholeRequest, WholeRequests, header_lines

_BODY = {"type": "about:blank", "title": "Malformed request", "request_id": ""}

_MALFORMED = "Invalid HTTP request received."
_OFFER = (b"upgrade", b"http2-settings")
"""What RFC 9113, 3.1, adds to the header `connection`, and names of headers themselves."""
_PROBE_SECONDS = 0.02
_HEED_SECONDS = 0.25
_HEAD_BYTES = 65536
"""Of a request's line and headers, and again of its trailers."""
_TOO_LONG = "the request's head may have at most 65536 bytes"
_TITLES = {400: "Bad Request", 431: "Request Header Fields Too Large"}
_SLICE = 4096
"""Of a client that sends requests ahead, so much is read at once: a hundred of them."""
_MOST_AHEAD = 1024
_TOO_MANY = "more than 1024 requests were sent ahead of their answers"


class GuardedProtocol(HttpToolsProtocol):
    """`_head_since` is when the server began to wait for a request head, or 0 while it does not;
    `_idle_since` the same for the next request after an answer. `_body` holds what has come of the body of a
    request that may turn out to be whole."""

    _head_since = 0.0
    _idle_since = 0.0
    _unread_since = 0.0
    """When the client's side began to be full of answers that it does not read, or 0."""
    _silent_bytes = 0
    """Read since the parser last had a whole something to tell: one endless header is told nothing of."""
    _header_bytes = 0
    _told = False
    _refusal: tuple[int, str] | None = None
    """Why the parser was stopped, where it was not the parser's own doing."""
    _half_closed = False
    _ahead = b""
    """Read, but not looked at before the requests that came earlier are answered."""
    _sends_ahead = False
    """The client does not always wait for its answers."""
    _joining: JoiningTransport
    _handler: Handler | None = None
    _offered = False
    """The head that was just read offers an upgrade."""
    _method: bytes
    _head: list[tuple[bytes, bytes]]
    _body: list[bytes]
    _defaults: ClassVar[tuple[object, bytes]] = (None, b"")
    """uvicorn's own headers (the date), which it makes anew each second, and the same as lines."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._application = cast(WholeRequests, self.config.app)
        self._transport = transport
        self._joining = JoiningTransport(transport)
        super().connection_made(cast(asyncio.Transport, self._joining))
        self._flow = self.flow = HoldingFlow(cast(asyncio.Transport, self._joining))
        self._head_since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        if self._joining.lingering:
            self._joining.swallow(data)
        elif self.pipeline or self._ahead:
            self._ahead += data
            self._flow.hold()
        elif self._sends_ahead:
            self._ahead = data
            self._read_on()
        elif len(data) > _SLICE and not self._joining.unfinished:
            # Where there is one request there may be thousands.
            self._take(data[:_SLICE], data[_SLICE:])
        else:
            self._take(data, b"")

    def _take(self, data: bytes, ahead: bytes) -> None:
        if not self._parsed(data):
            return
        if ahead and not self.pipeline:
            data, ahead = ahead, b""
            if not self._parsed(data):
                return
        if self.pipeline:
            self._sends_ahead = True
            self._ahead = ahead
            self._flow.hold()
        if self._handler is not None:
            # The rest is still on its way: ASGI's way knows how to wait for it.
            self._handler = None
            parts, self._body = self._body, []
            if not self.transport.is_closing():
                self._through_asgi()
                for part in parts:
                    super().on_body(part)

    def _read_on(self) -> None:
        """Look at what was read ahead, until requests wait again; then read more."""
        if self.transport.is_closing():
            self._ahead = b""
            return
        while self._ahead and not self.pipeline:
            data, self._ahead = self._ahead[:_SLICE], self._ahead[_SLICE:]
            if not self._parsed(data):
                self._ahead = b""
                return
        if self.pipeline:
            self._flow.hold()
            return
        self._head_since = self._head_since and time.monotonic()
        self._take(b"", b"")
        self._flow.release()

    def _parsed(self, data: bytes) -> bool:
        """False when the connection was refused."""
        try:
            self._parse(data)
            if self._told:
                self._told, self._silent_bytes = False, 0
            else:
                self._silent_bytes += len(data)
                if self._silent_bytes > _HEAD_BYTES:
                    self._refuse(431, _TOO_LONG)
        except httptools.HttpParserError:
            status, reason = self._refusal or (400, _MALFORMED)
            self.logger.warning(reason)
            if reason is _TOO_MANY:
                self._transport.abort()  # answers are due before any that could say why
            else:
                self._send_refusal(status, reason)
            return False
        return True

    def _parse(self, data: bytes) -> None:
        """Every JDK's client offers HTTP/2 on plain connections. The parser takes an offer for the end of
        the request, body or not; we take none, so it reads the head again, without it."""
        try:
            self.parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as offer:
            rest = memoryview(data)[offer.args[0] :]
        while True:
            head = self._head_without_offer()
            self._offered = False
            self.parser = httptools.HttpRequestParser(self)
            # As uvicorn's own: what follows a connection's last request is no fault of that request.
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(head)
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]

    def _head_without_offer(self) -> bytes:
        kept: list[tuple[bytes, bytes]] = []
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() not in _OFFER)
            if name not in _OFFER and (value or name != b"connection"):
                kept.append((name, value))
        version = self.parser.get_http_version().encode()
        return b"%s %s HTTP/%s\r\n%s\r\n" % (self._method, self.url, version, header_lines(kept))

    def _refuse(self, status: int, reason: str) -> None:
        """Stop reading; httptools wraps what its callbacks raise."""
        self._refusal = status, reason
        raise httptools.HttpParserError(reason)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > _HEAD_BYTES:
            self._refuse(431, _TOO_LONG)
        super().on_header(name, value)

    def on_chunk_header(self) -> None:
        self._told = True

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has sent all may still wait for its answer; or it has left, which looks the same.
        Asked with an interim answer, a system that nobody listens on resets the connection."""
        self._joining.unfinished = False
        if self._joining.lingering or self.cycle is None or self.cycle.response_complete:
            return False
        self._half_closed = True
        self.loop.call_later(_PROBE_SECONDS, self._probe)
        return True

    def _probe(self) -> None:
        cycle = self.cycle
        waits = not cycle.response_complete and not getattr(cycle, "response_started", False)
        if waits and not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            self.loop.call_later(_PROBE_SECONDS, self._heed)

    def _heed(self) -> None:
        """Whether the interim answer was turned away. Nothing is read any more, so nobody else would tell."""
        if self._transport.is_closing() or self.cycle.response_complete:
            return
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
        else:
            self.loop.call_later(_HEED_SECONDS, self._heed)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = time.monotonic()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._handler, self._body, self._ahead = None, [], b""

    def on_response_complete(self) -> None:
        self._joining.flush()
        self.server_state.total_requests += 1
        if self._flow.held:
            self._answer_next()
            return
        if self._half_closed:
            self._joining.close()
        if not self._joining.is_closing():
            self.flow.resume_reading()
            self._idle_since = time.monotonic()

    def _answer_next(self) -> None:
        """The next of the requests that were sent ahead."""
        if self.pipeline and not self._joining.is_closing():
            self._start_asgi_task(*self.pipeline.pop())
        if not self.pipeline:
            if self.cycle.response_complete:
                self._idle_since = time.monotonic()
            self.loop.call_soon(self._read_on)

    def on_message_begin(self) -> None:
        # What uvicorn does here, without the scope: that is made for requests that go through ASGI.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._header_bytes = 0
        self._told = True
        self._idle_since = 0.0
        if self._head_since == 0.0:
            self._head_since = time.monotonic()

    def on_headers_complete(self) -> None:
        self._head_since = self._idle_since = 0.0
        if self._header_bytes + len(self.url) > _HEAD_BYTES:
            self._refuse(431, _TOO_LONG)
        self._header_bytes = 0  # of the trailers, from here on
        self._told = self._joining.unfinished = True
        self._method = self.parser.get_method()
        if self.parser.should_upgrade():
            if self._method == b"CONNECT":
                raise httptools.HttpParserError("this is no proxy")
            self._offered = True
            return
        # What a chunked body's trailer names is no header of the request.
        self._head, self.headers = self.headers, []
        if (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.expect_100_continue
        ):
            self._handler = self._application.short_way(self._method, self.url)
            if self._handler is not None:
                self._body = []
                return
        self._through_asgi()

    def _through_asgi(self) -> None:
        if len(self.pipeline) >= _MOST_AHEAD:
            self._refuse(0, _TOO_MANY)
        url, expected = self.url, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expected
        self.headers += self._head
        super().on_headers_complete()
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._told = True
        if self._handler is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._joining.unfinished = False
        if self._offered:
            return
        handler = self._handler
        if handler is None:
            super().on_message_complete()
            return
        self._handler = None
        scope: dict[str, Any] = {
            "method": self._method.decode("ascii"),
            "path": self.url.decode("ascii"),
            "client": self.client,
        }
        headers = dict(self._head)
        keep_alive = self.parser.should_keep_alive()
        if keep_alive and (b"connection" in headers or b"proxy-connection" in headers):
            # Without either it is not 1.0, and asking takes its time.
            keep_alive = self.parser.get_http_version() != "1.0"
        parts, self._body = self._body, []
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        request = WholeRequest(self, scope, headers, body, keep_alive, self._default_lines())
        self.cycle = cast(Any, request)
        self._application.whole(request, handler)

    def write_answer(self, head: bytes, body: bytes, *, close: bool) -> None:
        if not self._transport.is_closing():
            if len(body) > JOIN_BYTES:
                self._transport.write(head)
                self._transport.write(body)
            else:
                self._transport.write(head + body)
            if close:
                self._transport.close()
        self.on_response_complete()

    def _default_lines(self) -> bytes:
        headers = self.server_state.default_headers
        made_of, lines = GuardedProtocol._defaults
        if made_of is not headers:
            lines = header_lines(headers)
            GuardedProtocol._defaults = headers, lines
        return lines

    def close_if_head_is_late(self, oldest: float) -> None:
        """Close when the head has been awaited since before `oldest` (time.monotonic)."""
        if 0.0 < self._head_since < oldest and not self._flow.held and not self.transport.is_closing():
            self.transport.close()

    def close_if_idle(self, oldest: float) -> None:
        """Close when the last answer was given before `oldest` (time.monotonic) and nothing came since."""
        if 0.0 < self._idle_since < oldest and not self.transport.is_closing():
            self.transport.close()

    def close_if_unread(self, oldest: float) -> None:
        """Close when the client has read none of its answers since before `oldest` (time.monotonic)."""
        if 0.0 < self._unread_since < oldest:
            self._transport.abort()

    def _send_refusal(self, status: int, reason: str) -> None:
        """There is no request that could be answered, and no id."""
        self._handler, self._body = None, []
        if self._transport.is_closing():
            return
        body = orjson.dumps({**_BODY, "status": status, "detail": reason})
        self._joining.flush()
        self._transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
            b"x-content-type-options: nosniff\r\ncontent-length: %d\r\n\r\n%s"
            % (status, _TITLES[status].encode(), len(body), body)
        )
        self._joining.unfinished = True
        self._joining.close()
