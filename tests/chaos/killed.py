"""Runs a promotion in a process that dies, like kill -9, before or after its nth write.

The writes are found on the way and not listed by hand: every method that changes the registry or the platform
is wrapped, so a promotion that writes something more has one more point to die at.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

from flows.adapters.local import LocalPlatform
from flows.adapters.registry import Registry, Turn

Moment = Literal["before", "after"]

WRITES = {
    Registry: ("begin", "note", "store_window"),
    Turn: ("record_image", "intend_route", "record_weight", "crown", "end"),
    LocalPlatform: ("start", "stop", "route", "settle"),
}
"""What a promotion writes with. The renewal of its lease is left out: it happens at any time, and changes
nothing that is read after a death."""


def write_sequence(model: str, version: int) -> list[str]:
    """Promote in a process of its own, unharmed; the writes in order, as `method#occurrence`."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    exit_code = _run(_promote_and_report, model, version, sender)
    assert exit_code == 0, f"the promotion ended with {exit_code}"
    seen: list[str] = []
    while receiver.poll():
        seen.append(receiver.recv())
    return seen


def promote_and_die(model: str, version: int, point: str, moment: Moment) -> None:
    """Promote in a process of its own that kills itself around the write `point`."""
    exit_code = _run(_promote_and_die, model, version, point, moment)
    assert exit_code == -signal.SIGKILL, f"it should have died {moment} {point}, and ended with {exit_code}"


def promote_again(model: str, version: int) -> int:
    """The same promotion, by a flow run that nothing happens to; its exit code."""
    return _run(_promote, model, version)


def _run(body: Callable[..., None], *arguments: object) -> int:
    # Forked from a process that has imported everything: an import of Prefect takes longer than a promotion.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flows.promote", "matplotlib.pyplot", __name__])
    process = context.Process(target=body, args=arguments)
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the promotion did not end within two minutes")
    return process.exitcode


def _promote(model: str, version: int) -> None:
    from flows.promote import promote

    promote(model, version)


def _promote_and_report(model: str, version: int, sender: Connection) -> None:
    _around_writes(lambda point, moment: sender.send(point) if moment == "before" else None)
    _promote(model, version)


def _promote_and_die(model: str, version: int, point: str, moment: Moment) -> None:
    def die(here: str, now: str) -> None:
        if (here, now) == (point, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    _around_writes(die)
    _promote(model, version)


def _around_writes(tell: Callable[[str, Moment], None]) -> None:
    """Call `tell` with `method#occurrence` before and after every write of this process."""
    counts: Counter[str] = Counter()

    def wrapped(owner: type, name: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        @functools.wraps(original)
        def write(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            point = f"{name}#{counts[name]}"
            tell(point, "before")
            result = original(*arguments, **named)
            tell(point, "after")
            return result

        return write

    for owner, names in WRITES.items():
        for name in names:
            setattr(owner, name, wrapped(owner, name))
