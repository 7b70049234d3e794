"""Real servers for tests: in a thread of the test process (fast), or as the process users start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from serving.server import ModelServer
from serving.service import State
from serving.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def threaded(bundle: Path, **settings: object) -> Iterator[ThreadedServer]:
    server = ThreadedServer(bundle, **settings)
    try:
        yield server
    finally:
        server.stop()


class ThreadedServer:
    """The whole server, uvicorn and sockets included, on a thread with its own event loop."""

    def __init__(self, bundle: Path, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = Settings.model_validate(
            {"bundle": str(bundle), "host": "127.0.0.1", "port": self.port, "version": "7", **settings}
        )
        self.server = ModelServer(self.settings)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 30
        while self.server.service.state is State.STARTING and time.monotonic() < until and self.code is None:
            time.sleep(0.005)
        assert self.server.service.state is State.READY, self.server.service.failure

    def _run(self) -> None:
        self.code = self.server.run(signals=False)

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)  # type: ignore[arg-type]

    def stop(self) -> None:
        self.server.stop_now()
        self._thread.join(15)
        assert not self._thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def process(bundle: Path | str, *, ready: bool = True, **environment: object) -> Iterator[ServerProcess]:
    server = ServerProcess(bundle, **environment)
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        server.kill()


class ServerProcess:
    """`python -m serving` with its environment. `log` is what it wrote to standard error."""

    def __init__(self, bundle: Path | str, **environment: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        variables = {
            "BUNDLE": str(bundle),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "VERSION": "7",
            "DRAIN_SECONDS": "3",
            **{name.upper(): str(value) for name, value in environment.items()},
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVING_")}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving", "serve"],
            cwd=ROOT,
            env=clean | {f"SERVING_{name}": value for name, value in variables.items()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: object) -> None:
        for line in stream:  # type: ignore[attr-defined]
            self._lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def wait_ready(self, seconds: float = 40) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/readyz", timeout=2).status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not ready after {seconds} s:\n{self.log}")

    def wait_exit(self, seconds: float = 20) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with children that hold its standard error
        self.process.wait(10)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
