"""Processes of this machine: who holds a port, and which processes belong to a stack.

A stack's processes carry a mark in their environment, so they are found even after their supervisord was
killed. Only processes with the mark of this very state folder are ever signalled.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from flows.adapters.stack.files import MARK
from flows.domain.errors import PortTaken
from flows.settings import LOOPBACK, PREFIX


def check_ports(ports: Iterable[tuple[str, int]]) -> None:
    """Raise PortTaken, naming port, holder and remedy, when one of `(part, port)` cannot be bound."""
    problems = []
    for part, port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                problems.append(
                    f"port {port} is taken by {holder(port)}; stop it or set {PREFIX}PORTS__{part.upper()}"
                )
    if problems:
        raise PortTaken("; ".join(problems))


def holder(port: int) -> str:
    """Name and pid of the process that listens on `port`, as far as we may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        connections = []
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
        if listens and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                break
    return "a process of another user"


def members(state: Path) -> list[psutil.Process]:
    """Every living process that carries the mark of this stack, except ourselves and our ancestors."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in ours:
            continue
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(state):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone in the meantime, or another user's
    return found


def reap(processes: Iterable[psutil.Process], seconds: float = 10) -> int:
    """End these processes, politely first; the number of those that were alive.

    PostgreSQL goes last and gets its own signal for "now, but cleanly": the others may still be using it.
    """
    alive = [process for process in processes if process.is_running()]
    databases = [process for process in alive if _name(process) == "postgres"]
    others = [process for process in alive if process not in databases]
    for group, polite in ((others, signal.SIGTERM), (databases, signal.SIGINT)):
        for process in group:
            _send(process, polite)
        for process in (left := _outlast(group, seconds)):
            _send(process, signal.SIGKILL)
        _outlast(left, 5)
    return len(alive)


def _outlast(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that are still alive after `seconds`. A zombie whose parent does not ask for it is not."""
    deadline = time.monotonic() + seconds
    left = processes
    while (left := [process for process in left if _alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
