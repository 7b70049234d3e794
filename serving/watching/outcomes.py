"""Delayed outcomes, into the Redis stream that the drift analysis and the judge read. Each row's once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import orjson

from serving.redis.link import RedisLink
from serving.redis.wire import bulk, packed
from serving.spec import SamplesSpec

_REDIS_SECONDS = 2.0
_AT_ONCE = 200
"""Rows of one command: Redis serves nobody else meanwhile, and this loop packs them."""
_DIGEST_BYTES = 12
_KEEP = b"""
local kept, known, conflicting = 0, 0, 0
for i = 3, #ARGV, 3 do
  local before = redis.call('HGET', KEYS[2], ARGV[i])
  if not before then
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'data', ARGV[i + 2])
    kept = kept + 1
  elseif before == ARGV[i + 1] then
    known = known + 1
  else
    conflicting = conflicting + 1
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {kept, known, conflicting}
"""


@dataclass(frozen=True)
class Kept:
    """What became of the outcomes of one report, in rows."""

    new: int = 0
    known: int = 0
    """The same has been told before."""
    conflicting: int = 0
    """Something else has been told before, which stands."""

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.new + other.new, self.known + other.known, self.conflicting + other.conflicting)


class OutcomeWriter:
    """Takes the true outcomes that clients learn later to the stream `outcomes:<model>`."""

    def __init__(self, link: RedisLink, spec: SamplesSpec, model: str) -> None:
        self._link = link
        self._stream = f"outcomes:{model}"
        self._spec = spec

    async def write(self, request_id: str, outcomes: list[Any]) -> Kept:
        """Append one entry for each outcome that is known (not null) and was not told before. RedisAbsent
        when it cannot be kept; what was kept until then is known the next time."""
        at = time.time()
        rows = [(row, outcome) for row, outcome in enumerate(outcomes) if outcome is not None]
        kept = Kept()
        for start in range(0, len(rows), _AT_ONCE):
            if start:
                await asyncio.sleep(0)
            part = rows[start : start + _AT_ONCE]
            kept += await self._keep(request_id, part, at)
        return kept

    async def _keep(self, request_id: str, rows: list[tuple[int, Any]], at: float) -> Kept:
        arguments = [
            b"EVAL",
            _KEEP,
            b"2",
            self._stream.encode(),
            f"{self._stream}:told:{request_id}".encode(),
            b"%d" % self._spec.max_length,
            b"%d" % int(self._spec.outcome_seconds),
        ]
        for row, outcome in rows:
            digest = hashlib.blake2b(written(outcome), digest_size=_DIGEST_BYTES).hexdigest()
            entry = {"request_id": request_id, "row": row, "outcome": outcome, "at": at}
            arguments += [b"%d" % row, digest.encode(), written(entry)]
        reply = await self._link.command(packed([bulk(argument) for argument in arguments]), _REDIS_SECONDS)
        return Kept(*reply)


def written(value: Any) -> bytes:
    """Outcomes are any JSON, also integers above 64 bits, which orjson does not write."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()
