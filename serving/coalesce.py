"""Turns the many small lookups of one tick of the event loop into one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


class Coalescer(Generic[Item, Found]):
    """`ask(items)` gives one result an item, in order; `flush` gets the items of everybody who asked.

    Zero-wait as the batcher: the first question of a tick sends at its end; while a round trip is under way,
    questions gather for the next one. `flush` must not raise.
    """

    def __init__(self, flush: Callable[[list[Item]], Awaitable[Sequence[Found]]]) -> None:
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[Sequence[Found]]]] = []
        self._task: asyncio.Task[None] | None = None

    def ask(self, items: Sequence[Item]) -> asyncio.Future[Sequence[Found]]:
        future: asyncio.Future[Sequence[Found]] = self._loop.create_future()
        self._waiting.append((items, future))
        if self._task is None:
            self._task = self._loop.create_task(self._run())
        return future

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                results = await self._flush([item for items, _ in waiting for item in items])
                start = 0
                for items, future in waiting:
                    if not future.done():
                        future.set_result(results[start : start + len(items)])
                    start += len(items)
        finally:
            self._task = None
