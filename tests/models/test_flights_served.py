"""All three bundles behind the real model server: what the demo will see, before it is a demo."""

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
from serving.models.flights import data, learning
from serving.models.flights.train import LIVE_SINCE, LIVE_UNTIL, Trained

START_SECONDS = 120
ROWS = 600


@pytest.fixture(scope="module")
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


def test_every_version_passes_its_integration_samples(
    trained: dict[int, Trained], servers: dict[int, str]
) -> None:
    for version, url in servers.items():
        lines = (trained[version].bundle / "samples.jsonl").read_text().splitlines()
        assert lines
        for sample in map(json.loads, lines):
            status, answer = _post(f"{url}/predict", {"instances": sample["instances"]})
            assert status == sample.get("status", 200)
            if status == 200:
                assert answer["predictions"] == pytest.approx(sample["predictions"], abs=sample["tolerance"])


def test_only_the_sick_version_fails_real_requests(prepared: Path, servers: dict[int, str]) -> None:
    live = data.between(prepared, LIVE_SINCE, LIVE_UNTIL)
    rows = learning.inputs(live.take(list(range(0, len(live), len(live) // ROWS))))
    failed = {}
    for version, url in servers.items():
        statuses = [_post(f"{url}/predict", {"instances": [row]})[0] for row in rows]
        assert set(statuses) <= {200, 500}
        failed[version] = statuses.count(500) / len(statuses)
    assert failed[1] == failed[2] == 0
    assert 0.04 < failed[3] < 0.13


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


def _post(url: str, content: dict[str, Any]) -> tuple[int, Any]:
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
