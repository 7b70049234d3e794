"""The image build with the real builder, on images small enough to make in a second.

The recipe has the targets and arguments of `serving/Containerfile` but starts from nothing; the last test
reads the real recipe's rules from its text, and `make e2e` runs a container of the real image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.adapters.images import ImageBuilder, ImageRecipe
from flows.adapters.images.engines import _limits, find_engine
from flows.adapters.scanner import Scanner
from flows.domain.errors import ArtifactCorrupt, ImageFailed
from flows.domain.release import Release
from flows.domain.spec import ScanPolicy

ROOT = Path(__file__).parents[2]
CONTAINERFILE = """
ARG BASE
ARG DEVICE=cpu
FROM ${BASE} AS runtime
COPY wheels/requirements.txt /requirements.txt
COPY serving/ /serving/
USER 65532:65532
FROM runtime AS release
ARG MODEL
ARG VERSION
ARG BUNDLE_SHA256
COPY --chmod=0555 bundle/ /bundle/
LABEL ai.modelserve.bundle.sha256=${BUNDLE_SHA256} ai.modelserve.model=${MODEL}
"""


def bundle(folder: Path, version: int = 1, **files: bytes) -> Release:
    folder.mkdir(parents=True, exist_ok=True)
    content = files or {"model.bin": b"weights"}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    manifest = json.dumps({"files": digests}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return Release("flights", version, str(folder), hashlib.sha256(manifest).hexdigest())


def recipe(folder: Path, text: str = CONTAINERFILE) -> ImageRecipe:
    package = folder / "serving"
    (package / "models" / "flights").mkdir(parents=True)
    (package / "models" / "flights" / "train.py").write_text("secret = 1\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "app.pyc").write_text("stale")
    (package / "app.py").write_text("print('serving')\n")
    containerfile = folder / "Containerfile"
    containerfile.write_text(text)
    constraints = folder / "constraints.txt"
    constraints.write_text("")
    return ImageRecipe(containerfile, package, folder, (), constraints, base="scratch")


@pytest.fixture
def builder(tmp_path: Path) -> ImageBuilder:
    return ImageBuilder(tmp_path / "cache", recipe(tmp_path / "recipe"))


def files_of(builder: ImageBuilder, release: Release) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every file in the image, lower layers first."""
    folder, _, digest = builder.layout(release).partition("@")
    blobs = Path(folder) / "blobs"
    manifest = json.loads((blobs / digest.replace(":", "/")).read_text())
    found: dict[str, tuple[int, bytes]] = {}
    for layer in manifest["layers"]:
        with tarfile.open(blobs / layer["digest"].replace(":", "/")) as archive:
            for entry in archive.getmembers():
                file = archive.extractfile(entry)
                if file is not None:
                    found[entry.name] = (entry.mode, file.read())
    return found


def configuration(builder: ImageBuilder, release: Release) -> dict[str, object]:
    folder, _, digest = builder.layout(release).partition("@")
    blobs = Path(folder) / "blobs"
    manifest = json.loads((blobs / digest.replace(":", "/")).read_text())
    content = json.loads((blobs / manifest["config"]["digest"].replace(":", "/")).read_text())
    inner: dict[str, object] = content["config"]
    return inner


def test_an_image_holds_the_bundle_and_says_which(builder: ImageBuilder, tmp_path: Path) -> None:
    release = bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("not in the manifest")
    (tmp_path / "bundle" / "model.bin").chmod(0o600)

    reference = builder.build(release, tmp_path / "bundle")

    name, _, digest = reference.partition("@")
    assert name == "localhost/modelserve/flights"
    assert builder.layout(release).endswith(f"@{digest}")
    assert digest.startswith("sha256:")
    found = files_of(builder, release)
    assert sorted(found) == [
        "bundle/manifest.json",
        "bundle/model.bin",
        "requirements.txt",
        "serving/app.py",
    ]
    mode, content = found["bundle/model.bin"]
    assert content == b"weights"
    assert mode & 0o444 == 0o444, "the server's user could not read the model"
    inner = configuration(builder, release)
    assert inner["User"] == "65532:65532"
    labels = inner["Labels"]
    assert isinstance(labels, dict)
    assert labels["ai.modelserve.bundle.sha256"] == release.sha256


