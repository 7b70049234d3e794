"""Resolves a model's packages over the server's own pins, once, into a list by version and digest."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from flows.adapters.packages.environments import environment
from flows.adapters.packages.own import own_packages, versions
from flows.adapters.packages.requirements import Wanted, wanted_packages
from flows.domain.errors import PackagesRefused

LOCK = "packages.lock"
KINDS = ("onnx", "sklearn", "xgboost", "lightgbm", "safetensors", "tensorflow", "mlflow", "huggingface")
"""Kinds of runtimes with packages of their own; extras of this project have the same names."""
SLIM = {"mlflow": "mlflow-skinny"}
"""What a kind brings in place of a package: MLflow's server has pins that ours does not share, and reading
a model
needs none of it."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PIP_TIMEOUT_SECONDS = 1800.0
CAUSE = re.compile(r"^\s+(?P<who>\S.*?) depends on (?P<what>\S+)")
MISSING = re.compile(r"No matching distribution found for (\S+)")


@dataclass(frozen=True)
class Lock:
    """The text of `packages.lock`: a line that names the Python, then `name==version --hash=sha256:…`."""

    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line and not line.startswith("#")]

    @property
    def python(self) -> str:
        found = re.match(r"# Python (\d+\.\d+)", self.text)
        return found[1] if found else PYTHON

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join([self.python, *self.lines]).encode()).hexdigest()[:16]


