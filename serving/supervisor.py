"""Several workers behind one port: started, watched, restarted, and stopped together.

The parent holds the listening socket and loads no model. A worker starts to accept when its model is warm, so
that a restart is never seen by a client. A worker that ends by itself is started again, after a pause that
grows while it keeps happening, and counted in `modelserve_worker_restarts_total`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from prometheus_client.multiprocess import mark_process_dead

from serving.errors import StartupError
from serving.listening import listening
from serving.settings import Settings

logger = logging.getLogger("serving.supervisor")

SOCKET_VARIABLE = "MODELSERVE_SOCKET_FD"
READY_VARIABLE = "MODELSERVE_READY_FD"
RESTARTS_VARIABLE = "MODELSERVE_WORKER_RESTARTS"
_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_POLL_SECONDS = 0.1


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    started: float


class Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: list[Worker] = []
        self._stopping = False
        self._served = False
        self._pause = _FIRST_PAUSE
        self._due: list[float] = []

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; 0 when every worker ended well."""
        if self._settings.secret is None:
            os.environ["SERVING_SECRET"] = self._settings.shared_secret.decode()
        metrics = tempfile.mkdtemp(prefix="metrics-")
        os.environ[_METRICS_VARIABLE] = metrics
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        try:
            listener = listening(self._settings)
        except StartupError as error:
            logger.error("cannot start: %s", error)
            return 1
        try:
            return self._supervise(listener, metrics)
        finally:
            listener.close()
            shutil.rmtree(metrics, ignore_errors=True)

    def _supervise(self, listener: socket.socket, metrics: str) -> int:
        ready_read, ready_write = os.pipe()
        os.set_blocking(ready_read, False)
        selector = selectors.DefaultSelector()
        selector.register(ready_read, selectors.EVENT_READ)
        for _ in range(self._settings.workers):
            self._start(listener, ready_write, restarted=False)
        code = 0
        while self._workers or self._due:
            if selector.select(_POLL_SECONDS) and os.read(ready_read, 64):
                self._served = True
            for worker in [worker for worker in self._workers if worker.process.poll() is not None]:
                self._workers.remove(worker)
                mark_process_dead(worker.process.pid, metrics)  # type: ignore[no-untyped-call]
                code = self._ended(worker, code)
            now = time.monotonic()
            for due in [due for due in self._due if due <= now and not self._stopping]:
                self._due.remove(due)
                self._start(listener, ready_write, restarted=True)
            if self._stopping:
                self._due.clear()
        selector.close()
        os.close(ready_read)
        os.close(ready_write)
        return code

    def _start(self, listener: socket.socket, ready: int, *, restarted: bool) -> None:
        environment = dict(os.environ)
        environment[SOCKET_VARIABLE] = str(listener.fileno())
        environment[READY_VARIABLE] = str(ready)
        if restarted:
            environment[RESTARTS_VARIABLE] = "1"
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", "serve"], env=environment, pass_fds=(listener.fileno(), ready)
        )
        self._workers.append(Worker(process, time.monotonic()))

    def _ended(self, worker: Worker, code: int) -> int:
        """What follows from the end of a worker; the exit code so far."""
        status = worker.process.returncode
        if self._stopping:
            return code or (0 if status == 0 else 1)
        if not self._served and status == 1:
            # It has said why in the log, and another try would end the same.
            self._stop(signal.SIGTERM)
            return 1
        if time.monotonic() - worker.started > 60:
            self._pause = _FIRST_PAUSE
        logger.error(
            "a worker ended; it is started again",
            extra={"pid": worker.process.pid, "exit_code": status, "pause_seconds": self._pause},
        )
        self._due.append(time.monotonic() + self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return code

    def _signalled(self, number: int, _: object) -> None:
        self._stop(number)

    def _stop(self, number: int) -> None:
        self._stopping = True
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(number)
