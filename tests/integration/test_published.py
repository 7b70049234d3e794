"""Publishing and taking: the digest that was scanned is the one in the registry, on record, and deployed."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.adapters.artifacts import ArtifactStore
from flows.adapters.images import ImageBuilder, push
from flows.adapters.published import OLDEST_SCAN, Published, publish
from flows.adapters.registry import Registry
from flows.adapters.scanner import Scanner
from flows.domain.errors import ImageFailed, ScanRefused
from flows.domain.release import Release
from flows.domain.spec import ScanPolicy
from flows.settings import Settings
from flows.wiring import control_plane
from tests.integration import oci_registry
from tests.integration.test_images import recipe
from tests.integration.test_scanner import DATABASE, TOKEN

SPEC = """
name: flights
signature:
  inputs: [{name: hour, type: integer}]
  outputs: [{name: late, type: boolean}]
scan: {mode: require}
"""
CREDENTIALS = ("AWS", "pass:word")


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[oci_registry.Registry]:
    """A container registry that asks for the credentials; skopeo is told that it speaks plain HTTP."""
    with oci_registry.serving(oci_registry.Registry(":".join(CREDENTIALS))) as served:
        settings = tmp_path / "home" / ".config" / "containers" / "registries.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text(f'[[registry]]\nlocation = "{served.address}"\ninsecure = true\n')
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        yield served


@pytest.fixture
def builder(tmp_path: Path) -> ImageBuilder:
    return ImageBuilder(tmp_path / "cache", recipe(tmp_path / "recipe"))


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    shutil.copytree(DATABASE, tmp_path / "trivy" / "db")
    return Scanner(tmp_path / "trivy", tmp_path / "reports")


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "artifacts").as_uri())


def registered(registry: Registry, artifacts: ArtifactStore, folder: Path, handler: str = "") -> Release:
    folder.mkdir()
    (folder / "handler.py").write_text(handler)
    (folder / "model.yaml").write_text(SPEC)
    uri, sha256 = artifacts.put_bundle(folder, "flights", 1)
    return registry.register(Release("flights", 1, uri, sha256), SPEC)


def test_what_was_scanned_is_what_runs(
    images: oci_registry.Registry,
    builder: ImageBuilder,
    scanner: Scanner,
    registry: Registry,
    artifacts: ArtifactStore,
    database_url: str,
    tmp_path: Path,
) -> None:
    release = registered(registry, artifacts, tmp_path / "bundle")
    repository = f"{images.address}/modelserve/releases"
    said: list[str] = []

    image = publish(registry, artifacts, builder, scanner, release, repository, CREDENTIALS, said.append)

    name, _, digest = image.partition("@")
    assert name == repository
    assert images.tags == {"flights-v1": digest}
    manifest = json.loads(images.manifests[digest])
    labels = json.loads(images.blobs[manifest["config"]["digest"]])["config"]["Labels"]
    assert labels["ai.modelserve.bundle.sha256"] == release.sha256
    assert all(layer["mediaType"].endswith("+gzip") for layer in manifest["layers"])
    assert any("scan passed" in line for line in said)

    # The control plane of a cluster, from its own settings: it has neither builder nor scanner.
    settings = Settings(
        mode="kubernetes",
        registry_url=database_url,
        image_repository=repository,
        artifacts_uri=(tmp_path / "artifacts").as_uri(),
        **dict.fromkeys(
            ("redis_url", "prometheus_url", "prefect_url", "gateway_url"), "http://nowhere.invalid"
        ),
    )
    plane = control_plane(settings)
    taken = plane.images.build(release, tmp_path, progress=said.append)
    assert taken == image
    report = plane.scanner.scan(plane.images.layout(release), ScanPolicy(mode="require"))
    assert report.image == digest, "the scan on record is of another image"
    assert report.decision.passed

    # Again: scanned again, not pushed again.
    again = publish(registry, artifacts, builder, scanner, release, repository, CREDENTIALS, said.append)
    assert again == image
    assert images.pushes == 1
    assert [event.kind for event in registry.events("flights")].count("published") == 2


def test_a_refused_image_is_never_pushed(
    images: oci_registry.Registry,
    builder: ImageBuilder,
    scanner: Scanner,
    registry: Registry,
    artifacts: ArtifactStore,
    tmp_path: Path,
) -> None:
    release = registered(registry, artifacts, tmp_path / "bundle", f'token = "{TOKEN}"\n')
    repository = f"{images.address}/modelserve/releases"
    with pytest.raises(ScanRefused, match="1 secret"):
        publish(registry, artifacts, builder, scanner, release, repository, CREDENTIALS, print)
    assert images.tags == {}
    with pytest.raises(ImageFailed, match=r"flights-v1 has no published image in .*; run the workflow cd"):
        Published(registry, repository).build(release, tmp_path, progress=print)


def test_a_tag_with_other_content_is_left_alone(
    images: oci_registry.Registry,
    builder: ImageBuilder,
    registry: Registry,
    artifacts: ArtifactStore,
    tmp_path: Path,
) -> None:
    release = registered(registry, artifacts, tmp_path / "bundle")
    repository = f"{images.address}/modelserve/releases"
    builder.build(release, artifacts.fetch(release.bundle, release.sha256, tmp_path / "fetched"))
    first = push(builder.export(release, tmp_path / "first"), release.name, repository, CREDENTIALS)
    # The same release on a newer base is another image.
    (tmp_path / "recipe" / "serving" / "app.py").write_text("print('mended')\n")
    builder.build(release, tmp_path / "fetched")
    second = push(builder.export(release, tmp_path / "second"), release.name, repository, CREDENTIALS)
    assert first != second
    old, new = first.partition("@")[2], second.partition("@")[2]
    assert images.tags == {"flights-v1": old, f"flights-v1-{new[7:19]}": new}


def test_the_image_that_was_prepared_is_published_as_it_was_scanned(
    images: oci_registry.Registry, builder: ImageBuilder, scanner: Scanner, tmp_path: Path
) -> None:
    """What .github/tools/publish_flows.py does with the control plane's image."""
    builder.prepare()
    layout = builder.export_prepared(tmp_path / "out")
    report = scanner.scan(layout, ScanPolicy(mode="require"))
    report.enforce()
    image = push(layout, "commit", f"{images.address}/modelserve/flows", CREDENTIALS)
    assert image == f"{images.address}/modelserve/flows@{report.image}"
    assert images.tags == {"commit": report.image}


