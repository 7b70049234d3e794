"""Who may ask, and how often.

Keys stand in a file, one a line: `name:key` or `name:sha256:<hex of the key's sha256>`. It is read again
when it changes, so that keys can be rotated without a restart. Probes and /metrics need no key: a health
check that fails for want of a password takes a healthy server out of service.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.errors import RateLimited, StartupError, Unauthorized
from serving.exchange import Scope
from serving.redis.coalesce import Coalescer
from serving.redis.link import RedisAbsent, RedisLink
from serving.telemetry import Telemetry

OPEN_ROUTES = frozenset({"/", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
_REREAD_SECONDS = 5.0
_REDIS_SECONDS = 0.01
_MOST_CLIENTS = 10_000
WRONG_KEYS_PER_SECOND = 50
"""Of one address; more get 429. A right key is never refused for the wrong ones of its neighbours."""


class ApiKeys:
    """Checks `Authorization: Bearer KEY` or `X-API-Key: KEY`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = 0.0
        self._looked = 0.0
        self._keys: list[tuple[bytes, str]] = []
        self._read()

    def client(self, headers: dict[bytes, bytes]) -> str:
        """The name of the key's owner; Unauthorized without a valid key."""
        now = time.monotonic()
        if now - self._looked > _REREAD_SECONDS:
            self._looked = now
            try:
                if self._path.stat().st_mtime != self._changed:
                    self._read()
            except (OSError, StartupError, UnicodeDecodeError):
                pass  # a file in the middle of its rotation: the keys read last stay valid
        key = headers.get(b"x-api-key")
        if key is None:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not key:
                raise Unauthorized(
                    "send a key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", headers=_CHALLENGE
                )
        digest = hashlib.sha256(key.strip()).digest()
        found = None
        # All are compared, each in constant time: neither content nor place of a key shows in the timing.
        for known, name in self._keys:
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise Unauthorized("this key is not known here", headers=_CHALLENGE)
        return found

    def _read(self) -> None:
        try:
            self._changed = self._path.stat().st_mtime
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise StartupError(
                f"{self._path}: cannot be read ({error.strerror}); check SERVING_API_KEYS_FILE"
            ) from None
        keys = []
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, _, key = text.partition(":")
            if not name or not key:
                raise StartupError(f"{self._path}:{number}: expected 'name:key'")
            if key.startswith("sha256:"):
                try:
                    keys.append((bytes.fromhex(key.removeprefix("sha256:")), name))
                except ValueError:
                    raise StartupError(f"{self._path}:{number}: not a sha256 in hex") from None
            else:
                keys.append((hashlib.sha256(key.encode()).digest(), name))
        if not keys:
            raise StartupError(f"{self._path}: no keys in it; add a line 'name:key'")
        self._keys = keys


class Buckets:
    """So many requests a second and client, counted by this process alone: a bucket of tokens each, of one
    second. Of more clients than are remembered the longest silent ones are forgotten, with full buckets."""

    def __init__(self, per_second: float) -> None:
        self._limit = per_second
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> bool:
        """Whether the client may ask now."""
        now = time.monotonic()
        tokens, at = self._clients.pop(client, (self._limit, now))
        tokens = min(self._limit, tokens + (now - at) * self._limit)
        allowed = tokens >= 1.0
        self._clients[client] = (tokens - allowed, now)
        if len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        return allowed


class RateLimit:
    """So many requests a second and client over all replicas; a sliding window of two counters in Redis.

    Without Redis, and while it is slow, each process counts by itself: a client gets the limit of each. That
    is no limit for all of them, and it is a limit; a metric says how often it was used.
    """

    def __init__(self, link: RedisLink | None, model: str, per_second: int, telemetry: Telemetry) -> None:
        self._link = link
        self._prefix = f"rate:{model}:"
        self._limit = per_second
        self._telemetry = telemetry
        self._alone = Buckets(per_second)
        self._counter: Coalescer[str, float] = Coalescer(self._count)

    async def admit(self, client: str) -> None:
        """RateLimited when the client's last second is full."""
        [rate] = await self._counter.ask([client])
        if rate > self._limit:
            raise RateLimited(f"more than {self._limit} requests a second", retry_after=1)

    async def _count(self, clients: list[str]) -> Sequence[float]:
        link = self._link
        try:
            if link is None:
                raise RedisAbsent("there is none")
            rates: Sequence[float] = await link.run(lambda redis: self._ask(redis, clients), _REDIS_SECONDS)
            return rates
        except RedisAbsent:
            self._telemetry.count("rate_limited_alone", len(clients))
            return [0.0 if self._alone.take(client) else math.inf for client in clients]

    async def _ask(self, redis: Any, clients: list[str]) -> list[float]:
        now = time.time()
        second = int(now)
        unique = list(dict.fromkeys(clients))
        pipeline = redis.pipeline(transaction=False)
        for client in unique:
            key = f"{self._prefix}{client}:"
            pipeline.get(f"{key}{second - 1}")
            pipeline.incrby(f"{key}{second}", clients.count(client))
            pipeline.expire(f"{key}{second}", 3)
        replies = await pipeline.execute()
        rates = []
        seen: dict[str, int] = {}
        for client in clients:
            place = unique.index(client) * 3
            seen[client] = seen.get(client, 0) + 1
            # Of several requests in one round trip, the first counts less than the last.
            current = int(replies[place + 1]) - clients.count(client) + seen[client]
            before = int(replies[place] or 0)
            rates.append(before * (1.0 - (now - second)) + current)
        return rates


def client_of(scope: Scope, headers: dict[bytes, bytes], proxies: int) -> str:
    """Whom to count a request to when there are no keys: the peer, or whom the first of so many trusted
    proxies names. One that came by fewer of them is its peer's."""
    if proxies:
        named = headers.get(b"x-forwarded-for", b"").split(b",")
        if len(named) >= proxies and (address := named[-proxies].strip()):
            return address.decode("latin-1")[:64]
    peer = scope.get("client")
    return str(peer[0]) if peer else "unknown"
