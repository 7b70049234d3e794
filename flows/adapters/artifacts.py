"""Keeps bundles and reports in a folder or a bucket, and proves that what comes back is what went in.

A bundle lies under the digest of its own manifest, `bundles/<model>/v<version>/<digest>/`. Two writers of
one version therefore never mix their files, and nothing that was complete is ever overwritten. The
manifest is written last: a folder without one is an upload that never finished, and nobody reads it.

Where the store is and how to log in follow fsspec: `file:///srv/models`, `s3://bucket/models`. For S3 the
usual environment counts (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, profiles, roles),
for the servers of releases as well; `options` overrules it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from flows.adapters.stores import reached
from flows.domain.errors import ArtifactCorrupt, ReleaseExists
from flows.domain.release import release_name

MANIFEST = "manifest.json"
_BLOCK = 1 << 20
_DIGEST_IN_PATH = 16
"""Hexadecimal digits of the manifest's digest that name a bundle's folder."""


class ArtifactStore:
    """One root under which bundles and reports lie. Nothing is contacted before it is used.

    Every method raises DependencyDown when the store does not answer or refuses.
    """

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        self.uri = uri.rstrip("/")
        self._options = dict(options or {})

    def put_bundle(self, folder: Path, model: str, version: int) -> tuple[str, str]:
        """Store the files of `folder` as the bundle of one release; return its URI and sha256.

        The same content again gives the same answer and repairs what was missing. Raises ReleaseExists
        when the version is complete with other content, ArtifactCorrupt for a folder that is no bundle.
        """
        names = _names(folder)
        before = [_stamp(folder / name) for name in names]
        files = {name: _file_sha256(folder / name) for name in names}
        manifest = json.dumps({"files": files}, indent=1, sort_keys=True).encode()
        sha256 = hashlib.sha256(manifest).hexdigest()
        versions = f"{self.uri}/bundles/{model}/v{version}"
        uri = f"{versions}/{sha256[:_DIGEST_IN_PATH]}"
        with reached("artifact store", uri):
            filesystem, root = self._open(uri)
            for other in self._complete(versions):
                if other != uri.rsplit("/", 1)[1]:
                    raise ReleaseExists(
                        f"{release_name(model, version)} exists with other content (sha256 {other}…, this is "
                        f"{sha256[:_DIGEST_IN_PATH]}…); a release never changes: take the next version number"
                    )
            for name, expected in files.items():
                if not _holds(filesystem, f"{root}/{name}", expected):
                    _write(filesystem, f"{root}/{name}", folder / name)
            for name, stamp in zip(names, before, strict=True):
                if _stamp(folder / name) != stamp:
                    raise ArtifactCorrupt(f"{folder / name} was changed while it was stored; try again")
            _write(filesystem, f"{root}/{MANIFEST}", manifest)
        return uri, sha256

    def verify(self, uri: str, sha256: str) -> None:
        """Read the whole bundle and compare every digest; ArtifactCorrupt names the file that differs."""
        with reached("artifact store", uri):
            filesystem, root = self._open(uri)
            for name, expected in self._manifest(uri, sha256)[1].items():
                found = _copy(filesystem, f"{root}/{name}", uri, name, lambda _block: None)
                _compare(uri, name, expected, found)

    def fetch(self, uri: str, sha256: str, into: Path) -> Path:
        """Copy the bundle into the folder `into`, which appears complete and proven or not at all.

        Raises ArtifactCorrupt when a digest differs, OSError when `into` has files in it.
        """
        into.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{into.name}-", dir=into.parent))
        try:
            with reached("artifact store", uri):
                filesystem, root = self._open(uri)
                manifest, files = self._manifest(uri, sha256)
                for name, expected in files.items():
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    with (partial / name).open("wb") as target:
                        found = _copy(filesystem, f"{root}/{name}", uri, name, target.write)
                    _compare(uri, name, expected, found)
            (partial / MANIFEST).write_bytes(manifest)
            partial.chmod(0o755)
            partial.replace(into)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return into

    def text(self, bundle: str, name: str) -> str:
        """One text file of a bundle; ArtifactCorrupt when it is not there."""
        return self._bytes(bundle, name).decode()

    def write_bytes(self, name: str, content: bytes) -> str:
        """Store a report under the relative path `name`, replacing an older one; return its URI."""
        uri = f"{self.uri}/{_safe(name, self.uri)}"
        with reached("artifact store", uri):
            filesystem, path = self._open(uri)
            _write(filesystem, path, content)
        return uri

    def read_bytes(self, name: str) -> bytes:
        """What `write_bytes` stored under `name`; ArtifactCorrupt when there is nothing."""
        return self._bytes(self.uri, name)

    def _bytes(self, root: str, name: str) -> bytes:
        uri = f"{root}/{_safe(name, root)}"
        with reached("artifact store", uri):
            filesystem, path = self._open(uri)
            try:
                content: bytes = filesystem.cat_file(path)
            except FileNotFoundError:
                raise ArtifactCorrupt(f"{uri}: not there; register the release again") from None
            return content

    def _manifest(self, uri: str, sha256: str) -> tuple[bytes, dict[str, str]]:
        content = self._bytes(uri, MANIFEST)
        _compare(uri, MANIFEST, sha256, hashlib.sha256(content).hexdigest())
        try:
            files = {str(name): str(digest) for name, digest in json.loads(content)["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactCorrupt(f"{uri}: {MANIFEST} does not list files; register again") from None
        return content, {_safe(name, uri): digest for name, digest in files.items()}

    def _complete(self, versions: str) -> list[str]:
        """Names of the finished bundles of one version."""
        filesystem, root = self._open(versions)
        try:
            folders = [str(entry["name"]) for entry in filesystem.ls(root, detail=True)]
        except FileNotFoundError:
            return []
        return [folder.rstrip("/").rsplit("/", 1)[1] for folder in folders
                if filesystem.exists(f"{folder.rstrip('/')}/{MANIFEST}")]  # fmt: skip

    def _open(self, uri: str) -> tuple[Any, str]:
        same_store = uri.split("://", 1)[0] == self.uri.split("://", 1)[0]
        # Listings change under us (servers and flows are other processes), so none may be remembered.
        options = {"use_listings_cache": False, **(self._options if same_store else {})}
        filesystem, path = fsspec.url_to_fs(uri, **options)
        return filesystem, str(path)


def _names(folder: Path) -> list[str]:
    """Relative paths of a bundle's files. Links are refused: they would carry foreign files along."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ArtifactCorrupt(f"{path}: a link cannot be part of a bundle; copy the file into the folder")
        if path.is_file() and name != MANIFEST and "__pycache__" not in path.parts:
            found.append(_safe(name, str(folder)))
    if "model.yaml" not in found:
        raise ArtifactCorrupt(f"{folder}: no model.yaml in it; a bundle needs one")
    return found


