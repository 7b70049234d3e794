"""Answers of equal rows, kept in Redis and computed once when several clients ask at the same time.

Each row is cached by itself, so a request may be half cached. The key covers everything that decides the
answer: model, version, the bundle's digest, the processing version, and the canonical bytes of the inputs.
There is no invalidation: another bundle has other keys, and the rest is the time to live. What this process
has seen within the last second it does not ask for again.

A lookup is not free: it takes a small model longer than the answer. With `redis: when_cheaper` such rows are
not looked up, and the last second is all that is remembered.

Redis may be gone or slow at any time. Then rows are computed as if nothing were cached.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from serving.coalesce import Coalescer
from serving.codec import Codec
from serving.errors import Expired
from serving.model import LoadedModel
from serving.recent import RecentAnswers
from serving.redis_link import RedisAbsent, RedisLink
from serving.redis_wire import bulk, packed
from serving.rows import Payload, Result
from serving.telemetry import Telemetry

logger = logging.getLogger("serving.cache")

_MOST_WAITING_WRITES = 4096
_WRITE_SECONDS = 1.0
_GATHER_SECONDS = 0.02
"""Nobody waits for a write, and one of many rows costs little more than one of a few."""
_STORE = b"for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i], 'EX', ARGV[#ARGV]) end"
"""One command for all writes of a while: building one for each would cost more than the prediction."""
_MGET, _EVAL, _SCRIPT = bulk(b"MGET"), bulk(b"EVAL"), bulk(_STORE)
_DIGEST_BYTES = 20
_RECENT_SECONDS = 1.0
"""By so much an answer from Redis may outlive its time there."""
_LOOKUP_SECONDS = 20e-6
"""CPU time of this process for a row that is looked up, not found, and stored, in trips of many rows
(`make bench-serving`, features: all misses less none)."""
_FIRST = (0,)
Compute = Callable[[Payload, Sequence[int]], Awaitable[Result]]
"""Runs some rows of a request; told which rows of it they are."""


class PredictionCache:
    """`announce` tells the batcher how many requests are being looked up, and may soon need the model."""

    def __init__(
        self,
        link: RedisLink,
        loaded: LoadedModel,
        version: str,
        telemetry: Telemetry,
        announce: Callable[[int], None],
    ) -> None:
        spec = loaded.spec
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._spec = spec.serving.cache
        self._announce = announce
        row_seconds = loaded.row_seconds()
        cheap = row_seconds is not None and row_seconds < _LOOKUP_SECONDS
        self.asks = not cheap or self._spec.redis == "always"
        """Whether Redis is asked, by `fragments`, or the memory of this process alone, by `remembered`."""
        if cheap and self.asks:
            logger.info(
                "a lookup in Redis takes longer than the model; `serving.cache.redis: when_cheaper` saves it",
                extra={"row_seconds": row_seconds, "lookup_seconds": _LOOKUP_SECONDS},
            )
        self._codec: Codec = loaded.codec
        self._telemetry = telemetry
        release = "\0".join((spec.name, version, loaded.bundle.sha256, spec.serving.processing_version))
        identity = hashlib.blake2b(release.encode(), digest_size=32).digest()
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=identity)
        prefix = f"predictions:{spec.name}-v{version}:".encode()
        # All keys have one length, so the part before the digest is packed once for all of them.
        self._head = b"$%d\r\n%s" % (len(prefix) + _DIGEST_BYTES, prefix)
        self._recent = RecentAnswers(_RECENT_SECONDS)
        self._lookups: Coalescer[bytes, bytes | None] = Coalescer(self._fetch)
        self._writes: list[tuple[bytes, bytes]] = []
        self._writer: asyncio.Task[None] | None = None
        self._flying: dict[bytes, asyncio.Future[bytes]] = {}

    def key(self, payload: Payload, row: int) -> bytes:
        """The row's key, packed as an argument for Redis."""
        state = self._hash.copy()
        state.update(self._codec.canonical(payload, row))
        return b"%s%s\r\n" % (self._head, state.digest())

    def remembered(self, payload: Payload) -> tuple[list[bytes], list[bytes] | None]:
        """The rows' keys, and the predictions as JSON if all of them are in this process's memory."""
        keys = [self.key(payload, row) for row in range(payload.count)]
        found = [fragment for key in keys if (fragment := self._recent.get(key)) is not None]
        if len(found) < len(keys):
            return keys, None
        self._telemetry.count("cache_hits", len(keys))
        return keys, found

    def remember(self, keys: Sequence[bytes], result: Result) -> list[bytes]:
        """Keep what was computed for the rows of these keys, as JSON, which this gives."""
        fragments = self._codec.fragments(result)
        for key, fragment in zip(keys, fragments, strict=True):
            if len(fragment) <= self._spec.max_value_bytes:
                self._recent.put(key, fragment)
        self._telemetry.count("cache_misses", len(keys))
        return fragments

    async def fragments(
        self, payload: Payload, deadline: float, compute: Compute
    ) -> tuple[list[bytes], bool]:
        """Each row's prediction as JSON, and whether none had to be computed for this request."""
        if payload.count == 1:
            key = self.key(payload, 0)
            recent = self._recent.get(key)
            if recent is not None:
                self._telemetry.count("cache_hits")
                return [recent], True
            if key not in self._flying:
                return await self._single(key, payload, compute)
            keys = [key]
        else:
            keys = [self.key(payload, row) for row in range(payload.count)]
        return await self._several(keys, payload, deadline, compute)

    async def close(self) -> None:
        while self._writer is not None:
            await self._writer

    async def _single(self, key: bytes, payload: Payload, compute: Compute) -> tuple[list[bytes], bool]:
        """The usual request has one row, and no equal one is under way: the same as below in fewer steps."""
        self._flying[key] = self._loop.create_future()
        fragment: bytes | None = None
        try:
            [fragment] = await self._lookups.ask((key,))
            if fragment is not None:
                self._recent.put(key, fragment)
                self._telemetry.count("cache_hits")
                return [fragment], True
            [fragment] = self._codec.fragments(await compute(payload, _FIRST))
        finally:
            self._land(key, fragment)
        self._telemetry.count("cache_misses")
        self._keep(key, fragment)
        return [fragment], False

    async def _several(
        self, keys: list[bytes], payload: Payload, deadline: float, compute: Compute
    ) -> tuple[list[bytes], bool]:
        answers: list[bytes | None] = [None] * payload.count
        mine: list[int] = []
        theirs: list[tuple[int, asyncio.Future[bytes]]] = []
        flying = self._flying
        for row, key in enumerate(keys):
            answers[row] = self._recent.get(key)
            if answers[row] is not None:
                continue
            under_way = flying.get(key)
            if under_way is not None:
                theirs.append((row, under_way))
            else:
                flying[key] = self._loop.create_future()
                mine.append(row)
        missing: list[int] = []
        try:
            if mine:
                for row, found in zip(
                    mine, await self._lookups.ask([keys[row] for row in mine]), strict=True
                ):
                    if found is None:
                        missing.append(row)
                    else:
                        answers[row] = found
                        self._recent.put(keys[row], found)
                        self._land(keys[row], found)
            if missing:
                await self._compute(payload, missing, keys, answers, compute)
        finally:
            for row in mine:
                self._land(keys[row], None)
        alone = [row for row, future in theirs if not await self._follow(row, future, deadline, answers)]
        if alone:
            # Whoever computed these has failed or left; that says nothing about our own request.
            await self._compute(payload, alone, keys, answers, compute)
        computed = len(missing) + len(alone)
        if computed:
            self._telemetry.count("cache_misses", computed)
        if computed < payload.count:
            self._telemetry.count("cache_hits", payload.count - computed)
        return [answer for answer in answers if answer is not None], computed == 0

    async def _compute(
        self,
        payload: Payload,
        rows: list[int],
        keys: list[bytes],
        answers: list[bytes | None],
        compute: Compute,
    ) -> None:
        part = payload if len(rows) == payload.count else payload.pick(rows)
        result = await compute(part, rows)
        for row, fragment in zip(rows, self._codec.fragments(result), strict=True):
            answers[row] = fragment
            self._land(keys[row], fragment)
            self._keep(keys[row], fragment)

    def _keep(self, key: bytes, fragment: bytes) -> None:
        """Remember it, and write it to Redis some time soon."""
        if len(fragment) > self._spec.max_value_bytes:
            return
        self._recent.put(key, fragment)
        if len(self._writes) < _MOST_WAITING_WRITES:
            self._writes.append((key, fragment))
            if self._writer is None:
                self._writer = self._loop.create_task(self._write())

    def _land(self, key: bytes, fragment: bytes | None) -> None:
        """End the flight of a key; None when its answer did not come."""
        future = self._flying.pop(key, None)
        if future is not None and not future.done():
            if fragment is None:
                future.cancel()
            else:
                future.set_result(fragment)

    async def _follow(
        self, row: int, future: asyncio.Future[bytes], deadline: float, answers: list[bytes | None]
    ) -> bool:
        done, _ = await asyncio.wait((future,), timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise Expired("the deadline passed while an equal request was computed")
        if future.cancelled():
            return False
        answers[row] = future.result()
        return True

    async def _fetch(self, keys: list[bytes]) -> Sequence[bytes | None]:
        self._announce(len(keys))
        try:
            command = packed([_MGET, *keys])
            found: list[bytes | None] = await self._link.command(command, self._spec.timeout_seconds)
            return found
        except RedisAbsent:
            self._telemetry.count("cache_errors")
            return [None] * len(keys)
        finally:
            self._announce(-len(keys))

    async def _write(self) -> None:
        try:
            while self._writes:
                await asyncio.sleep(_GATHER_SECONDS)
                writes, self._writes = self._writes, []
                await self._link.command(self._stored(writes), _WRITE_SECONDS)
        except RedisAbsent:
            self._writes.clear()
            self._telemetry.count("cache_errors")
        finally:
            self._writer = None

    def _stored(self, writes: list[tuple[bytes, bytes]]) -> bytes:
        keys, fragments = zip(*writes, strict=True)
        values = [bulk(fragment) for fragment in fragments]
        lifetime = bulk(b"%d" % self._spec.ttl_seconds)
        return packed([_EVAL, _SCRIPT, bulk(b"%d" % len(keys)), *keys, *values, lifetime])