def test_wrong_credentials_are_one_line(
    images: oci_registry.Registry,
    builder: ImageBuilder,
    registry: Registry,
    artifacts: ArtifactStore,
    tmp_path: Path,
) -> None:
    release = registered(registry, artifacts, tmp_path / "bundle")
    builder.build(release, artifacts.fetch(release.bundle, release.sha256, tmp_path / "fetched"))
    layout = builder.export(release, tmp_path / "out")
    with pytest.raises(ImageFailed, match=r"pushing flights-v1 to .*: skopeo says: ") as refused:
        push(layout, release.name, f"{images.address}/releases", ("AWS", "expired"))
    assert "\n" not in str(refused.value)
    assert "expired" not in str(refused.value)


def record(registry: Registry, release: Release, image: str, at: datetime) -> None:
    scan = {
        "image": image.partition("@")[2],
        "scanner": "trivy 1",
        "scanned_at": at.isoformat(),
        "findings": [],
        "ran": ["vulnerability", "secret", "misconfiguration"],
        "not_run": {},
        "system": "debian 12",
        "database_at": at.isoformat(),
        "packages": 1,
    }
    detail = {"release": release.name, "sha256": release.sha256, "image": image, "scan": scan}
    registry.note(release.model, "published", detail)


def test_only_images_of_this_repository_and_this_bundle_are_taken(registry: Registry, tmp_path: Path) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    release = registry.register(Release("flights", 1, "s3://bundle", "a" * 64), SPEC)
    published = Published(registry, "registry.example/releases", lambda: now)
    for image, sha256 in (
        ("elsewhere.example/releases@sha256:" + "1" * 64, release.sha256),
        ("registry.example/releases:latest", release.sha256),
        ("registry.example/releases@sha256:" + "2" * 64, "b" * 64),
    ):
        record(registry, replace(release, sha256=sha256), image, now)
        with pytest.raises(ImageFailed, match="no published image"):
            published.build(release, tmp_path, progress=print)
    good = "registry.example/releases@sha256:" + "3" * 64
    record(registry, release, good, now)
    assert published.build(release, tmp_path, progress=print) == good
    with pytest.raises(ScanRefused, match="no scan of elsewhere"):
        published.scan("elsewhere.example/releases@sha256:" + "1" * 64, ScanPolicy())


def test_an_old_scan_counts_only_where_none_is_required(registry: Registry) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    release = registry.register(Release("flights", 1, "s3://bundle", "a" * 64), SPEC)
    image = "registry.example/releases@sha256:" + "3" * 64
    record(registry, release, image, now - OLDEST_SCAN - timedelta(days=1))
    published = Published(registry, "registry.example/releases", lambda: now)
    with pytest.raises(ScanRefused, match="was scanned 31 days ago; to scan it anew, run the workflow cd"):
        published.scan(published.layout(release), ScanPolicy(mode="require"))
    assert published.scan(image, ScanPolicy(mode="record")).decision.passed


def test_the_fake_registry_refuses_strangers() -> None:
    """The test above would prove nothing about credentials otherwise."""
    with (
        oci_registry.serving(oci_registry.Registry("a:b")) as served,
        pytest.raises(urllib.error.HTTPError, match="401"),
    ):
        urllib.request.urlopen(f"http://{served.address}/v2/")
