"""Whoever has no token costs the alert receiver nothing, and whoever has one little."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from flows.alerting.door import MOST_BYTES, TokenMissing, read_token
from flows.alerting.receiver import receiver
from flows.wiring import ControlPlane

TOKEN = "a-secret"
PART = b" " * 65536


class Sender:
    """Sends one body in parts for as long as it is read, up to 400 MB."""

    def __init__(self) -> None:
        self.taken = 0
        self.status = 0

    async def receive(self) -> dict[str, Any]:
        self.taken += len(PART)
        return {"type": "http.request", "body": PART, "more_body": self.taken < 400_000_000}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.status = message.get("status", self.status)


def sent(plane: ControlPlane, path: str, authorization: bytes | None) -> Sender:
    sender = Sender()
    headers = [(b"content-type", b"application/json")]
    if authorization is not None:
        headers.append((b"authorization", authorization))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    asyncio.run(receiver(plane, TOKEN)(scope, sender.receive, sender.send))
    return sender


@pytest.mark.parametrize("header", [None, b"Bearer wrong", b"Bearer ", b"Bearer \xff"])
def test_a_body_without_the_token_is_not_read(plane: ControlPlane, header: bytes | None) -> None:
    sender = sent(plane, "/alerts", header)
    assert (sender.status, sender.taken) == (401, 0)


def test_a_body_with_the_token_is_read_up_to_a_megabyte(plane: ControlPlane) -> None:
    sender = sent(plane, "/alerts", b"Bearer a-secret")
    assert sender.status == 413
    assert sender.taken <= MOST_BYTES + len(PART)


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
def test_an_empty_token_file_keeps_the_receiver_from_starting(tmp_path: Path, content: str) -> None:
    """`Bearer ` and no header at all were the right token then."""
    file = tmp_path / "alerts-token"
    file.write_text(content)
    with pytest.raises(TokenMissing, match="openssl rand"):
        read_token(file)
    with pytest.raises(TokenMissing, match="cannot be read"):
        read_token(tmp_path / "absent")
