"""Real parts that several integration tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.s3_server import run_s3

ROOT = Path(__file__).parents[2]
TypeIn = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server from the wheel, with one account, stopped by its pid."""
    yield from run_s3(tmp_path_factory.mktemp("s3"))


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Environments are made once for all tests."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def type_in(state: Path, tmp_path: Path) -> TypeIn:
    """As somebody types it, with no stack running: exit code, and all that is said."""

    def call(*arguments: object) -> tuple[int, str]:
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        done = subprocess.run(
            [sys.executable, "-c", "from flows.terminal.cli import main; main()", *map(str, arguments)],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "HOME": str(tmp_path),
                "MODELSERVE_STATE": str(state),
                **pip,
            },
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return call
