"""The socket that a server listens on, the same for one worker and for several."""

from __future__ import annotations

import socket

from serving.errors import StartupError
from serving.settings import Settings

_BACKLOG = 2048


def listening(settings: Settings) -> socket.socket:
    """A socket that workers may share: one queue of connections, so none is lost with a worker. `::` is every
    address, of version 4 too. StartupError with what to change when there is none."""
    try:
        return _listening(settings.host, settings.port)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {settings.host} port {settings.port}: {error}; "
            "choose another SERVING_HOST or SERVING_PORT"
        ) from None


def _listening(host: str, port: int) -> socket.socket:
    is_six = ":" in host
    listener = socket.socket(socket.AF_INET6 if is_six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_six:
            # The system's default differs from machine to machine.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
