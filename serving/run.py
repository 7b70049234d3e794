"""Read the environment and start: one process, or a supervisor of several."""

from __future__ import annotations

import logging
import os
import socket
import sys

from pydantic import ValidationError

from serving.errors import StartupError
from serving.listening import listening
from serving.logs import configure_logs
from serving.settings import Settings


def serve() -> int:
    """Serve until told to stop; the exit code."""
    try:
        settings = Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        for detail in error.errors():
            name = "SERVING_" + "_".join(str(part) for part in detail["loc"]).upper()
            print(f"{name}: {detail['msg']}; set it in the environment", file=sys.stderr)
        return 2
    configure_logs({"model": settings.model or "", "version": settings.version})
    inherited = os.environ.pop("MODELSERVE_SOCKET_FD", None)
    if inherited is None and settings.workers > 1:
        from serving.supervisor import Supervisor

        return Supervisor(settings).run()
    # Threads of one matrix product wait asleep: spinning would take the CPU from the event loop.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from serving.server import ModelServer

    if inherited is None:
        try:
            return ModelServer(settings).run([listening(settings)])
        except StartupError as error:
            logging.getLogger("serving").error("cannot start: %s", error)
            return 1
    listener = socket.socket(fileno=int(inherited))
    ready = int(os.environ.pop("MODELSERVE_READY_FD"))
    # Programs that a handler starts are not to hold the port.
    listener.set_inheritable(False)
    os.set_inheritable(ready, False)
    return ModelServer(settings).run([listener], ready=ready)
