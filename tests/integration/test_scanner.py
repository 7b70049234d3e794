"""Trivy itself on small images: planted findings are found, and nothing that fails looks clean.

The database is a real one with made-up findings, written by `trivy/generate.go`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from flows.adapters.scanner import Scanner
from flows.domain.errors import ScanImpossible, ScanRefused
from flows.domain.spec import ScanPolicy

DATABASE = Path(__file__).parent / "trivy" / "db"
DEBIAN = {
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
    "etc/debian_version": "12.5\n",
    "var/lib/dpkg/status": (
        "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nSource: zlib\n"
        "Version: 1:1.2.13.dfsg-1\nMaintainer: nobody\nDescription: compression\n\n"
    ),
}
PYTHON = {
    "usr/lib/python3/dist-packages/planted_package-1.0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: planted-package\nVersion: 1.0\n"
    )
}
# Put together here, so that no scanner of this repository takes it for a real one.
TOKEN = "ghp_" + "x7Kd9" * 7 + "q"


def image(folder: Path, *layers: Mapping[str, str], user: str = "65532") -> str:
    """An OCI layout with these files in its layers, as `ImageBuilder.layout` would name it."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, media: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        kind = f"application/vnd.oci.image.{media}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    written = [blob(_tar(files), "layer.v1.tar") for files in layers]
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": user},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in written]},
        "history": [{"created_by": "/bin/sh -c #(nop) COPY dir:1 in /"} for _ in layers]
        + [{"created_by": f"/bin/sh -c #(nop) USER {user}", "empty_layer": True}],
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(configuration).encode(), "config.v1+json"),
        "layers": written,
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"{folder}@{entry['digest']}"


