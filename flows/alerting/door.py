"""The door of the alert receiver: a token is looked at before a body is read, and of that no more is taken
than a notification has. Whoever has no token cannot make the receiver hold a byte."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from flows.domain.errors import ModelServeError

MOST_BYTES = 1 << 20
"""Alertmanager sends a group of alerts at once: 1 MiB holds more than a thousand of them."""
OPEN = frozenset({"/healthz", "/metrics"})

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class TokenMissing(ModelServeError):
    """The receiver cannot tell Alertmanager from anybody else."""


def read_token(path: Path) -> str:
    """The bearer token that Alertmanager shows. TokenMissing when there is none: all would have it."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise TokenMissing(
            f"{path}: cannot be read ({error.strerror}); put the receiver's token there"
        ) from None
    if not token:
        raise TokenMissing(
            f"{path}: it is empty, and everybody knows the empty token; write one such as "
            "`openssl rand -hex 32` gives, and give the same to Alertmanager"
        )
    return token


class Door:
    """Wraps the receiver's application."""

    def __init__(self, application: Application, token: str) -> None:
        self._application = application
        self._token = token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._application(scope, receive, send)
            return
        headers = dict(scope["headers"])
        shown = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(shown, self._token):
            challenge = (b"www-authenticate", b"Bearer")
            await _refuse(send, 401, "show the bearer token of the alert receiver", challenge)
            return
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > MOST_BYTES:
                await _refuse(send, 413, f"a notification may have at most {MOST_BYTES} bytes")
                return
        body = b"".join(parts)
        given = False

        async def once() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._application(scope, once, send)


async def _refuse(send: Send, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"detail": detail}).encode()
    own = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})
