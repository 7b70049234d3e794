"""The release for real pods: the server takes it with the manifest's settings, nodes can load its image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import httpx
import pytest

from flows.adapters.images import ImageBuilder, ImageRecipe
from flows.domain.cluster.manifests import SERVER_DRAIN_SECONDS, server_environment
from tests.platform.kubernetes_world import a_spec
from tests.platform.make_release import FILES, MODEL, make, write_bundle
from tests.platform.real_kubernetes import loading_command, real_release

CONTAINERFILE = """
ARG BASE
ARG DEVICE=cpu
FROM ${BASE} AS runtime
COPY serving/ /serving/
FROM runtime AS release
ARG MODEL
ARG VERSION
ARG BUNDLE_SHA256
COPY bundle/ /bundle/
"""


def test_the_server_takes_the_bundle(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    command = [sys.executable, "-m", "serving", "check", str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rendered_settings_start_the_real_server_and_it_drains_in_time(tmp_path: Path) -> None:
    """The environment of the manifest, but for address and folder; then SIGTERM, as a kubelet would."""
    release = write_bundle(tmp_path / "bundle")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = server_environment(release, a_spec(MODEL))
    settings |= {"SERVING_BUNDLE": str(tmp_path / "bundle"), "SERVING_HOST": "127.0.0.1"}
    settings["SERVING_PORT"] = str(port)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SERVING_")}
    server = subprocess.Popen([sys.executable, "-m", "serving", "serve"], env=environment | settings)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:
            until = time.monotonic() + 120
            while not ready(http):
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < until, "the server is never ready"
                time.sleep(0.2)
            answer = http.post("/predict", json={"instances": [1.5]})
            assert answer.json() == {"predictions": [3.0]}
            assert answer.headers["x-model-version"] == "1"
            assert http.get("/healthz").status_code == 200
            assert 'model="doubling"' in http.get("/metrics").text
        server.terminate()
        assert server.wait(timeout=SERVER_DRAIN_SECONDS + 5) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(shutil.which("buildah") is None, reason="builds an image: install buildah (make setup)")
def test_the_image_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "app.py").write_text("print('serving')\n")
    containerfile, constraints = tmp_path / "Containerfile", tmp_path / "constraints.txt"
    containerfile.write_text(CONTAINERFILE)
    constraints.write_text("")
    recipe = ImageRecipe(containerfile, tmp_path / "serving", tmp_path, (), constraints, base="scratch")
    builder = ImageBuilder(tmp_path / "cache", recipe)
    trained = tmp_path / "tripling-v4"
    trained.mkdir()
    for name, text in FILES.items():
        (trained / name).write_text(text.replace(MODEL, "tripling"))
    for folder, bundle, name, version in (
        (tmp_path / "made", None, MODEL, 1),
        (tmp_path / "taken", trained, "tripling", 4),
    ):
        folder.mkdir()
        path = make(builder, folder, bundle=bundle)
        image = f"localhost/modelserve/{name}:{name}-v{version}"
        with tarfile.open(folder / "image.tar") as archive:
            manifest = archive.extractfile("manifest.json")
            assert manifest is not None
            assert json.load(manifest)[0]["RepoTags"] == [image]
        monkeypatch.setenv("MODELSERVE_TEST_RELEASE", str(path))
        release = real_release()
        assert release is not None
        assert (release.model, release.version, release.image) == (name, version, image)
        assert (
            release.sha256 == hashlib.sha256((folder / "bundle" / "manifest.json").read_bytes()).hexdigest()
        )


@pytest.mark.parametrize(
    ("context", "runtime", "program", "command"),
    [
        ("kind-modelserve", "containerd://2", "kind", "kind load image-archive --name modelserve"),
        ("k3d-a-b", "containerd://2", "k3d", "k3d image import --cluster a-b"),
        ("minikube", "docker://28", "minikube", "minikube image load"),
        ("default", "containerd://2", "k3s", "k3s ctr --namespace k8s.io images import"),
        ("admin", "containerd://2", "ctr", "ctr --namespace k8s.io images import"),
        ("admin", "cri-o://1", "podman", "podman load --quiet --input"),
        ("kind-modelserve", "containerd://2", "podman", None),
        ("admin", "docker://28", "podman", None),
    ],
)
def test_who_puts_an_image_onto_the_nodes(
    context: str, runtime: str, program: str, command: str | None
) -> None:
    node = {"metadata": {"name": "here"}, "status": {"nodeInfo": {"containerRuntimeVersion": runtime}}}
    found = loading_command(context, [node], "here", lambda name: name if name == program else None)
    assert found == (command.split() if command else None)


def test_nobody_puts_an_image_onto_nodes_elsewhere() -> None:
    node = {"metadata": {"name": "ip-10-0-0-1"}, "status": {}}
    assert loading_command("eks", [node], "here", lambda name: name) is None
    assert loading_command("eks", [], "here", lambda name: name) is None