def _safe(name: str, source: str) -> str:
    """`name` itself when it stays inside its folder; ArtifactCorrupt otherwise."""
    path = PurePosixPath(name)
    plain = name == path.as_posix() and name.isprintable() and not set("\\:?#*[") & set(name)
    if not plain or path.is_absolute() or ".." in path.parts or name in ("", "."):
        raise ArtifactCorrupt(f"{source}: the file name {name!r} is not allowed; use a plain relative path")
    return name


def _compare(uri: str, name: str, expected: str, found: str) -> None:
    if found != expected:
        raise ArtifactCorrupt(
            f"{uri}/{name}: its sha256 is {found}, registered is {expected}; "
            "restore the file, or register the model again under the next version"
        )


def _copy(filesystem: Any, path: str, uri: str, name: str, write: Callable[[bytes], object]) -> str:
    try:
        return _stream(filesystem, path, write)
    except FileNotFoundError:
        raise ArtifactCorrupt(
            f"{uri}/{name}: listed in {MANIFEST} but not there; restore it, or register the model again"
        ) from None


def _stream(filesystem: Any, path: str, write: Callable[[bytes], object]) -> str:
    """Pass a file through `write` block by block; return the sha256 of what came."""
    digest = hashlib.sha256()
    with filesystem.open(path, "rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
            write(block)
    return digest.hexdigest()


def _write(filesystem: Any, path: str, content: Path | bytes) -> None:
    """Put a file in place in one step. An object of S3 appears whole by itself; a local file is renamed."""
    local = isinstance(filesystem, LocalFileSystem)
    target = f"{path}.{os.getpid()}.partial" if local else path
    if local:  # Elsewhere there are no folders to make, and a misspelt bucket must not come into being.
        filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    if isinstance(content, bytes):
        filesystem.pipe_file(target, content)
    else:
        filesystem.put_file(str(content), target)
    if local:
        os.replace(target, path)


def _holds(filesystem: Any, path: str, sha256: str) -> bool:
    """Whether this very content is stored already: an upload that was cut off goes on where it stopped."""
    return bool(filesystem.exists(path)) and _stream(filesystem, path, lambda _block: None) == sha256


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _file_sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