def test_the_digest_is_that_of_the_stored_image(builder: ImageBuilder, tmp_path: Path) -> None:
    """What is scanned (the layout) is what runs (the storage): one manifest, one digest."""
    release = bundle(tmp_path / "bundle")
    digest = builder.build(release, tmp_path / "bundle").partition("@")[2]
    listed = subprocess.run(
        ["buildah", "images", "--json"],
        env={**os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "cache" / "storage.conf")},
        capture_output=True,
        check=True,
    )
    stored = {image["digest"] for image in json.loads(listed.stdout) if image.get("names")}
    assert digest in stored


def test_the_same_input_gives_the_same_digest(tmp_path: Path) -> None:
    shared = recipe(tmp_path / "recipe")
    release = bundle(tmp_path / "bundle")
    first = ImageBuilder(tmp_path / "one", shared).build(release, tmp_path / "bundle")
    os.utime(tmp_path / "bundle" / "model.bin", (1, 1))
    second = ImageBuilder(tmp_path / "two", shared).build(release, tmp_path / "bundle")
    assert first == second
    other = bundle(tmp_path / "other", files=b"other weights")
    assert ImageBuilder(tmp_path / "two", shared).build(other, tmp_path / "other") != first


def test_building_again_is_quick_and_a_changed_server_is_taken(builder: ImageBuilder, tmp_path: Path) -> None:
    release = bundle(tmp_path / "bundle")
    first = builder.build(release, tmp_path / "bundle")
    assert builder.build(release, tmp_path / "bundle") == first
    (tmp_path / "recipe" / "serving" / "app.py").write_text("print('changed')\n")
    assert builder.build(release, tmp_path / "bundle") != first
    assert files_of(builder, release)["serving/app.py"][1] == b"print('changed')\n"
    index = json.loads((tmp_path / "cache" / "layout" / "index.json").read_text())
    assert len(index["manifests"]) == 1, "replaced images pile up"


@pytest.mark.parametrize("harm", ["file", "manifest", "missing", "outside"])
def test_a_bundle_that_is_not_the_registered_one_is_refused(
    builder: ImageBuilder, tmp_path: Path, harm: str
) -> None:
    folder = tmp_path / "bundle"
    release = bundle(folder)
    if harm == "file":
        (folder / "model.bin").write_bytes(b"other weights")
    elif harm == "manifest":
        (folder / "manifest.json").write_text('{"files": {}}')
    elif harm == "missing":
        (folder / "model.bin").unlink()
    else:
        manifest = json.dumps({"files": {"../recipe/constraints.txt": hashlib.sha256(b"").hexdigest()}})
        (folder / "manifest.json").write_text(manifest)
        release = Release("flights", 1, str(folder), hashlib.sha256(manifest.encode()).hexdigest())
    with pytest.raises(ArtifactCorrupt, match="flights-v1"):
        builder.build(release, folder)
    with pytest.raises(ImageFailed, match="has no image"):
        builder.layout(release)


def test_a_removed_release_takes_its_layer_with_it_and_no_other(
    builder: ImageBuilder, tmp_path: Path
) -> None:
    kept = bundle(tmp_path / "kept", 1, model=os.urandom(1_000_000))
    builder.build(kept, tmp_path / "kept")
    before = _size(tmp_path / "cache")
    gone = bundle(tmp_path / "gone", 2, model=os.urandom(5_000_000))
    builder.build(gone, tmp_path / "gone")
    assert _size(tmp_path / "cache") > before + 9_000_000  # in the storage and in the layout

    builder.remove(gone)
    builder.remove(gone)

    assert _size(tmp_path / "cache") < before + 200_000
    with pytest.raises(ImageFailed, match="flights-v2 has no image here"):
        builder.layout(gone)
    with pytest.raises(ImageFailed, match="flights-v2 has no image here"):
        builder.container(gone)
    assert files_of(builder, kept)["bundle/manifest.json"]
    command, image = builder.container(kept)
    assert command[0] == "podman"
    assert image == "localhost/modelserve/flights:flights-v1"


