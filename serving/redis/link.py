"""The one way to Redis: short patience and a circuit breaker. A dead or slow Redis costs little, once.

Redis is never needed for a prediction. After a failure every call fails at once (RedisAbsent) while a task
beside the traffic tries to reach Redis; no request ever pays for a connection or for a trial.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from serving.redis.wire import RedisRefused, RedisWire, opened

logger = logging.getLogger("serving.redis")

_FIRST_PAUSE = 0.25
_GRACE_SECONDS = 0.001
_LONGEST_PAUSE = 15.0
_CALM_SECONDS = 60.0
_CONNECT_SECONDS = 2.0
_CONNECTIONS = 2
"""As many as have something to do at the same time: rate limits and outcomes; the rest has the wire."""


class RedisAbsent(Exception):
    """Redis does not answer, or did not lately."""


class RedisLink:
    """Each use names its own patience. `connect` before the first one; until then Redis counts as absent."""

    def __init__(self, url: str) -> None:
        import redis.asyncio as redis  # 0.3 s at start that servers without Redis save
        from redis.asyncio.connection import parse_url
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._client: Any = redis.Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=5.0,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._options: dict[str, Any] = dict(parse_url(url))
        self._wire: RedisWire | None = None
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, RedisRefused, OSError, TimeoutError)
        self._open = True
        self._opened = 0.0
        self._pause = _FIRST_PAUSE
        self._search: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Try once to reach Redis; when it is not there, go on trying in the background."""
        if not await self._reached():
            logger.warning("redis is not there; going on without it")
            self._look()

    async def run(self, operation: Callable[[Any], Awaitable[Any]], seconds: float) -> Any:
        """`await operation(client)` within that time; RedisAbsent when it fails."""
        if self._open:
            raise RedisAbsent("the circuit is open")
        try:
            async with asyncio.timeout(seconds):
                return await operation(self._client)
        except self._errors as error:
            raise self._lost(error) from error

    async def command(self, packed: bytes, seconds: float) -> Any:
        """As `run`, for one packed command on the hot path's own connection; its reply."""
        if self._open or self._wire is None:
            raise RedisAbsent("the circuit is open")
        reply = self._wire.send(packed)
        timer = self._wire.loop.call_later(seconds, self._late, reply)
        try:
            return await reply
        except self._errors as error:
            raise self._lost(error) from error
        finally:
            timer.cancel()

    def _late(self, reply: asyncio.Future[Any]) -> None:
        """The patience is over. If it was this process that was late, the reply lies unread in the socket:
        timers come before sockets, so the sockets get a turn first."""
        if not reply.done():
            asyncio.get_running_loop().call_later(_GRACE_SECONDS, _expire, reply)

    async def close(self) -> None:
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        if self._wire is not None:
            self._wire.close()
        await self._client.aclose()

    def _lost(self, error: Exception) -> RedisAbsent:
        if not self._open:
            logger.warning("redis does not answer (%s); going on without it", type(error).__name__)
            self._look()
        return RedisAbsent(type(error).__name__)

    def _look(self) -> None:
        """Open the circuit and look for Redis until it answers."""
        now = time.monotonic()
        if now - self._opened > _CALM_SECONDS:
            self._pause = _FIRST_PAUSE
        self._open, self._opened = True, now
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self._search = asyncio.get_running_loop().create_task(self._until_reached())

    async def _until_reached(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            if await self._reached():
                logger.info("redis answers again")
                return

    async def _reached(self) -> bool:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.gather(*(self._client.ping() for _ in range(_CONNECTIONS)))
                self._wire = await opened(self._options)
        except self._errors:
            return False
        self._open = False
        return True


def _expire(reply: asyncio.Future[Any]) -> None:
    if not reply.done():
        reply.set_exception(TimeoutError("no reply in time"))
