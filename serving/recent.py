"""The answers of the last second in this process: hot rows need no round trip to Redis.

Two generations in turn make up the second: none of the entries has a time of its own, and dropping a whole
generation costs nothing. An answer is kept for half of the lifetime at least and the whole of it at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_MOST_BYTES = 8 << 20
"""Of the answers of one generation; when it is full, the next one begins early."""


class RecentAnswers:
    """`lifetime` in seconds."""

    __slots__ = ("_bytes", "_clock", "_half", "_newer", "_older", "_turn")

    def __init__(self, lifetime: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._half = lifetime / 2
        self._newer: dict[bytes, bytes] = {}
        self._older: dict[bytes, bytes] = {}
        self._bytes = 0
        self._clock = clock
        self._turn = self._clock() + self._half

    def get(self, key: bytes) -> bytes | None:
        now = self._clock()
        if now >= self._turn:
            missed = now >= self._turn + self._half
            self._next(now + self._half if missed else self._turn + self._half)
            if missed:
                self._older = {}
        return self._newer.get(key) or self._older.get(key)

    def put(self, key: bytes, answer: bytes) -> None:
        self._newer[key] = answer
        self._bytes += len(key) + len(answer)
        if self._bytes > _MOST_BYTES:
            self._next(self._clock() + self._half)

    def _next(self, turn: float) -> None:
        self._older, self._newer, self._bytes = self._newer, {}, 0
        self._turn = turn
