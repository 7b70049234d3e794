"""Questions to a server under test, and its counters."""

from __future__ import annotations

import time
from typing import Any

import httpx


def ask(client: httpx.Client, *rows: object, **headers: str) -> httpx.Response:
    response = client.post("/predict", json={"instances": list(rows)}, headers=headers)
    assert response.status_code == 200, response.text
    return response


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"modelserve_{name}{{"))


def eventually(check: Any, seconds: float = 5) -> Any:
    until = time.monotonic() + seconds
    while True:
        value = check()
        if value or time.monotonic() > until:
            return value
        time.sleep(0.02)
