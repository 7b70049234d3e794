"""A stack of its own for a test session: free ports, a temporary state folder, stopped by its own `down`."""

from __future__ import annotations

import json
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flows.adapters.stack import down
from flows.domain.release import Release
from flows.domain.spec import ModelSpec, parse_spec
from flows.settings import Ports, Settings

STANDIN = Path(__file__).parent / "standin_server.py"
SPEC = """
name: {model}
signature:
  inputs: [{{name: distance, type: number}}]
  outputs: [{{name: late, type: number}}]
resources: {{start_seconds: {start_seconds}, drain_seconds: {drain_seconds}}}
"""


def free_ports() -> Ports:
    """Ports that were free a moment ago, all different."""
    names = [name for name in Ports.model_fields if name != "releases"]
    with ExitStack() as sockets:
        numbers = []
        for _ in names:
            probe = sockets.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            numbers.append(probe.getsockname()[1])
    # Release servers keep their port over restarts, so it must not be one that the system hands out to
    # clients (32768 and up): in the moment between two starts a connection could take it.
    return Ports(**dict(zip(names, numbers, strict=True)), releases=random.randrange(21_000, 26_000, 50))


@contextmanager
def local_settings(**overrides: Any) -> Iterator[Settings]:
    """Settings whose `serving` is the stand-in; whatever was started with them is stopped afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="modelserve-test-"))
    # PostgreSQL runs as another user when we are root.
    folder.chmod(0o711)
    package = folder / "standin" / "serving"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    shutil.copy(STANDIN, package / "__main__.py")
    interpreter = folder / "standin" / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/standin exec {sys.executable} -P "$@"\n')
    interpreter.chmod(0o755)
    values = {"state": folder / "state", "ports": free_ports(), "python": str(interpreter), **overrides}
    settings = Settings(**values)
    try:
        yield settings
    finally:
        down(settings)
        shutil.rmtree(folder, ignore_errors=True)


def release(folder: Path, model: str, version: int, **behaviour: Any) -> Release:
    """A release whose stand-in server behaves as told."""
    bundle = folder / f"{model}-v{version}-bundle"
    bundle.mkdir(parents=True, exist_ok=True)
    (bundle / "behaviour.json").write_text(json.dumps(behaviour))
    return Release(model, version, str(bundle), "0" * 64)


def spec(model: str, start_seconds: float = 20, drain_seconds: float = 5) -> ModelSpec:
    text = SPEC.format(model=model, start_seconds=start_seconds, drain_seconds=drain_seconds)
    return parse_spec(text, "model.yaml")
