"""The artifact store over a folder and over a real S3 server: the same promises in both."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from flows.adapters.artifacts import ArtifactStore
from flows.domain.errors import ArtifactCorrupt, DependencyDown, ReleaseExists
from serving.errors import BundleCorrupt
from serving.inference.bundle import load_bundle
from tests.free_ports import free_ports
from tests.integration.s3_server import ACCESS, BUCKET, client


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "file":
        return ArtifactStore((tmp_path / "store").as_uri())
    endpoint = request.getfixturevalue("s3_endpoint")
    return ArtifactStore(f"s3://{BUCKET}/{uuid.uuid4().hex}/prefix", {**ACCESS, "endpoint_url": endpoint})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "tables").mkdir(parents=True)
    (folder / "model.yaml").write_text("name: flights\n")
    (folder / "model.pt").write_bytes(os.urandom(3 << 20))
    (folder / "tables" / "codes.json").write_text("{}")
    return folder


def test_what_was_put_comes_back_the_same(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    store.verify(uri, sha256)
    fetched = store.fetch(uri, sha256, tmp_path / "elsewhere" / "flights-v2")
    manifest = (fetched / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == sha256
    assert sorted(json.loads(manifest)["files"]) == ["model.pt", "model.yaml", "tables/codes.json"]
    for name, digest in json.loads(manifest)["files"].items():
        content = (fetched / name).read_bytes()
        assert content == (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    assert store.text(uri, "model.yaml") == "name: flights\n"


def test_the_same_content_again_is_the_same_release(store: ArtifactStore, folder: Path) -> None:
    first = store.put_bundle(folder, "flights", 2)
    (folder / "manifest.json").write_text("left over from elsewhere, no part of the bundle")
    assert store.put_bundle(folder, "flights", 2) == first


def test_other_content_needs_another_version(store: ArtifactStore, folder: Path) -> None:
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    (folder / "model.yaml").write_text("name: flights # changed\n")
    with pytest.raises(ReleaseExists, match=r"flights-v2 exists with other content .* next version"):
        store.put_bundle(folder, "flights", 2)
    store.verify(uri, sha256)
    assert store.put_bundle(folder, "flights", 3)[1] != sha256
    assert store.put_bundle(folder, "other", 2)[0] != uri


def test_a_changed_file_is_named_with_both_digests(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    content = bytearray((folder / "model.pt").read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    _raw(store).pipe_file(f"{_path(store, uri)}/model.pt", bytes(content))
    found = hashlib.sha256(content).hexdigest()
    for read in (
        lambda: store.verify(uri, sha256),
        lambda: store.fetch(uri, sha256, tmp_path / "into"),
    ):
        with pytest.raises(ArtifactCorrupt) as caught:
            read()
        assert "model.pt" in str(caught.value)
        assert expected in str(caught.value)
        assert found in str(caught.value)
    assert not (tmp_path / "into").exists()
    assert list(tmp_path.glob(".into*")) == []


def test_putting_again_repairs_a_damaged_bundle(store: ArtifactStore, folder: Path) -> None:
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    _raw(store).rm(f"{_path(store, uri)}/model.yaml")
    with pytest.raises(ArtifactCorrupt, match=r"model\.yaml: listed in manifest\.json but not there"):
        store.verify(uri, sha256)
    store.put_bundle(folder, "flights", 2)
    store.verify(uri, sha256)


def test_another_manifest_than_the_registered_one(store: ArtifactStore, folder: Path) -> None:
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    with pytest.raises(
        ArtifactCorrupt, match=f"manifest.json: its sha256 is {sha256}, registered is {'0' * 64}"
    ):
        store.verify(uri, "0" * 64)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "a\\b", "", "a//b", "./a", "a\nb"]
)
def test_a_manifest_cannot_name_files_elsewhere(
    store: ArtifactStore, folder: Path, tmp_path: Path, name: str
) -> None:
    uri, _ = store.put_bundle(folder, "flights", 2)
    evil = json.dumps({"files": {"model.yaml": "0" * 64, name: "0" * 64}}).encode()
    _raw(store).pipe_file(f"{_path(store, uri)}/manifest.json", evil)
    with pytest.raises(ArtifactCorrupt, match="is not allowed; use a plain relative path"):
        store.fetch(uri, hashlib.sha256(evil).hexdigest(), tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_an_upload_cut_off_is_no_bundle_and_can_be_finished(store: ArtifactStore, folder: Path) -> None:
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    for missing in ("manifest.json", "tables/codes.json"):  # What a writer leaves that died before its end.
        _raw(store).rm(f"{_path(store, uri)}/{missing}")
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json: not there"):
        store.verify(uri, sha256)

    # Other content may take the version: nothing was complete, so nothing was released.
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    (other / "model.yaml").write_text("name: flights # other\n")
    store.verify(*store.put_bundle(other, "flights", 2))
    with pytest.raises(ReleaseExists):
        store.put_bundle(folder, "flights", 2)


def test_an_upload_cut_off_goes_on(store: ArtifactStore, folder: Path) -> None:
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    raw, path = _raw(store), _path(store, uri)
    raw.rm(f"{path}/manifest.json")
    raw.pipe_file(f"{path}/model.pt", (folder / "model.pt").read_bytes()[:1000])
    assert store.put_bundle(folder, "flights", 2) == (uri, sha256)
    store.verify(uri, sha256)


def test_the_model_server_reads_what_the_store_wrote(
    store: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two sides share no code, only the layout; each checks the other's digests."""
    if store.uri.startswith("s3://"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", store._options["endpoint_url"])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS["key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ACCESS["secret"])
    flights = Path(__file__).parents[2] / "serving" / "models" / "flights"
    shutil.copyfile(flights / "model.yaml", folder / "model.yaml")
    uri, sha256 = store.put_bundle(folder, "flights", 2)
    loaded = load_bundle(uri, sha256)
    try:
        assert (loaded.model.name, loaded.sha256) == ("flights", sha256)
    finally:
        loaded.discard()
    _raw(store).pipe_file(f"{_path(store, uri)}/model.pt", b"damaged")
    with pytest.raises(BundleCorrupt, match=r"model\.pt"):
        load_bundle(uri, sha256)