def _tar(files: Mapping[str, str]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    return output.getvalue()


@pytest.fixture
def offline(tmp_path: Path) -> Scanner:
    """A scanner that has never seen a database."""
    return Scanner(tmp_path / "cache", tmp_path / "reports")


@pytest.fixture
def scanner(tmp_path: Path) -> Scanner:
    shutil.copytree(DATABASE, tmp_path / "cache" / "db")
    return Scanner(tmp_path / "cache", tmp_path / "reports")


def test_planted_vulnerabilities_stop_and_the_bill_of_materials_is_left(
    scanner: Scanner, tmp_path: Path
) -> None:
    report = scanner.scan(image(tmp_path / "layout", DEBIAN, PYTHON), ScanPolicy())

    found = {finding.id: finding for finding in report.findings if finding.kind == "vulnerability"}
    assert sorted(found) == ["CVE-2099-0001", "CVE-2099-0002", "CVE-2099-0003", "CVE-2099-0004"]
    planted = found["CVE-2099-0001"]
    assert (planted.package, planted.installed, planted.fixed) == ("zlib1g", "1:1.2.13.dfsg-1", "1:99.0")
    assert [finding.id for finding in report.decision.stopping] == ["CVE-2099-0001", "CVE-2099-0004"]
    with pytest.raises(ScanRefused, match="CVE-2099-0001 CRITICAL in zlib1g"):
        report.enforce()
    assert report.system == "debian 12.5"
    assert report.ran == ("vulnerability", "secret", "misconfiguration")
    assert report.database_at is not None
    assert "old**" in report.markdown()

    assert report.sbom is not None
    components = json.loads(Path(report.sbom).read_text())["components"]
    assert {"zlib1g", "planted-package"} <= {component["name"] for component in components}


def test_an_accepted_vulnerability_lets_the_image_pass(scanner: Scanner, tmp_path: Path) -> None:
    policy = ScanPolicy(allow=("CVE-2099-0001", "CVE-2099-0004"))
    report = scanner.scan(image(tmp_path / "layout", DEBIAN, PYTHON), policy)
    report.enforce()
    assert len(report.decision.accepted) == 2


def test_a_secret_in_any_layer_stops_even_when_a_later_layer_hides_it(
    scanner: Scanner, tmp_path: Path
) -> None:
    hidden = image(
        tmp_path / "layout",
        DEBIAN,
        {"bundle/settings.txt": f"token={TOKEN}\n"},
        {"bundle/.wh.settings.txt": ""},
    )
    report = scanner.scan(hidden, ScanPolicy(allow=("CVE-2099-0001",)))
    (secret,) = report.decision.stopping
    assert (secret.kind, secret.id) == ("secret", "github-pat")
    assert "bundle/settings.txt" in secret.where
    assert TOKEN not in report.markdown() + json.dumps(report.to_json())


def test_an_image_that_runs_as_root_stops(offline: Scanner, tmp_path: Path) -> None:
    report = offline.scan(image(tmp_path / "layout", DEBIAN, user="root"), ScanPolicy(mode="record"))
    assert [finding.id for finding in report.decision.stopping] == ["AVD-DS-0002"]


def test_without_a_database_the_policy_decides(offline: Scanner, tmp_path: Path) -> None:
    layout = image(tmp_path / "layout", DEBIAN)
    recorded = offline.scan(layout, ScanPolicy(mode="record"))
    assert recorded.ran == ("secret", "misconfiguration")
    assert recorded.packages > 0
    recorded.enforce()
    with pytest.raises(ScanRefused, match="vulnerabilities were not scanned: no vulnerability database"):
        offline.scan(layout, ScanPolicy()).enforce()


def test_a_broken_database_is_refused_not_skipped(scanner: Scanner, tmp_path: Path) -> None:
    (tmp_path / "cache" / "db" / "trivy.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(ScanRefused, match="the scanner failed"):
        scanner.scan(image(tmp_path / "layout", DEBIAN), ScanPolicy(mode="record"))


def test_unreadable_metadata_is_refused_not_taken_for_no_database(scanner: Scanner, tmp_path: Path) -> None:
    (tmp_path / "cache" / "db" / "metadata.json").write_text("{")
    with pytest.raises(ScanRefused, match="cannot be read"):
        scanner.scan(image(tmp_path / "layout", DEBIAN), ScanPolicy(mode="record"))


def test_a_missing_layer_is_refused(offline: Scanner, tmp_path: Path) -> None:
    layout = image(tmp_path / "layout", DEBIAN)
    manifest = json.loads(
        (tmp_path / "layout/blobs" / layout.partition("@")[2].replace(":", "/")).read_text()
    )
    (tmp_path / "layout/blobs" / manifest["layers"][0]["digest"].replace(":", "/")).unlink()
    with pytest.raises(ScanRefused, match="the scanner failed"):
        offline.scan(layout, ScanPolicy(mode="record"))


def test_no_layout_is_refused(offline: Scanner, tmp_path: Path) -> None:
    with pytest.raises(ScanRefused, match="is no OCI layout"):
        offline.scan(f"{tmp_path}/nothing@sha256:1", ScanPolicy(mode="record"))


def test_a_build_history_that_trivy_cannot_read_is_not_clean(offline: Scanner, tmp_path: Path) -> None:
    layout = image(tmp_path / "layout", DEBIAN)
    folder, _, digest = layout.partition("@")
    manifest = json.loads(Path(folder, "blobs", digest.replace(":", "/")).read_text())
    configuration = Path(folder, "blobs", manifest["config"]["digest"].replace(":", "/"))
    broken = json.loads(configuration.read_text())
    broken["history"][0]["created_by"] = "|1 KEY=value /bin/sh -c make"
    configuration.write_text(json.dumps(broken))
    for _ in range(2):  # the second time, Trivy answers from its cache and logs no error at all
        report = offline.scan(layout, ScanPolicy(mode="record"))
        assert "misconfiguration" in report.not_run
        assert not report.decision.passed


def test_a_scanner_that_prints_nonsense_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "trivy"
    program.write_text('#!/bin/sh\necho \'{"Version": "0"}\'\n')
    program.chmod(0o755)
    broken = Scanner(tmp_path / "cache", tmp_path / "reports", program)
    with pytest.raises(ScanRefused, match="no readable report"):
        broken.scan(image(tmp_path / "layout", DEBIAN), ScanPolicy(mode="record"))


def test_a_failed_download_says_why_and_keeps_the_database(scanner: Scanner, tmp_path: Path) -> None:
    before = (tmp_path / "cache" / "db" / "trivy.db").read_bytes()
    # A port that nobody listens on, of this machine.
    why = scanner.refresh(repository="127.0.0.1:1/nothing:2")
    assert why
    assert "\n" not in why
    assert (tmp_path / "cache" / "db" / "trivy.db").read_bytes() == before
    report = scanner.scan(image(tmp_path / "layout", DEBIAN), ScanPolicy())
    assert "vulnerability" in report.ran, "Trivy has forgotten the database that it could not replace"


def test_a_download_takes_the_old_ones_place_whole_and_only_when_it_is_due(tmp_path: Path) -> None:
    """The download itself is played: there is no such database to be had on every machine."""
    program = tmp_path / "trivy"
    program.write_text(
        f'#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\ncp -r {DATABASE} "$1/db"\n'
        f"echo . >> {tmp_path}/downloads\n"
    )
    program.chmod(0o755)
    cache = tmp_path / "cache"
    (cache / "db").mkdir(parents=True)
    (cache / "db" / "metadata.json").write_text("{")
    loading = Scanner(cache, tmp_path / "reports", program)
    assert loading.refresh() == ""
    assert sorted(path.name for path in (cache / "db").iterdir()) == ["metadata.json", "trivy.db"]
    metadata = json.loads((cache / "db" / "metadata.json").read_text())
    assert not list(cache.glob("fetching-*")), "the folder of the download is left"
    metadata["NextUpdate"] = "2999-01-01T00:00:00.123456789Z"
    (cache / "db" / "metadata.json").write_text(json.dumps(metadata))
    assert loading.refresh() == ""
    assert (tmp_path / "downloads").read_text().count(".") == 1
    metadata["NextUpdate"] = "2020-01-01T00:00:00Z"
    (cache / "db" / "metadata.json").write_text(json.dumps(metadata))
    assert loading.refresh() == ""
    assert (tmp_path / "downloads").read_text().count(".") == 2


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run: Trivy asks a proxy that is not there."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")


@pytest.mark.usefixtures("no_network")
def test_without_database_and_network_a_policy_that_requires_one_is_told_at_once(offline: Scanner) -> None:
    said: list[str] = []
    with pytest.raises(ScanImpossible) as refused:
        offline.ready(ScanPolicy(), said.append)
    assert said == ["scanner: downloading the vulnerability database"]
    message = str(refused.value)
    assert "\n" not in message
    assert "nothing was built" in message
    assert "connect: connection refused" in message, "the cause is not named"
    for way_out in ("modelserve prepare --database", "copy the folder", "scan.mode to record"):
        assert way_out in message


@pytest.mark.usefixtures("no_network")
def test_nothing_is_fetched_that_is_there_or_not_required(scanner: Scanner, tmp_path: Path) -> None:
    said: list[str] = []
    scanner.ready(ScanPolicy(), said.append)
    Scanner(tmp_path / "empty", tmp_path / "reports").ready(ScanPolicy(mode="record"), said.append)
    assert said == []


def test_a_database_that_somebody_else_is_fetching_is_waited_for(tmp_path: Path) -> None:
    """`up` fetches it in the background; a promotion that begins meanwhile takes what arrives."""
    cache = tmp_path / "cache"
    cache.mkdir()
    ready: list[BaseException | None] = []

    def wait() -> None:
        try:
            Scanner(cache, tmp_path / "reports").ready(ScanPolicy())
            ready.append(None)
        except BaseException as error:
            ready.append(error)

    with (cache / "fetching").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive(), "it did not wait for the download that is under way"
        shutil.copytree(DATABASE, cache / "db")
    waiting.join(60)
    assert ready == [None]
