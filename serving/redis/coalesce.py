"""Turns the many small lookups of one tick of the event loop into one round trip."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from serving.inference.reply import Reply

Item = TypeVar("Item")
Found = TypeVar("Found")

_QUIET_TURNS = 2
_MOST_GATHERED = 64
_GATHER_SECONDS = 0.001


class Coalescer(Generic[Item, Found]):
    """`ask(items)` gives one result an item, in order; `flush` gets the items of everybody who asked.

    Zero-wait as the batcher: a round trip starts when the turns of the event loop bring no more questions.
    While one is under way, questions gather for the next. Waking the other process costs as much as several
    predictions, and is the same for one question as for thirty. What `flush` raises, each of
    them gets.
    """

    def __init__(self, flush: Callable[[list[Item]], Awaitable[Sequence[Found]]]) -> None:
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[Sequence[Found]] | Reply]] = []
        self._task: asyncio.Task[None] | None = None

    def ask(self, items: Sequence[Item]) -> asyncio.Future[Sequence[Found]]:
        future: asyncio.Future[Sequence[Found]] = self._loop.create_future()
        self._enter(items, future)
        return future

    def ask_then(self, items: Sequence[Item], then: Callable[[Sequence[Found] | Exception], None]) -> None:
        """As `ask`, with a function that is called with the outcome."""
        self._enter(items, Reply(then))

    def _enter(self, items: Sequence[Item], future: asyncio.Future[Sequence[Found]] | Reply) -> None:
        self._waiting.append((items, future))
        if self._task is None:
            self._task = self._loop.create_task(self._run())

    async def _gathered(self) -> None:
        """Go on when a few turns of the loop have brought nothing, or there is enough for one trip."""
        seen = quiet = 0
        until = time.monotonic() + _GATHER_SECONDS
        while quiet < _QUIET_TURNS and seen < _MOST_GATHERED and time.monotonic() < until:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._gathered()
                waiting, self._waiting = self._waiting, []
                try:
                    results = await self._flush([item for items, _ in waiting for item in items])
                except Exception as error:
                    for _, future in waiting:
                        if not future.done():
                            future.set_exception(error)
                    continue
                start = 0
                for items, future in waiting:
                    if not future.done():
                        future.set_result(results[start : start + len(items)])
                    start += len(items)
        finally:
            self._task = None
