"""The real image, where its base is prepared: built, scanned, and run as the very image that was scanned."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.adapters.images import ImageBuilder, ImageRecipe
from flows.adapters.scanner import Scanner
from flows.domain.release import Release
from flows.domain.spec import ScanPolicy

ROOT = Path(__file__).parents[2]
MODEL = """
name: image-check
signature:
  inputs: [{name: x, type: number}]
  outputs: [{name: y, type: number}]
serving:
  runtime: {kind: handler}
"""
HANDLER = """
import torch

def load(folder, device):
    return torch.nn.Identity()

def predict(model, rows):
    return [{"y": float(model(torch.tensor(row["x"]))) * 2} for row in rows]
"""


@pytest.fixture
def prepared() -> Path:
    """The image cache that `modelserve prepare` filled."""
    state = Path(os.environ.get("MODELSERVE_STATE", ROOT / ".modelserve"))
    cache = Path(os.environ.get("MODELSERVE_IMAGES_FOLDER", state / "images"))
    if not (cache / "layout" / "index.json").is_file():
        pytest.skip(f"no prepared image under {cache}; `modelserve prepare` makes it")
    return cache


@pytest.fixture
def release(tmp_path: Path) -> Release:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.yaml").write_text(MODEL)
    (bundle / "handler.py").write_text(HANDLER)
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in bundle.iterdir()}
    manifest = json.dumps({"files": digests}).encode()
    (bundle / "manifest.json").write_bytes(manifest)
    return Release("image-check", 1, str(bundle), hashlib.sha256(manifest).hexdigest())


@pytest.fixture
def builder(prepared: Path, release: Release) -> Iterator[ImageBuilder]:
    made = ImageBuilder(prepared, ImageRecipe.of_project(ROOT))
    yield made
    made.remove(release)


def test_what_was_scanned_answers_as_nobody_on_a_read_only_disk(
    builder: ImageBuilder, release: Release, prepared: Path, tmp_path: Path
) -> None:
    reference = builder.build(release, Path(release.bundle))
    # The cache beside the images knows the lower layers already; reading them takes a minute.
    scanner = Scanner(prepared.parent / "scans", tmp_path / "reports")
    report = scanner.scan(builder.layout(release), ScanPolicy(mode="record"))
    report.enforce()
    assert report.image == reference.partition("@")[2]
    assert report.system.startswith(("debian 12", "debian 13", "ubuntu 24.04"))
    assert report.sbom is not None
    components = json.loads(Path(report.sbom).read_text())["components"]
    names = {component["name"] for component in components}
    assert {"torch", "fastapi", "libc6"} <= names
    assert names.isdisjoint({"pip", "setuptools", "gcc", "apt"})

    if shutil.which("podman") is None:
        pytest.skip("podman is not installed, so the image was built and scanned but not run")
    command, image = builder.container(release)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name = f"image-check-{os.getpid()}"
    options = ["--rm", "--name", name, "--network", "host", "--read-only", "--tmpfs", "/tmp"]
    options += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--cap-drop", "all"]
    options += ["--env", "SERVING_HOST=127.0.0.1", "--env", f"SERVING_PORT={port}"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([*command, *options, image], stdout=log, stderr=log)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/readyz", server, tmp_path / "server.log")
        answer = httpx.post(f"http://127.0.0.1:{port}/predict", json={"instances": [1.5, 2.0]})
        assert answer.json() == {"predictions": [3.0, 4.0]}
        assert answer.headers["x-model-version"] == "1"
    finally:
        subprocess.run([*command[:-1], "stop", "--time", "5", name], capture_output=True)
        server.wait(timeout=60)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the container ended: {log.read_text()}"
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready within two minutes: {log.read_text()}")
