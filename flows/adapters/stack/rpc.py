"""XML-RPC over a unix socket, as supervisord speaks it. One connection a call: it closes idle ones."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any


def call(path: Path, method: str, *arguments: Any) -> Any:
    """The result of `method`. Raises OSError when nobody listens, xmlrpc.client.Fault when it refuses."""
    with xmlrpc.client.ServerProxy("http://supervisor/RPC2", transport=_UnixTransport(path)) as proxy:
        function: Any = proxy
        for name in method.split("."):
            function = getattr(function, name)
        return function(*arguments)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _UnixConnection(self._path)
        self._connection = host, connection  # closed with the proxy
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise
