"""Answers of equal rows, kept in Redis and computed once when several clients ask at the same time.

Each row is cached by itself, so a request may be half cached. The key covers everything that decides the
answer: model, version, the bundle's digest, the processing version and the canonical bytes of the inputs; and
the secret that the replicas share. There is no invalidation: another bundle has other keys, and the rest is
the time to live.

A lookup is not free: it takes a small model longer than the answer. With `redis: when_cheaper` its rows are
not looked up, and the requests of the last second (recent.py) are all that is remembered.

A usual request (one row, and no equal one under way) has no task here: each step calls the next one.

Redis may be gone or slow at any time. Then rows are computed as if nothing were cached.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from serving.errors import Expired, Problem
from serving.inference.codec import Codec
from serving.inference.model import LoadedModel
from serving.inference.rows import Payload, Result
from serving.redis.coalesce import Coalescer
from serving.redis.link import RedisAbsent, RedisLink
from serving.redis.wire import bulk, packed
from serving.telemetry import Telemetry

logger = logging.getLogger("serving.cache.cache")

_MOST_WAITING_WRITES = 4096
_WRITE_SECONDS = 1.0
_GATHER_SECONDS = 0.02
"""Nobody waits for a write, and one of many rows costs little more than one of a few."""
_STORE = b"for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i], 'EX', ARGV[#ARGV]) end"
"""One command for all writes of a while: building one for each would cost more than the prediction."""
_MGET, _EVAL, _SCRIPT = bulk(b"MGET"), bulk(b"EVAL"), bulk(_STORE)
_DIGEST_BYTES = 20
_LOOKUP_SECONDS = 15e-6
"""CPU time of this process for a row that is looked up, not found, and stored, in trips of many rows
(`make bench-serving`, features: all misses less none)."""


class Question(Protocol):
    """A request that an answer is looked for. One of `found` and `failed` is called, once."""

    payload: Payload
    deadline: float

    def compute(
        self, payload: Payload, rows: Sequence[int] | None, then: Callable[[Result | Problem], None]
    ) -> None:
        """Run some rows of the request, told which rows of it they are when not all, and call the function
        with what came of it. Raises a Problem when they cannot be taken."""

    def found(self, fragments: list[bytes], hit: bool) -> None:
        """Each row's prediction as JSON, and whether none had to be computed for this request."""

    def failed(self, error: Exception) -> None:
        """There is no answer."""


def pays(loaded: LoadedModel) -> bool:
    """Whether the spec wants these rows to be looked up: always, or only if the model takes longer."""
    row_seconds = loaded.row_seconds()
    if row_seconds is None or row_seconds >= _LOOKUP_SECONDS:
        return True
    if loaded.spec.serving.cache.redis == "when_cheaper":
        return False
    logger.info(
        "a lookup in Redis takes longer than the model; `serving.cache.redis: when_cheaper` saves it",
        extra={"row_seconds": row_seconds, "lookup_seconds": _LOOKUP_SECONDS},
    )
    return True


