"""The answers of the last second in this process: equal requests need no parsing, no model, no Redis.

The key is the request's body as it was sent: what the same client sends twice is the same to the byte, and
making the canonical key of a row takes longer than all of this.

Two generations in turn make up the second: none of the entries has a time of its own, and dropping a whole
generation costs nothing. An answer is kept for half of the lifetime at least and the whole of it at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_MOST_BYTES = 8 << 20
"""Of the bodies and answers of one generation; when it is full, the next one begins early."""


class RecentAnswers:
    """`lifetime` in seconds; answers of more than `largest` bytes are not kept."""

    __slots__ = ("_bytes", "_clock", "_half", "_largest", "_newer", "_older", "_turn")

    def __init__(self, lifetime: float, largest: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._half = lifetime / 2
        self._largest = largest
        self._newer: dict[bytes, tuple[bytes, int]] = {}
        self._older: dict[bytes, tuple[bytes, int]] = {}
        self._bytes = 0
        self._clock = clock
        self._turn = self._clock() + self._half

    def get(self, body: bytes) -> tuple[bytes, int] | None:
        """The answer to that body, and how many rows it has."""
        now = self._clock()
        if now >= self._turn:
            missed = now >= self._turn + self._half
            self._next(now + self._half if missed else self._turn + self._half)
            if missed:
                self._older = {}
        return self._newer.get(body) or self._older.get(body)

    def put(self, body: bytes, answer: bytes, rows: int) -> None:
        if len(answer) > self._largest:
            return
        self._newer[body] = (answer, rows)
        self._bytes += len(body) + len(answer)
        if self._bytes > _MOST_BYTES:
            self._next(self._clock() + self._half)

    def _next(self, turn: float) -> None:
        self._older, self._newer, self._bytes = self._newer, {}, 0
        self._turn = turn
