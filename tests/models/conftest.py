"""The three versions, trained once and served once for all tests of the model.

They are in one file, so that workers which share tests out by files do not each train them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.adapters.artifacts import ArtifactStore
from serving.models.flights import data
from serving.models.flights.train import RECIPES, Trained, bundle

START_SECONDS = 120


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flights-data")


@pytest.fixture(scope="session")
def prepared(data_cache: Path) -> Path:
    return data.prepared(data_cache)


@pytest.fixture(scope="session")
def trained(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trained]:
    output = tmp_path_factory.mktemp("bundles")
    return {version: bundle(version, output, data_cache) for version in RECIPES}


@pytest.fixture(scope="session")
def servers(
    trained: dict[int, Trained], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, str]]:
    folder = tmp_path_factory.mktemp("served")
    store = ArtifactStore((folder / "store").as_uri())
    with contextlib.ExitStack() as running:
        urls = {version: _start(store, one, folder, running) for version, one in trained.items()}
        for url in urls.values():
            _wait_until_ready(url)
        yield urls


def _start(store: ArtifactStore, one: Trained, folder: Path, running: contextlib.ExitStack) -> str:
    uri, sha256 = store.put_bundle(one.bundle, "flights", one.version)
    port = _free_port()
    environment = os.environ | {
        "SERVING_BUNDLE": uri,
        "SERVING_BUNDLE_SHA256": sha256,
        "SERVING_MODEL": "flights",
        "SERVING_VERSION": str(one.version),
        "SERVING_HOST": "127.0.0.1",
        "SERVING_PORT": str(port),
        "SERVING_DRAIN_SECONDS": "0",
    }
    log = running.enter_context((folder / f"v{one.version}.log").open("wb"))
    command = [sys.executable, "-m", "serving", "serve"]
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    running.callback(server.wait, 30)
    running.callback(server.terminate)
    return f"http://127.0.0.1:{port}"


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"{url} did not become ready in {START_SECONDS} s")


def post(url: str, content: dict[str, Any]) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
