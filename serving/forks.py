"""What a forked child of the server must not keep: our signal handlers, and our connections.

A handler may use multiprocessing, which forks. The child would inherit the event loop's wake-up descriptor,
and a SIGTERM to it (`with Pool(2)` sends one at its end) would drain the server. It would also hold the
listening socket and every connection open: clients that wait for the end of an answer would wait for the
child, and the port would stay taken when the server has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
import threading
from pathlib import Path

_END_SECONDS = 2.0
_descriptors = Path("/proc/self/fd")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ports: set[int] = set()
_masks = threading.local()


def separate_children(port: int) -> None:
    """From now on children that are forked let go of what belongs to this process's server."""
    if not _ports:
        os.register_at_fork(before=_hold_signals, after_in_parent=_take_signals, after_in_child=_let_go)
    _ports.add(port)


def listening_on(port: int) -> None:
    """The server has this port, which the system may have chosen."""
    if _ports:
        _ports.add(port)


def _hold_signals() -> None:
    """A signal that the child gets before it has let go would still arrive at the parent's event loop."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _take_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _let_go() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    _take_signals()
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for name in os.listdir(_descriptors):
            descriptor = int(name)
            if descriptor != nowhere and _is_ours(descriptor):
                # Replaced and not closed: objects that still name it would close another file one day.
                os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def _is_ours(descriptor: int) -> bool:
    """Whether it is the listening socket, or a connection to it."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        with socket.socket(fileno=os.dup(descriptor)) as found:
            if found.family not in (socket.AF_INET, socket.AF_INET6):
                return False
            return found.getsockname()[1] in _ports
    except OSError:
        return False


def end_children(*, all_at_once: bool = False) -> None:
    """End what a handler has started with multiprocessing and the interpreter would wait for. A pool's
    workers are the interpreter's to end, unless it does not get to it: terminated from outside, they keep
    the pool's locks."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return
    children = [child for child in multiprocessing.active_children() if all_at_once or not child.daemon]
    for child in children:
        if all_at_once:
            child.kill()
        else:
            child.terminate()
    for child in children:
        child.join(0 if all_at_once else _END_SECONDS)
        if child.is_alive():
            child.kill()
