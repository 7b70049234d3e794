"""Stands in for a future that nobody awaits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("serving.inference.reply")


class Reply:
    """Calls `then` with the outcome in the turn of the event loop in which it is known. Waking a task takes
    two turns and costs as much as decoding a small request."""

    __slots__ = ("_afterwards", "_done", "_then")

    def __init__(self, then: Callable[[Any], None]) -> None:
        self._then = then
        self._done = False
        self._afterwards: Callable[[Any], object] | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, outcome: Any) -> None:
        self._done = True
        try:
            self._then(outcome)
        except Exception:  # the other requests of the batch wait for theirs
            logger.exception("what follows an outcome failed; its request may have no answer")
        afterwards, self._afterwards = self._afterwards, None
        if afterwards is not None:
            afterwards(self)

    set_exception = set_result

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """One is enough: for the watcher of clients that leave."""
        if self._done:
            callback(self)
        else:
            self._afterwards = callback
