"""Bytes onto the disk, counted and proved."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx

from flows.domain.errors import ArtifactCorrupt, DependencyDown

TIMEOUT = httpx.Timeout(60.0, connect=20.0)
"""For one answer or one block, not for a whole file."""


@dataclass
class Download:
    """One source on its way into the folder `into`."""

    into: Path
    limit: int
    sha256: str | None
    """What the only file has to be."""
    files: int = 0
    received: int = 0
    """Bytes, of all files."""
    last: str = ""
    """sha256 of the file that came last."""

    def write(self, uri: str, name: str, blocks: Iterable[bytes], expected: str | None = None) -> Path:
        """Put one file of the source in place. `expected`: its sha256, or `git:` and the sha1 of its blob."""
        path = self.into / safe(uri, name)
        digest = hashlib.sha256()
        before = self.received
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                for block in blocks:
                    self.received += len(block)
                    if self.received > self.limit:
                        raise ArtifactCorrupt(
                            f"{uri}: is larger than the limit of {self.limit} bytes "
                            "(MODELSERVE_BUNDLE_LIMIT_BYTES)"
                        )
                    digest.update(block)
                    target.write(block)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ArtifactCorrupt(
                    f"{uri}: no space for it in {self.into.parent} after {self.received} bytes; make room, "
                    "or set "
                    "MODELSERVE_STATE to a folder on another disk"
                ) from error
            raise
        self.files += 1
        self.last = digest.hexdigest()
        if expected is not None:
            self._compare(uri, name, path, expected, self.received - before)
        return path

    def finished(self, uri: str) -> str:
        """What was downloaded, proved. Raises ArtifactCorrupt for another digest, or for nothing at all."""
        if not self.files:
            raise ArtifactCorrupt(f"{uri}: nothing is there; check the name")
        if self.sha256 is not None:
            if self.files > 1:
                raise ArtifactCorrupt(
                    f"{uri}: a digest is for one file, and these are {self.files}; leave it out"
                )
            if self.last != self.sha256:
                raise ArtifactCorrupt(
                    f"{uri}: its sha256 is {self.last}, wanted was {self.sha256}; it is not the file that "
                    "you mean"
                )
        what = f"sha256:{self.last}" if self.files == 1 else f"{self.files} files"
        return f"downloaded {uri}: {self.received} bytes, {what}"

    def _compare(self, uri: str, name: str, path: Path, expected: str, size: int) -> None:
        found = self.last
        if expected.startswith("git:"):
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            with path.open("rb") as content:
                while block := content.read(1 << 20):
                    blob.update(block)
            found = f"git:{blob.hexdigest()}"
        if found != expected:
            raise ArtifactCorrupt(f"{uri}: {name} came as {found}, and is listed as {expected}; try again")


def safe(uri: str, name: str) -> str:
    """`name` when it stays below its folder; ArtifactCorrupt otherwise."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or not name.isprintable() or "\\" in name:
        raise ArtifactCorrupt(f"{uri}: holds a file called {name!r}, which leaves its folder")
    return path.as_posix()


@contextmanager
def answered(uri: str, what: str) -> Iterator[None]:
    """DependencyDown in one line when `what` does not answer, or not as it should."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        host = error.request.url.host
        if status in (401, 403):
            raise DependencyDown(
                f"{what} ({host}) refuses {uri} with HTTP {status}; check the access"
            ) from error
        if status == 404:
            raise ArtifactCorrupt(f"{uri}: {what} ({host}) has no such thing; check the name") from error
        raise DependencyDown(f"{what} ({host}) answers {uri} with HTTP {status}; try again later") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DependencyDown(
            f"{what} cannot be reached for {uri} ({reason}); check address and network"
        ) from error


def stream(client: httpx.Client, url: str) -> Iterator[bytes]:
    """The body of an answer, block by block. Raises httpx.HTTPError."""
    with client.stream("GET", url) as answer:
        answer.raise_for_status()
        yield from answer.iter_bytes(1 << 20)
