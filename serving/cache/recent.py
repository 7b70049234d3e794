"""The answers of the last second in this process: equal requests need no parsing, no model, no Redis.

The key is the request's body as it was sent: what the same client sends twice is the same to the byte, and
making the canonical key of a row takes longer than all of this.

Two generations in turn make up the second: none of the entries has a time of its own, and dropping a whole
generation costs nothing. An answer is kept for half of the lifetime at least, unless there are too many, and
the whole of it at most, whether anybody asks or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_MOST_BYTES = 8 << 20
"""Of the bodies and answers of one generation; when it is full, the next one begins early."""
_LARGEST_BYTES = _MOST_BYTES // 8
"""Of one body with its answer: a few larger ones would leave no room for the others."""


class RecentAnswers:
    """`lifetime` in seconds; answers of more than `largest` bytes a row are not kept. `later` calls a
    function after so many seconds; None: by the running event loop."""

    __slots__ = ("_bytes", "_half", "_largest", "_later", "_newer", "_older", "_turning")

    def __init__(
        self,
        lifetime: float,
        largest: int,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._half = lifetime / 2
        self._largest = largest
        self._newer: dict[bytes, tuple[bytes, int]] = {}
        self._older: dict[bytes, tuple[bytes, int]] = {}
        self._bytes = 0
        self._later = later or asyncio.get_running_loop().call_later
        self._turning = False

    def get(self, body: bytes) -> tuple[bytes, int] | None:
        """The answer to that body, and how many rows it has."""
        return self._newer.get(body) or self._older.get(body)

    def put(self, body: bytes, answer: bytes, rows: int) -> None:
        size = len(body) + len(answer)
        if len(answer) > self._largest * rows or size > _LARGEST_BYTES or body in self._newer:
            return
        if self._bytes + size > _MOST_BYTES:
            self._next()
        self._newer[body] = (answer, rows)
        self._bytes += size
        if not self._turning:
            self._turning = True
            self._later(self._half, self._turn)

    def _turn(self) -> None:
        self._next()
        self._turning = bool(self._older)
        if self._turning:
            self._later(self._half, self._turn)

    def _next(self) -> None:
        self._older, self._newer, self._bytes = self._newer, {}, 0
