"""What is between uvicorn's protocol and the socket: fewer system calls, less read ahead, a decent end."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

JOIN_BYTES = 65536
"""Larger bodies are not worth the copy."""
_LINGER_SECONDS = 2.0
"""How long a client that was refused before it has sent all has for reading that."""
_LINGER_BYTES = 1 << 18


class HoldingFlow(FlowControl):
    """Reads nothing while requests wait that were read ahead: each of them, asking whether its client is
    still there, would have more read."""

    held = False

    def hold(self) -> None:
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        self.held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class JoiningTransport:
    """Holds an answer's head back until its body is there, and closes on nobody who is still sending.
    Everything else goes straight through."""

    __slots__ = ("_held", "_swallowed", "_transport", "is_closing", "lingering", "unfinished")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = None
        self.is_closing = transport.is_closing
        self.unfinished = False
        """A request has begun to come and is still on its way."""
        self.lingering = False
        self._swallowed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        held = self._held
        if held is not None:
            self._held = None
            if len(data) > JOIN_BYTES:
                self._transport.write(held)
            else:
                data = held + data
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._held = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head that no body follows."""
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)

    def close(self) -> None:
        """Close; later, when a request is still on its way. Its rest would be answered with a reset, which
        takes away the answer before it is read; a gateway makes a 503 of that, at the release's expense."""
        self.flush()
        if not self.unfinished or self.lingering or self._transport.is_closing():
            self._transport.close()
            return
        self.lingering = True
        self.is_closing = lambda: True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.close)

    def swallow(self, data: bytes) -> None:
        """Take what comes while lingering: enough for a client to notice, not all that it might send."""
        self._swallowed += len(data)
        if self._swallowed > _LINGER_BYTES:
            self._transport.pause_reading()