class Packages:
    """Locks, wheels and environments of models."""

    def __init__(
        self,
        cache: Path,
        environments: Path,
        dependencies: Sequence[str],
        extras: dict[str, tuple[str, ...]],
        pins: Path,
    ) -> None:
        """`cache`: wheels by the digest of their lock, for images and processes. `environments`: what
        processes run in. `dependencies`: the server's own. `extras`: what kinds of runtimes need. `pins`:
        this project's versions of everything."""
        self._cache = cache
        self._environments = environments
        self._dependencies = tuple(dependencies)
        self._extras = extras
        self._pins = pins

    def lock(self, folder: Path, shown: Path, kind: str, listed: str = "requirements.txt") -> Lock:
        """What a bundle's folder and its kind of runtime ask for, resolved. Raises PackagesRefused.

        `listed` is the file with requirements in the folder. A package of the kind's has the version that
        the folder wants, and without a word this project's pin.
        """
        wanted = wanted_packages(folder, shown, listed)
        if kind in SLIM:
            wanted = [one for one in wanted if canonicalize_name(one.requirement.name) != kind]
        own = versions(own_packages(self._dependencies))
        for one in wanted:
            _refuse_conflict(one, own)
        named = {canonicalize_name(one.requirement.name) for one in wanted}
        extra = [Requirement(text) for text in self._extras.get(kind, ())]
        wanted += [
            Wanted(one, f"the runtime {kind}") for one in extra if canonicalize_name(one.name) not in named
        ]
        lines = [] if not wanted else self._resolve(wanted, own, named)
        head = f"# Python {PYTHON}. Written at registration; the server's own packages are not in it."
        return Lock("".join(f"{line}\n" for line in (head, *lines)))

    def fitting(self, path: Path, kind: str) -> tuple[list[str], list[str]]:
        """Lines of a file with requirements that the server's own packages allow, and words on those they
        do not.

        What is written by a training names each version that happened to be there.
        """
        own = versions(own_packages(self._dependencies))
        kept, refused = [], []
        for one in wanted_packages(path.parent, path.parent, path.name):
            name = canonicalize_name(one.requirement.name)
            if name in own and not one.requirement.specifier.contains(own[name], prereleases=True):
                refused.append(f"{one.requirement} (the server has {own[name]})")
            elif name == kind and kind in SLIM:
                refused.append(f"{one.requirement} ({SLIM[kind]} takes its place)")
            else:
                kept.append(str(one.requirement))
        return kept, refused

    def wheels(self, lock: Lock) -> Path:
        """A folder with the wheels of a lock and `requirements.txt`; fetched once, proved by digest."""
        folder = self._cache / lock.digest
        self._cache.mkdir(parents=True, exist_ok=True)
        with (self._cache / ".lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder
            with tempfile.TemporaryDirectory(dir=self._cache, prefix=".partial-") as name:
                partial = Path(name) / "wheels"
                partial.mkdir()
                (partial / "requirements.txt").write_text("".join(f"{line}\n" for line in lock.lines))
                if lock.lines:
                    _pip(
                        *("download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"),
                        *("--dest", str(partial), "--requirement", str(partial / "requirements.txt")),
                    )
                partial.rename(folder)
        return folder

    def of_bundle(self, bundle: Path, python: str) -> Path:
        """The wheels of a bundle's local folder for an image with that Python; none without a lock."""
        path = bundle / LOCK
        lock = Lock(path.read_text(encoding="utf-8") if path.is_file() else "")
        if lock.lines and lock.python != python:
            raise PackagesRefused(
                f"the model's packages are locked for Python {lock.python}, the image has {python}; "
                f"register the release with Python {python}"
            )
        return self.wheels(lock)

    def python(self, lock: Lock) -> str:
        """An interpreter that has the server's own packages and those of the lock, and no others."""
        if lock.python != PYTHON:
            raise PackagesRefused(
                f"the release was registered for Python {lock.python}, this is {PYTHON}; register it again"
            )
        return environment(
            self._environments, own_packages(self._dependencies), lock.digest, self.wheels(lock)
        )

    def _resolve(self, wanted: list[Wanted], own: dict[str, str], named: set[NormalizedName]) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="modelserve-packages-") as name:
            asked, given, report = (Path(name) / part for part in ("asked.txt", "own.txt", "report.json"))
            asked.write_text("".join(f"{one.requirement}\n" for one in wanted))
            kept = own if named else {**_pinned(self._pins), **own}
            given.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
            _pip(
                *("install", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
                *("--requirement", str(asked), "--constraint", str(given), "--report", str(report)),
            )
            found = json.loads(report.read_text(encoding="utf-8"))["install"]
        packages = {canonicalize_name(one["metadata"]["name"]): one for one in found}
        reached: set[NormalizedName] = set()
        pending = [canonicalize_name(one.requirement.name) for one in wanted]
        while pending:
            package = pending.pop()
            # What the server has stands in its own layer, with all that it needs.
            if package in reached or package in own or package not in packages:
                continue
            reached.add(package)
            needed = packages[package]["metadata"].get("requires_dist", ())
            pending.extend(canonicalize_name(Requirement(text).name) for text in needed)
        return [_line(packages[name]) for name in sorted(reached)]


def _refuse_conflict(one: Wanted, own: dict[str, str]) -> None:
    version = own.get(canonicalize_name(one.requirement.name))
    if version is not None and not one.requirement.specifier.contains(version, prereleases=True):
        raise PackagesRefused(
            f"{one.place}: {one.requirement} conflicts with the server's own {one.requirement.name} "
            f"{version}; allow that version, or leave it out"
        )


def _pinned(pins: Path) -> dict[str, str]:
    """This project's own pins, so that what nobody has chosen is what has been tested."""
    pinned: dict[str, str] = {}
    for line in pins.read_text(encoding="utf-8").splitlines():
        name, separator, version = line.partition("==")
        if separator and not line.startswith("#"):
            pinned[canonicalize_name(name)] = version.strip()
    return pinned


def _line(package: dict[str, Any]) -> str:
    metadata, source = package["metadata"], package["download_info"]
    digest = source.get("archive_info", {}).get("hashes", {}).get("sha256")
    if digest is None and source["url"].startswith("file://"):
        with Path(source["url"].removeprefix("file://")).open("rb") as wheel:
            digest = hashlib.file_digest(wheel, "sha256").hexdigest()
    if digest is None:
        raise PackagesRefused(f"the package index gives no sha256 for {metadata['name']}; use one that does")
    return f"{canonicalize_name(metadata['name'])}=={metadata['version']} --hash=sha256:{digest}"


def _pip(*arguments: str) -> None:
    """Run pip; PackagesRefused with the reason in one line."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "NO_COLOR": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=PIP_TIMEOUT_SECONDS, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise PackagesRefused(
            f"pip gave no result within {PIP_TIMEOUT_SECONDS:.0f} s; see your index"
        ) from error
    if done.returncode:
        raise PackagesRefused(_reason(done.stdout + "\n" + done.stderr))


def _reason(output: str) -> str:
    missing = MISSING.search(output)
    if missing is not None:
        return (
            f"{missing[1]}: no wheel of it for Python {PYTHON} on this platform is in the index; check name "
            "and version (what has to be compiled is built into a wheel first)"
        )
    lines = output.splitlines()
    causes = [f"{found['who']} wants {found['what']}" for line in lines if (found := CAUSE.match(line))]
    pinned = [line.split("(constraint)", 1)[1].strip() for line in lines if "(constraint)" in line]
    if causes or pinned:
        told = [*causes, *(f"the server has its own {one.replace('==', ' ')}" for one in pinned)]
        return f"the packages cannot be installed together: {'; '.join(dict.fromkeys(told))}"
    last = [line.strip() for line in lines if line.startswith("ERROR: ")] or [
        line for line in lines if line.strip()
    ]
    return f"pip says: {last[0][:400]}" if last else "pip failed without a word"