def test_reports(store: ArtifactStore) -> None:
    uri = store.write_bytes("reports/flights/drift.html", b"<html>1</html>")
    assert uri == f"{store.uri}/reports/flights/drift.html"
    store.write_bytes("reports/flights/drift.html", b"<html>2</html>")
    assert store.read_bytes("reports/flights/drift.html") == b"<html>2</html>"
    with pytest.raises(ArtifactCorrupt, match="not there"):
        store.read_bytes("reports/flights/none.html")
    with pytest.raises(ArtifactCorrupt, match="not allowed"):
        store.write_bytes("../outside", b"")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    store = ArtifactStore((tmp_path / "store").as_uri())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ArtifactCorrupt, match=r"no model\.yaml"):
        store.put_bundle(empty, "flights", 1)
    (empty / "model.yaml").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactCorrupt, match="a link cannot be part of a bundle"):
        store.put_bundle(empty, "flights", 1)


def test_s3_from_the_environment(s3_endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What servers of releases do: no options, only AWS_* variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ACCESS["secret"])
    store = ArtifactStore(f"s3://{BUCKET}/from-environment")
    store.verify(*store.put_bundle(folder, "flights", 1))


def test_a_bucket_that_is_not_there_is_not_made(s3_endpoint: str, folder: Path) -> None:
    store = ArtifactStore("s3://misspelt-bucket", {**ACCESS, "endpoint_url": s3_endpoint})
    with pytest.raises(DependencyDown, match="artifact store: s3://misspelt-bucket"):
        store.put_bundle(folder, "flights", 1)
    names = [bucket["Name"] for bucket in client(s3_endpoint).list_buckets()["Buckets"]]
    assert "misspelt-bucket" not in names


def test_wrong_credentials_and_a_dead_server(s3_endpoint: str, folder: Path) -> None:
    stranger = ArtifactStore(f"s3://{BUCKET}", {"key": "x", "secret": "y", "endpoint_url": s3_endpoint})
    with pytest.raises(DependencyDown, match="cannot be used"):
        stranger.put_bundle(folder, "flights", 1)
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    options = {**ACCESS, "endpoint_url": nobody, "config_kwargs": {"retries": {"max_attempts": 1}}}
    with pytest.raises(DependencyDown, match="check that it runs"):
        ArtifactStore(f"s3://{BUCKET}", options).put_bundle(folder, "flights", 1)


def _raw(store: ArtifactStore) -> Any:
    """The same file system without our code in between: how damage gets in."""
    return store._open(store.uri)[0]


def _path(store: ArtifactStore, uri: str) -> str:
    return store._open(uri)[1]
