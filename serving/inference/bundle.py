"""Fetch the folder of a release and prove that it is the registered one before anything reads it.

A bundle is `manifest.json` (`{"files": {name: sha256}}`) and the files it lists. The digest of the bytes
of the manifest names the whole bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from serving.errors import BundleCorrupt, StartupError
from serving.spec import ModelFile, read_model_file

MANIFEST = "manifest.json"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on the local disk. `sha256` is the digest of its manifest."""

    folder: Path
    sha256: str
    model: ModelFile
    temporary: bool = False

    def discard(self) -> None:
        """Remove the local copy of a bundle that was fetched from elsewhere."""
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def load_bundle(location: str, expected_sha256: str | None = None) -> Bundle:
    """Fetch (when it is not a local folder), verify every file, parse model.yaml.

    Raises BundleCorrupt when manifest or a file is missing or altered, SpecProblem for a bad model.yaml,
    StartupError when the location cannot be read.
    """
    folder, temporary = _local_folder(location)
    try:
        sha256 = verify(folder, expected_sha256)
        return Bundle(folder, sha256, read_model_file(folder / "model.yaml"), temporary)
    except BaseException:
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def verify(folder: Path, expected_sha256: str | None = None) -> str:
    """Check the manifest and every file it lists; return the manifest's sha256."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError:
        raise BundleCorrupt(
            f"{folder}: no {MANIFEST}; seal the folder: python -m serving seal {folder}"
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if expected_sha256 is not None and not hmac.compare_digest(sha256, expected_sha256):
        raise BundleCorrupt(
            f"{folder}: {MANIFEST} has sha256 {sha256}, registered is {expected_sha256}; fetch it again"
        )
    inside = folder.resolve()
    for name, expected in listed_files(content, folder).items():
        path = folder / name
        try:
            if not path.resolve().is_relative_to(inside):
                raise BundleCorrupt(f"{path}: a link that leaves the folder; put the file itself there")
            found = _file_sha256(path)
        except OSError:
            raise BundleCorrupt(
                f"{path}: listed in {MANIFEST} but not there; fetch the bundle again"
            ) from None
        if not hmac.compare_digest(found, expected):
            raise BundleCorrupt(
                f"{path}: sha256 is {found}, {MANIFEST} says {expected}; fetch the bundle again"
            )
    return sha256


def listed_files(manifest: bytes, source: object) -> dict[str, str]:
    """Names and digests out of the bytes of a manifest; BundleCorrupt when it is not one."""
    try:
        files = json.loads(manifest)["files"]
        items = [(str(name), str(digest)) for name, digest in files.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleCorrupt(
            f"{source}: {MANIFEST} is not {{'files': {{name: sha256}}}}; seal it again"
        ) from None
    for name, _ in items:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name or "\\" in name:
            raise BundleCorrupt(
                f"{source}: {MANIFEST} names {name!r}, which leaves the folder; seal it again"
            )
    if "model.yaml" not in files:
        raise BundleCorrupt(f"{source}: {MANIFEST} does not list model.yaml; seal the folder again")
    return dict(items)


def seal(folder: Path) -> str:
    """Write the manifest over every file in the folder; return the manifest's sha256."""
    files = {
        path.relative_to(folder).as_posix(): _file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and "__pycache__" not in path.parts
    }
    content = json.dumps({"files": files}, indent=1, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _local_folder(location: str) -> tuple[Path, bool]:
    if "://" not in location:
        return Path(location), False
    if location.startswith("file://"):
        return Path(location.removeprefix("file://")), False
    target = Path(tempfile.mkdtemp(prefix="bundle-"))
    with _removed_on_error(target):
        _fetch(location, target)
    return target, True


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fetch(location: str, target: Path) -> None:
    import fsspec  # costs 0.2 s at start, and local folders do not need it

    try:
        filesystem, root = fsspec.core.url_to_fs(location)
        manifest = filesystem.cat_file(f"{root}/{MANIFEST}")
    except FileNotFoundError:
        raise BundleCorrupt(f"{location}: no {MANIFEST} there; check SERVING_BUNDLE") from None
    except Exception as error:
        raise StartupError(
            f"{location}: cannot be read ({_brief(error)}); check SERVING_BUNDLE and access"
        ) from error
    (target / MANIFEST).write_bytes(manifest)
    for name in listed_files(manifest, location):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            filesystem.get_file(f"{root}/{name}", str(path))
        except FileNotFoundError:
            raise BundleCorrupt(
                f"{location}/{name}: listed in {MANIFEST} but not there; upload it again"
            ) from None
        except Exception as error:
            raise StartupError(f"{location}/{name}: cannot be read ({_brief(error)}); try again") from error


def _brief(error: Any) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