class RedisCache:
    """Remembers for the spec's time to live what any replica has answered."""

    def __init__(
        self,
        link: RedisLink,
        loaded: LoadedModel,
        version: str,
        secret: bytes,
        telemetry: Telemetry,
        announce: Callable[[int], None],
    ) -> None:
        spec = loaded.spec
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._spec = spec.serving.cache
        self._codec: Codec = loaded.codec
        self._telemetry = telemetry
        self._announce = announce
        release = "\0".join((spec.name, version, loaded.bundle.sha256, spec.serving.processing_version))
        # Keyed: who reads Redis could try out names until a key is there, and know who has asked.
        identity = hmac.digest(secret, b"cache\0" + release.encode(), "sha256")
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=identity)
        prefix = f"predictions:{spec.name}-v{version}:".encode()
        # All keys have one length, so the part before the digest is packed once for all of them.
        self._head = b"$%d\r\n%s" % (len(prefix) + _DIGEST_BYTES, prefix)
        self._lookups: Coalescer[bytes, bytes | None] = Coalescer(self._fetch)
        self._writes: list[tuple[bytes, bytes]] = []
        self._writer: asyncio.Task[None] | None = None
        self._flying: dict[bytes, asyncio.Future[bytes] | None] = {}
        """The rows that are under way, and where somebody follows, what tells of their answers."""
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, question: Question) -> None:
        """Tell the question each row's prediction as JSON, some time soon."""
        payload = question.payload
        keys = [self._key(payload, row) for row in range(payload.count)]
        if len(keys) == 1 and keys[0] not in self._flying:
            self._flying[keys[0]] = None
            self._lookups.ask_then(keys, partial(self._looked_up, keys[0], question))
        else:
            task = self._loop.create_task(self._several(keys, question))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _key(self, payload: Payload, row: int) -> bytes:
        """The row's key, packed as an argument for Redis."""
        state = self._hash.copy()
        state.update(self._codec.canonical(payload, row))
        return b"%s%s\r\n" % (self._head, state.digest())

    async def close(self) -> None:
        while self._writer is not None:
            await self._writer

    # ---- one row

    def _looked_up(self, key: bytes, question: Question, found: Sequence[bytes | None] | Exception) -> None:
        if isinstance(found, Exception):
            self._failed(key, question, found)
            return
        [fragment] = found
        if fragment is None:
            try:
                question.compute(question.payload, None, partial(self._computed, key, question))
            except Exception as error:
                self._failed(key, question, error)
            return
        self._telemetry.cache_hits += 1
        self._land(key, fragment)
        question.found([fragment], True)

    def _computed(self, key: bytes, question: Question, outcome: Result | Problem) -> None:
        try:
            if isinstance(outcome, Problem):
                raise outcome
            [fragment] = self._codec.fragments(outcome)
            self._keep(key, fragment)
        except Exception as error:
            self._failed(key, question, error)
            return
        self._telemetry.cache_misses += 1
        self._land(key, fragment)
        question.found([fragment], False)

    def _failed(self, key: bytes, question: Question, error: Exception) -> None:
        """One ending for whatever went wrong: nobody waits for this key any more, and the asker is told."""
        self._land(key, None)
        question.failed(error)

    # ---- several rows, or a row that is under way already

    async def _several(self, keys: list[bytes], question: Question) -> None:
        try:
            fragments, hit = await self._gathered(keys, question)
        except Exception as error:
            question.failed(error)
        else:
            question.found(fragments, hit)

    async def _gathered(self, keys: list[bytes], question: Question) -> tuple[list[bytes], bool]:
        payload = question.payload
        answers: list[bytes | None] = [None] * payload.count
        mine: list[int] = []
        theirs: list[tuple[int, asyncio.Future[bytes]]] = []
        flying = self._flying
        for row, key in enumerate(keys):
            if key not in flying:
                flying[key] = None
                mine.append(row)
                continue
            under_way = flying[key]
            if under_way is None:
                under_way = flying[key] = self._loop.create_future()
            theirs.append((row, under_way))
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
                        self._land(keys[row], found)
            if missing:
                await self._compute(question, missing, keys, answers)
        finally:
            for row in mine:
                self._land(keys[row], None)
        alone = [
            row for row, future in theirs if not await self._follow(row, future, question.deadline, answers)
        ]
        if alone:
            # Whoever computed these has failed or left; that says nothing about our own request.
            await self._compute(question, alone, keys, answers)
        computed = len(missing) + len(alone)
        self._telemetry.cache_misses += computed
        self._telemetry.cache_hits += payload.count - computed
        # Who has waited for an equal request has waited for the model: that answer was not known.
        return [answer for answer in answers if answer is not None], computed == 0 and not theirs

    async def _compute(
        self, question: Question, rows: list[int], keys: list[bytes], answers: list[bytes | None]
    ) -> None:
        payload = question.payload
        part = payload if len(rows) == payload.count else payload.pick(rows)
        computed: asyncio.Future[Result | Problem] = self._loop.create_future()
        question.compute(part, rows, computed.set_result)
        result = await computed
        if isinstance(result, Problem):
            raise result
        for row, fragment in zip(rows, self._codec.fragments(result), strict=True):
            answers[row] = fragment
            self._land(keys[row], fragment)
            self._keep(keys[row], fragment)

    def _keep(self, key: bytes, fragment: bytes) -> None:
        """Write it to Redis some time soon."""
        if len(fragment) <= self._spec.max_value_bytes and len(self._writes) < _MOST_WAITING_WRITES:
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