def test_the_cache_can_be_removed_like_any_folder(builder: ImageBuilder, tmp_path: Path) -> None:
    release = bundle(tmp_path / "bundle")
    first = builder.build(release, tmp_path / "bundle")
    shutil.rmtree(tmp_path / "cache")  # a storage that is still mounted would be busy
    again = ImageBuilder(tmp_path / "cache", recipe(tmp_path / "again"))
    assert again.build(release, tmp_path / "bundle") == first


def test_prepare_says_what_it_does_and_leaves_a_scannable_layout(
    builder: ImageBuilder, tmp_path: Path
) -> None:
    said: list[str] = []
    layout = builder.prepare(progress=said.append)
    assert any("ready" in line for line in said)
    scanner = Scanner(tmp_path / "scans", tmp_path / "reports")
    assert "secret" in scanner.scan(layout, ScanPolicy(mode="record")).ran


def test_a_failing_step_names_itself_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    text = CONTAINERFILE.replace("COPY serving/", "COPY absent/")
    broken = ImageBuilder(tmp_path / "cache", recipe(tmp_path / "recipe", text))
    release = bundle(tmp_path / "bundle")
    with pytest.raises(
        ImageFailed, match=r"building localhost/modelserve/flights:flights-v1: .*absent"
    ) as error:
        broken.build(release, tmp_path / "bundle")
    assert "\n" not in str(error.value)
    left = subprocess.run(
        ["buildah", "containers", "--all", "--quiet"],
        env={**os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "cache" / "storage.conf")},
        capture_output=True,
        check=True,
    )
    assert left.stdout == b""
    assert not list((tmp_path / "cache").glob("context-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Eight megabytes of disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a full disk is made with mount, which needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("megabytes", [9, 6, 3], ids=["context", "layer", "layout"])
def test_a_full_disk_is_one_clear_line_and_the_next_build_works(
    small_disk: Path, tmp_path: Path, megabytes: int
) -> None:
    """The disk fills up at each of the places where the model is written."""
    builder = ImageBuilder(small_disk / "cache", recipe(tmp_path / "recipe"))
    large = bundle(tmp_path / "large", 1, model=os.urandom(megabytes * 1_000_000))
    with pytest.raises(ImageFailed, match="no space left on the disk") as error:
        builder.build(large, tmp_path / "large")
    assert "\n" not in str(error.value)
    small = bundle(tmp_path / "small", 2)
    assert "@sha256:" in builder.build(small, tmp_path / "small")


def test_without_a_builder_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageFailed, match="install buildah and skopeo"):
        find_engine(tmp_path)


def test_a_docker_client_without_an_engine_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr("shutil.which", lambda name: str(client) if name == "docker" else None)
    with pytest.raises(ImageFailed, match="no Docker engine answers"):
        find_engine(tmp_path)


@pytest.mark.parametrize(("hard", "most"), [(resource.RLIM_INFINITY, "1024"), (96_364, "1024"), (512, "512")])
def test_a_build_lowers_limits_and_raises_none(hard: int, most: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raising them, even to what this process has, is refused where Buildah has lowered them before."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (512, hard))
    assert _limits()[:2] == ["--ulimit", f"nofile={most}:{most}"]


@pytest.mark.parametrize("name", ["serving/Containerfile", "flows/Containerfile"])
def test_no_stage_that_runs_something_declares_an_argument(name: str) -> None:
    """Buildah would write the argument before the command into the history, and Trivy read none of it."""
    stages = re.split(r"^FROM ", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
    words = [set(re.findall(r"^([A-Z]+) ", stage, re.MULTILINE)) for stage in stages]
    assert any("RUN" in found for found in words)
    assert not [found for found in words if {"RUN", "ARG"} <= found]


def test_the_real_recipe_is_clean_for_hadolint() -> None:
    for name in ("serving/Containerfile", "flows/Containerfile", "infra/images/base.Containerfile"):
        done = subprocess.run(
            ["hadolint", "--config", ROOT / ".hadolint.yaml", ROOT / name], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _size(folder: Path) -> int:
    """Bytes on disk, each file counted once."""
    seen = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            seen[status.st_ino] = status.st_size
    return sum(seen.values())
