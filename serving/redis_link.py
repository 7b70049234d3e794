"""The one way to Redis: short timeouts and a circuit breaker. A dead or slow Redis costs little, once.

Redis is never needed for a prediction. Callers get RedisAbsent at once while the circuit is open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger("serving.redis")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


class RedisAbsent(Exception):
    """Redis does not answer, or did not lately."""


class Breaker:
    """Open after a failure, for a time that doubles with each further one; one trial when it has passed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause = _FIRST_PAUSE
        self._until = 0.0
        self._trial = False

    def closed(self) -> bool:
        """Whether a call may be made. The first caller after a pause is the trial; others must not."""
        if self._until == 0.0:
            return True
        if self._trial or self._clock() < self._until:
            return False
        self._trial = True
        return True

    def succeeded(self) -> bool:
        """Note a success; True when it closed the circuit."""
        was_open, self._until, self._trial, self._pause = self._until > 0.0, 0.0, False, _FIRST_PAUSE
        return was_open

    def failed(self) -> bool:
        """Note a failure; True when it opened the circuit."""
        opened = self._until == 0.0
        if not opened and not self._trial:
            return False  # a call from before the circuit opened
        self._until = self._clock() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._trial = False
        return opened


class RedisLink:
    """Lazily connected client. Each use names its own patience."""

    def __init__(self, url: str) -> None:
        import redis.asyncio as redis  # 0.3 s at start that servers without Redis save
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._client: Any = redis.Redis.from_url(
            url, socket_connect_timeout=1.0, socket_timeout=5.0, retry=Retry(NoBackoff(), 0), protocol=2
        )
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError, TimeoutError)
        self.breaker = Breaker()

    async def run(self, operation: Callable[[Any], Awaitable[Any]], seconds: float) -> Any:
        """`await operation(client)` within that time; RedisAbsent when it fails."""
        if not self.breaker.closed():
            raise RedisAbsent("the circuit is open")
        try:
            async with asyncio.timeout(seconds):
                result = await operation(self._client)
        except self._errors as error:
            if self.breaker.failed():
                logger.warning("redis does not answer (%s); going on without it", type(error).__name__)
            raise RedisAbsent(type(error).__name__) from error
        except BaseException:
            # Cancelled or a bug of ours: neither says anything about Redis, but a trial must not stay open.
            self.breaker.failed()
            raise
        if self.breaker.succeeded():
            logger.info("redis answers again")
        return result

    async def close(self) -> None:
        await self._client.aclose()
