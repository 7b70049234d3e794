"""Servers and a Redis shared by the suite. The whole API suite runs with the fast path on and off."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.serving.model_bundles import affine, people
from tests.serving.server_runs import ThreadedServer, free_port, threaded


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis on a free port; its URL."""
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port)
    until = time.monotonic() + 10
    while True:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            assert time.monotonic() < until, "redis-server does not start"
            time.sleep(0.02)
    client.close()
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        "affine": affine(root / "affine", batching={"max_rows": 8}, limits={"max_rows": 100}),
        "people": people(root / "people", batching={"max_rows": 8}),
    }


@pytest.fixture(scope="session", params=[True, False], ids=["fast", "fastapi"])
def fast_path(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="session")
def affine_server(bundles: dict[str, Path], fast_path: bool) -> Iterator[ThreadedServer]:
    with threaded(bundles["affine"], fast_path=fast_path) as server:
        yield server


@pytest.fixture(scope="session")
def people_server(bundles: dict[str, Path], fast_path: bool) -> Iterator[ThreadedServer]:
    with threaded(bundles["people"], fast_path=fast_path) as server:
        yield server


@pytest.fixture
def affine_client(affine_server: ThreadedServer) -> Iterator[httpx.Client]:
    with affine_server.client() as client:
        yield client


@pytest.fixture
def people_client(people_server: ThreadedServer) -> Iterator[httpx.Client]:
    with people_server.client() as client:
        yield client


@pytest.fixture
def database(redis_server: str) -> Iterator[Any]:
    """The Redis of the suite, empty."""
    client = redis.Redis.from_url(redis_server)
    client.flushall()
    yield client
    client.close()
