"""The peers of the serving benchmark: what each needs, its own virtual environment, and how it is started.

Environments are made on demand and kept in `<state folder>/peers`, one a peer; a changed pin makes a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving_load import ROOT, DidNotStart, free_port, running

_HERE = Path(__file__).parent


class NotInstalled(Exception):
    """A peer cannot be set up here; the message says what is missing."""


@dataclass(frozen=True)
class Peer:
    """One entry of peers.toml."""

    name: str
    program: str
    requirements: list[str]
    ready: str
    path: str
    form: str
    settings: str
    needs: dict[str, str] = field(default_factory=dict)
    """Programs that must be on the PATH, and the Debian packages that bring them."""
    patience: float = 60.0

    @property
    def version(self) -> str:
        return self.requirements[0].partition("==")[2]


def table_of_peers() -> list[Peer]:
    entries = tomllib.loads((_HERE / "peers.toml").read_text())["peer"]
    return [Peer(**entry) for entry in entries]


def installed(peer: Peer) -> Path:
    """The Python of the peer's environment, which is made when it is not there yet. NotInstalled."""
    for program, package in peer.needs.items():
        if shutil.which(program) is None:
            raise NotInstalled(f"needs {program} (Debian package {package})")
    torch = _torch_pin()
    digest = hashlib.sha256("\n".join([torch, sys.version, *peer.requirements]).encode()).hexdigest()
    state = Path(os.environ.get("MODELSERVE_STATE", ROOT / ".modelserve"))
    folder = state / "peers" / peer.name.lower().replace(" ", "-")
    python, stamp = folder / "bin" / "python", folder / "installed"
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f"installing {peer.name} {peer.version} into an environment of its own", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    # Torch first and by its pin, as in the project's own environment: a plain one would bring CUDA.
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch]
    for command in ([sys.executable, "-m", "venv", str(folder)], install, [*install, *peer.requirements]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            shutil.rmtree(folder, ignore_errors=True)
            raise NotInstalled(reason[:200])
    stamp.write_text(digest)
    return python


@contextlib.contextmanager
def serving(peer: Peer, python: Path, bundle: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """The running peer: the URL for predictions, and its pid. NotInstalled when it does not start."""
    port = free_port()
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    command = [str(python), str(_HERE / "peers" / peer.program), str(port), str(bundle)]
    server = running(
        command,
        port,
        peer.ready,
        log=folder / "log",
        patience=peer.patience,
        TMPDIR=str(scratch),
        OMP_NUM_THREADS="1",
    )
    try:
        pid = server.__enter__()
    except DidNotStart as error:
        raise NotInstalled(str(error)) from None
    try:
        yield f"http://127.0.0.1:{port}{peer.path}", pid
    finally:
        server.__exit__(None, None, None)


def _torch_pin() -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))
