"""One process that serves: the event loop, the order of start-up, and the way out.

The socket listens before the model is loaded, so that probes get an answer at once. On SIGTERM the server
turns not ready and goes on to take requests for a while, because load balancers need that long to notice;
only then it stops listening, finishes what it has, and exits with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Generator

import uvicorn

from serving.errors import StartupError
from serving.forks import end_children, listening_on, separate_children
from serving.http.edge import Application, Edge
from serving.http.protocol import GuardedProtocol
from serving.self_check import self_check
from serving.service import Service
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.v2.routes import OpenInference

logger = logging.getLogger("serving")

_LONGEST_SETTLE_SECONDS = 5.0
_UNREAD_SECONDS = 60.0
"""Connections of clients that have read none of their answers for that long are closed."""
BACKLOG = 2048


class UvicornServer(uvicorn.Server):
    """uvicorn without its signal handling: it would stop listening at once and die of the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in getattr(self, "servers", []):
            for listener in server.sockets:
                listening_on(listener.getsockname()[1])


class ModelServer:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.service = Service(settings, Telemetry(), self_check)
        inference = OpenInference(self.service)
        edge = Edge(self.service, inference, lambda: _application(self.service, inference))
        self._edge = edge
        config = uvicorn.Config(
            edge,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(settings.keep_alive_seconds),
            backlog=BACKLOG,
        )
        self._server = UvicornServer(config)
        self._code = 0
        self._ready: int | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None

    def run(
        self, sockets: list[socket.socket] | None = None, *, signals: bool = True, ready: int | None = None
    ) -> int:
        """Serve until SIGTERM or SIGINT; the process's exit code.

        A worker of a supervisor gets the socket to accept from, and in `ready` the descriptor to which it
        writes when it is warm. It accepts only from then on: the other workers answer meanwhile.
        """
        self._ready = ready
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            return runner.run(self._serve(sockets, signals))

    async def _serve(self, sockets: list[socket.socket] | None, signals: bool) -> int:
        loop = asyncio.get_running_loop()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.leave)
            # Before the model is loaded, which may fork.
            separate_children(self._settings.port if sockets is None else sockets[0].getsockname()[1])
        start = loop.create_task(self._start())
        guard = loop.create_task(self._guard())
        try:
            if self._ready is not None:
                while not start.done() and not self._server.should_exit:
                    await asyncio.sleep(0.01)
                if self._server.should_exit:
                    if not start.done():
                        _flush_and_leave(0)
                    return self._code
                os.write(self._ready, b"R")
            await self._server.serve(sockets)
        except SystemExit as error:
            # uvicorn has logged why: nearly always the port.
            return int(error.code or 1)
        finally:
            guard.cancel()
            if signals:
                await asyncio.to_thread(end_children)
        if not start.done():
            # The loading thread cannot be interrupted, and nothing that it does must be finished.
            logger.info("stopped while starting")
            _flush_and_leave(0)
        busy = self.service.busy()
        await self.service.stop()
        if busy and signals:
            # The model still runs in its thread, inside of native code that must not see the interpreter end.
            _flush_and_leave(self._code)
        return self._code

    async def _start(self) -> None:
        try:
            await self.service.start()
            self._preparing = asyncio.get_running_loop().create_task(self._edge.prepare())
        except StartupError as error:
            logger.error("cannot start: %s", error)
            self._code = 1
            self._server.should_exit = True
        except Exception:
            logger.exception("cannot start")
            self._code = 1
            self._server.should_exit = True

    async def _guard(self) -> None:
        """Close connections whose request head does not arrive: uvicorn would keep them for ever."""
        limit = self._settings.header_seconds
        parent = os.getppid()
        while True:
            await asyncio.sleep(min(1.0, limit / 2, self._settings.keep_alive_seconds / 2))
            if self._ready is not None and os.getppid() != parent:
                self.leave()  # the supervisor was killed: workers must not be left behind
            now = time.monotonic()
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.close_if_head_is_late(now - limit)
                    connection.close_if_idle(now - self._settings.keep_alive_seconds)
                    connection.close_if_unread(now - _UNREAD_SECONDS)

    def leave(self) -> None:
        """Begin to drain; what SIGTERM does."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    def stop_now(self) -> None:
        """Stop without draining; may be called from another thread."""
        self._server.should_exit = True

    async def _leave(self) -> None:
        drain = self._settings.drain_seconds
        loading = self.service.state == "starting"
        self.service.drain()
        logger.info("draining", extra={"drain_seconds": drain})
        until = time.monotonic() + drain
        if not loading:
            await asyncio.sleep(min(drain / 3, _LONGEST_SETTLE_SECONDS))
        self._server.config.timeout_graceful_shutdown = max(1, int(until - time.monotonic()))
        self._server.should_exit = True


def _application(service: Service, inference: OpenInference) -> Application:
    """FastAPI's part. Its import takes a while, so it begins when predictions are served."""
    from serving.app import make_app

    return make_app(service, inference)


def _flush_and_leave(code: int) -> None:
    end_children(all_at_once=True)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
