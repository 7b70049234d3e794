"""Settings of a stack of its own for a test: free ports, a state folder, the images that are prepared."""

from __future__ import annotations

import socket
from pathlib import Path

from flows.settings import Settings

PORTS = (
    "gateway",
    "gateway_admin",
    "prefect",
    "prometheus",
    "alertmanager",
    "alerts",
    "redis",
    "postgres",
)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now; all held at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def stack_variables(state: Path, releases: int) -> dict[str, str]:
    """The environment that makes every `modelserve` command work on this stack alone."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    return {
        "MODELSERVE_STATE": str(state),
        "MODELSERVE_IMAGES_FOLDER": str(Settings().image_storage),
        **{f"MODELSERVE_PORTS__{name.upper()}": str(port) for name, port in ports.items()},
        "MODELSERVE_PORTS__RELEASES": str(releases),
    }
