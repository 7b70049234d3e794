"""Each kind of model, registered, then served as a process and from its image: the model's own answers.

The image is built by the real builder and started without a network, where `modelserve prepare` has been run.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from flows.adapters.packages import LOCK
from flows.adapters.registry import Registry
from flows.settings import Settings
from flows.steps.registration import register_release
from flows.wiring import control_plane, image_builder, release_interpreter
from tests.integration.served_models import MODELS, write_model

ROOT = Path(__file__).parents[2]
INSIDE = """
import json, sys, urllib.request
body = json.dumps({"instances": json.loads(sys.stdin.read())}).encode()
request = urllib.request.Request("http://127.0.0.1:8080/predict", body, {"content-type": "application/json"})
print(urllib.request.urlopen(request).read().decode())
"""


@pytest.fixture
def settings(registry: Registry, database_url: str, tmp_path: Path) -> Settings:
    registry.migrate()
    images = Settings().image_storage
    return Settings(state=tmp_path / "state", registry_url=database_url, images_folder=images)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_as_itself_wherever_it_runs(name: str, settings: Settings, tmp_path: Path) -> None:
    rows, answers = write_model(name, tmp_path / "model")
    lines: list[str] = []
    plane = control_plane(settings)
    release = register_release(plane, tmp_path / "model", say=lines.append)
    print("\n".join(lines))

    with _process(settings, release_interpreter(settings)(release), release.bundle, tmp_path) as url:
        answer = httpx.post(f"{url}/predict", json={"instances": rows}, timeout=30).json()
    _same(answer, answers)

    builder = image_builder(settings)
    if not (settings.image_storage / "layout" / "index.json").is_file() or shutil.which("podman") is None:
        pytest.skip("served as a process; no image is prepared here, or podman is not installed")
    bundle = plane.artifacts.fetch(release.bundle, release.sha256, tmp_path / "fetched" / "bundle")
    assert (bundle / LOCK).is_file()
    began = time.monotonic()
    builder.build(release, bundle)
    print(f"image built in {time.monotonic() - began:.1f} s")
    try:
        command, image = builder.container(release)
        _same(_contained(command, image, rows), answers)
    finally:
        builder.remove(release)


def _same(answer: dict[str, object], answers: list[float]) -> None:
    assert "predictions" in answer, answer
    found = answer["predictions"]
    assert isinstance(found, list)
    plain = [row["probability"] if isinstance(row, dict) else row for row in found]
    np.testing.assert_allclose(plain, answers, rtol=1e-5)


@contextmanager
def _process(settings: Settings, python: str, bundle: str, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"SERVING_BUNDLE": bundle, "SERVING_HOST": "127.0.0.1", "SERVING_PORT": str(port)}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    assert str(settings.state) in python, "an environment of its own"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [python, "-m", "serving", "serve"], stdout=log, stderr=log, cwd=ROOT, env=environment
        )
    try:
        deadline = time.monotonic() + 120
        while not _ready(f"http://127.0.0.1:{port}/readyz"):
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _contained(command: list[str], image: str, rows: list[object]) -> dict[str, object]:
    """Ask the server from inside of its container, which has no network but its own loopback."""
    import json

    name = f"models-{os.getpid()}"
    options = ["--rm", "--detach", "--name", name, "--network", "none", "--read-only", "--tmpfs", "/tmp"]
    options += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--cap-drop", "all"]
    subprocess.run([*command, *options, image], check=True, capture_output=True, timeout=120)
    podman = command[:-1]
    try:
        deadline = time.monotonic() + 120
        while True:
            asked = subprocess.run(
                [*podman, "exec", "-i", name, "python", "-c", INSIDE],
                input=json.dumps(rows), capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            if asked.returncode == 0:
                found: dict[str, object] = json.loads(asked.stdout)
                return found
            log = subprocess.run([*podman, "logs", name], capture_output=True, text=True, check=False)
            running = subprocess.run([*podman, "container", "exists", name], check=False).returncode == 0
            assert running, asked.stderr[-1000:]
            assert time.monotonic() < deadline, (log.stdout + log.stderr + asked.stderr)[-3000:]
            time.sleep(0.5)
    finally:
        subprocess.run([*podman, "stop", "--time", "5", name], capture_output=True, check=False)
