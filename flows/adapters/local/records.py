"""Which releases have servers on this machine: one small JSON file each, beside the stack's other state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.domain.errors import PortTaken
from flows.domain.release import Release

HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Record:
    """A release that has a server."""

    release: str
    model: str
    version: int
    port: int
    sha256: str
    drain_seconds: float
    url: str
    """Base URL of the server. `modelserve up` looks for `/readyz` below it."""


class Records:
    """The files of one stack. Port numbers are given out under a lock and kept until the release goes."""

    def __init__(self, folder: Path, first_port: int) -> None:
        self._folder = folder
        self._first_port = first_port

    def get(self, name: str) -> Record | None:
        try:
            return Record(**json.loads((self._folder / f"{name}.json").read_text()))
        except FileNotFoundError:
            return None

    def all(self) -> list[Record]:
        names = sorted(file.stem for file in self._folder.glob("*.json"))
        return [record for name in names if (record := self.get(name)) is not None]

    def claim(self, release: Release, drain_seconds: float) -> Record:
        """The release's record; a new one takes the next free port. Raises PortTaken when none is left."""
        with self._turn():
            if (known := self.get(release.name)) is not None and known.sha256 == release.sha256:
                return known
            port = known.port if known is not None else self._free_port()
            record = Record(
                release=release.name,
                model=release.model,
                version=release.version,
                port=port,
                sha256=release.sha256,
                drain_seconds=drain_seconds,
                url=f"http://127.0.0.1:{port}",
            )
            temporary = self._folder / f".{release.name}.{os.getpid()}"
            temporary.write_text(json.dumps(asdict(record), indent=1))
            temporary.replace(self._folder / f"{release.name}.json")
            return record

    def forget(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def _free_port(self) -> int:
        taken = {record.port for record in self.all()}
        for port in range(self._first_port, HIGHEST_PORT + 1):
            if port not in taken and _can_bind(port):
                return port
        raise PortTaken(f"no port from {self._first_port} up is free; set MODELSERVE_PORTS__RELEASES")

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
