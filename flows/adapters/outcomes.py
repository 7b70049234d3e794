"""Outcomes as they are reported, joined with the answers they belong to, straight from Redis.

The archive (`flows.adapters.samples`) keeps rows for good; an A/B test wants to see them now. Reading with a
position of one's own takes nothing away from the archive.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from flows.domain.errors import DependencyDown

REMEMBERED = 500_000
"""Answers without an outcome (and outcomes without an answer) that are kept waiting; the oldest go first."""
BATCH = 5_000

Key = tuple[str, int]


@dataclass(frozen=True)
class Outcome:
    """One answered row and what became of it."""

    release: str
    prediction: Mapping[str, Any]
    outcome: Any
    at: float = 0.0
    """When it was answered, in unix seconds of the server's clock."""


@dataclass(frozen=True)
class Position:
    """Where reading goes on, as ids of the two streams."""

    samples: str = "0-0"
    outcomes: str = "0-0"


class OutcomeStream:
    """The outcomes of one model from a position on. `answers` counts the sampled rows of each release."""

    def __init__(self, url: str, model: str, start: Position | None = None) -> None:
        self._redis: Any = redis.Redis.from_url(url, socket_timeout=10)
        self._samples = f"samples:{model}"
        self._outcomes = f"outcomes:{model}"
        self.answers: dict[str, int] = {}
        self._waiting: OrderedDict[Key, tuple[str, Mapping[str, Any], float]] = OrderedDict()
        self._early: OrderedDict[Key, Any] = OrderedDict()
        self.position = start or Position(self._last(self._samples), self._last(self._outcomes))

    def read(self) -> Iterator[Outcome]:
        """What is new since the last call. Each row counts once; later corrections do not."""
        for content in self._entries(self._samples):
            key = (str(content["request_id"]), int(content["row"]))
            release, prediction = str(content["release"]), content["prediction"]
            at = float(content.get("at", 0))
            self.answers[release] = self.answers.get(release, 0) + 1
            if key in self._early:
                yield Outcome(release, prediction, self._early.pop(key), at)
            else:
                _keep(self._waiting, key, (release, prediction, at))
        for content in self._entries(self._outcomes):
            key = (str(content["request_id"]), int(content["row"]))
            if key in self._waiting:
                release, prediction, at = self._waiting.pop(key)
                yield Outcome(release, prediction, content["outcome"], at)
            else:
                _keep(self._early, key, content["outcome"])

    def close(self) -> None:
        self._redis.close()

    def _last(self, stream: str) -> str:
        found = self._call("xrevrange", stream, count=1)
        return found[0][0].decode() if found else "0-0"

    def _entries(self, stream: str) -> Iterator[dict[str, Any]]:
        """New entries, oldest first; a damaged one is left out."""
        while True:
            after = self.position.samples if stream == self._samples else self.position.outcomes
            found = self._call("xrange", stream, min=f"({after}", count=BATCH)
            for identifier, fields in found:
                self._advance(stream, identifier.decode())
                try:
                    content = json.loads(fields[b"data"])
                    content["request_id"], content["row"]
                except (KeyError, ValueError, TypeError):
                    continue
                yield content
            if len(found) < BATCH:
                return

    def _advance(self, stream: str, identifier: str) -> None:
        if stream == self._samples:
            self.position = Position(identifier, self.position.outcomes)
        else:
            self.position = Position(self.position.samples, identifier)

    def _call(self, command: str, *arguments: Any, **options: Any) -> list[Any]:
        try:
            return list(getattr(self._redis, command)(*arguments, **options))
        except redis.RedisError as error:
            raise DependencyDown(
                f"Redis does not answer ({error}): outcomes cannot be read; start Redis, nothing is lost"
            ) from error


def _keep(kept: OrderedDict[Key, Any], key: Key, value: Any) -> None:
    kept[key] = value
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
