"""What the monitoring suite shares: where the files are, free ports, and programs that are really run."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

MONITORING = Path(__file__).parents[2] / "monitoring"


@pytest.fixture(scope="session")
def monitoring() -> Path:
    return MONITORING


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a program; a missing one fails the test and says what to install."""

    def find(name: str) -> str:
        found = shutil.which(name)
        package = "prometheus" if name in ("prometheus", "promtool") else "prometheus-alertmanager"
        assert found, f"{name} is not installed: apt-get install {package}"
        return found

    return find


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Import `monitoring/<name>.py`, which is a program and not part of the package."""

    def load(name: str) -> ModuleType:
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, MONITORING / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], ready_url: str, log: Path) -> Iterator[None]:
    """Run a program until the block ends; it is ready when `ready_url` answers 200."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, ready_url, log)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended at once:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer within 60 s:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def run_until_ready() -> Callable[..., object]:
    return running


@pytest.fixture(scope="session")
def a_free_port() -> Callable[[], int]:
    return free_port
