"""What was counted between two looks at the counters: the judge's only input.

A window is plain data. It is stored (JSON) before anybody acts on it, so that a verdict can be recomputed
from the stored windows and come out the same to the last bit. Nothing here reads a clock or a client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from flows.domain.errors import ModelServeError

Key = TypeVar("Key")
Pair = tuple[int, int]
"""Bad ones, and all of them."""


class EvidenceInvalid(ModelServeError):
    """A count or a time that cannot be true; the message names the field. Never taken as good news."""


def _check_count(name: str, count: object) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise EvidenceInvalid(f"{name}: {count!r} is not a count")


@dataclass(frozen=True, slots=True)
class Counts:
    """What one release did in one window. All counts are non-negative integers."""

    requests: int = 0
    """Answers of the gateway for this release, those included that never reached a server (503)."""
    errors: int = 0
    """Of these, class 5."""
    timed: int = 0
    """Requests in the latency histogram (it may lag behind `requests` by a flush)."""
    slow: Mapping[float, int] = field(default_factory=dict)
    """Histogram bound in seconds → requests slower than it; falls with the bound."""
    outputs: Mapping[str, int] = field(default_factory=dict)
    """Bin of the prediction → how many."""
    compared: int = 0
    """Shadow answers that were compared with the stable's."""
    disagreed: int = 0
    reported: bool = True
    """False when the release's own servers show no metrics, so that its outputs cannot be checked."""
    started: int = 0
    """Servers that began to serve in this window, or began again."""
    predicted: int | None = None
    """Of the requests, class 2. None, here and below: not counted, in windows stored before it was."""
    refused: int | None = None
    """Of the requests, those answered 400, 415 or 422: they do not fit this release."""
    sent: int | None = None
    """Requests that the gateway sent to this release and that have ended, answered or not."""
    cached: int = 0
    """Of the timed, those whose answers were known already: a release begins with an empty cache."""
    cached_slow: Mapping[float, int] = field(default_factory=dict)
    """As `slow`, of these."""
    segments: Mapping[str, Pair] = field(default_factory=dict)
    """`column=value` → failed requests with such a row, and all, as the servers count them."""
    metrics: Mapping[str, Pair] = field(default_factory=dict)
    """Metric that the policy asks for → bad ones, and all; slow bad ones may be more than all of a window."""
    outcomes: int | None = None
    """Rows whose truth became known, whenever they were answered; None as well while nobody can tell."""
    loss: int = 0
    """How wrong they were together, each at most 1; what is left of a whole one is carried on."""
    differences: Mapping[str, int] = field(default_factory=dict)
    """The canary's loss minus the stable's, of pairs of rows, in hundredths → how many. Only of a canary."""

    def __post_init__(self) -> None:
        for name in (
            "requests",
            "errors",
            "timed",
            "compared",
            "disagreed",
            "started",
            "cached",
            "loss",
        ):
            _check_count(name, getattr(self, name))
        for name in ("predicted", "refused", "sent", "outcomes"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for label, count in (*self.slow.items(), *self.outputs.items()):
            _check_count(f"slow[{label}]" if label in self.slow else f"outputs[{label}]", count)
        for name, pair in (*self.segments.items(), *self.metrics.items()):
            for count in pair:
                _check_count(name, count)
        for difference, count in self.differences.items():
            _check_count(f"differences[{difference}]", count)
        if self.loss > (self.outcomes or 0):
            raise EvidenceInvalid(f"loss: {self.loss} of {self.outcomes} outcomes cannot be")
        if self.errors > self.requests:
            raise EvidenceInvalid(
                f"errors: {self.errors} of {self.requests} requests cannot be; check the rules"
            )
        if self.errors + (self.refused or 0) + (self.predicted or 0) > self.requests:
            raise EvidenceInvalid(
                f"refused: {self.refused} and predicted: {self.predicted} beside {self.errors} errors exceed "
                f"the {self.requests} requests; check the rules"
            )
        if self.cached > self.timed or any(
            count > min(self.cached, self.slow.get(bound, 0)) for bound, count in self.cached_slow.items()
        ):
            raise EvidenceInvalid(f"cached: {self.cached} answers are more than those they are part of")
        if self.disagreed > self.compared:
            raise EvidenceInvalid(f"disagreed: {self.disagreed} of {self.compared} compared cannot be")
        ceiling = self.timed
        for bound in sorted(self.slow):
            if self.slow[bound] > ceiling:
                raise EvidenceInvalid(
                    f"slow[{bound}]: {self.slow[bound]} requests exceed the {ceiling} of the bound below; "
                    "the histogram is not monotone"
                )
            ceiling = self.slow[bound]

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.requests + other.requests,
            self.errors + other.errors,
            self.timed + other.timed,
            _add(self.slow, other.slow),
            _add(self.outputs, other.outputs),
            self.compared + other.compared,
            self.disagreed + other.disagreed,
            self.reported or other.reported,
            self.started + other.started,
            _both(self.predicted, other.predicted),
            _both(self.refused, other.refused),
            _both(self.sent, other.sent),
            self.cached + other.cached,
            _add(self.cached_slow, other.cached_slow),
            _add_pairs(self.segments, other.segments),
            _add_pairs(self.metrics, other.metrics),
            _both(self.outcomes, other.outcomes),
            self.loss + other.loss,
            _add(self.differences, other.differences),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """The counts of both arms from `start` to `end` (unix seconds, Prometheus's clock) at one set weight.

    `stable` is None when there is no release to compare with. `halves` are the stable's own servers split
    into two fixed groups (requests, errors and latencies as the servers count them), for the A/A check; None
    when there are fewer than two servers. A window that was not `observed` says why and carries no counts;
    the next observed one then begins where the last observed one ended, so nothing is lost.
    """

    start: float
    end: float
    weight: int
    canary: Counts = Counts()
    stable: Counts | None = Counts()
    halves: tuple[Counts, Counts] | None = None
    observed: bool = True
    why: str = ""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise EvidenceInvalid(f"{name}: {getattr(self, name)} is not a time")
        if self.end < self.start:
            raise EvidenceInvalid(f"end: {self.end} is before start {self.start}")
        if not 0 <= self.weight <= 100:
            raise EvidenceInvalid(f"weight: {self.weight} is not between 0 and 100")
        if not self.observed and not self.why:
            raise EvidenceInvalid("why: a window that was not observed must say why")

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def share(self) -> float:
        """The canary's measured share of the requests, 0 to 1; 0 when there were none."""
        total = self.canary.requests + (self.stable.requests if self.stable else 0)
        return self.canary.requests / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `Window.from_json` gives back an equal window."""
        return {
            "start": self.start,
            "end": self.end,
            "weight": self.weight,
            "canary": _counts_to_json(self.canary),
            "stable": _counts_to_json(self.stable) if self.stable is not None else None,
            "halves": [_counts_to_json(half) for half in self.halves] if self.halves else None,
            "observed": self.observed,
            "why": self.why,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Window:
        """Raises EvidenceInvalid when a field is missing or cannot be true."""
        try:
            stable, halves = content["stable"], content["halves"]
            return cls(
                start=content["start"],
                end=content["end"],
                weight=content["weight"],
                canary=_counts_from_json(content["canary"]),
                stable=_counts_from_json(stable) if stable is not None else None,
                halves=(_counts_from_json(halves[0]), _counts_from_json(halves[1])) if halves else None,
                observed=content["observed"],
                why=content["why"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EvidenceInvalid(f"stored window: {error!r}; it was not written by this program") from error


def unobserved(start: float, end: float, weight: int, why: str, *, stable: bool = True) -> Window:
    """The window for a time in which the counters could not be read; `why` in one line."""
    return Window(
        start, max(start, end), weight, stable=Counts() if stable else None, observed=False, why=why
    )


def _add(left: Mapping[Key, int], right: Mapping[Key, int]) -> dict[Key, int]:
    return {key: left.get(key, 0) + right.get(key, 0) for key in {**left, **right}}


def _add_pairs(left: Mapping[str, Pair], right: Mapping[str, Pair]) -> dict[str, Pair]:
    pairs = [(key, left.get(key, (0, 0)), right.get(key, (0, 0))) for key in {**left, **right}]
    return {key: (one[0] + other[0], one[1] + other[1]) for key, one, other in pairs}


_NO_LONGER_COUNTED = frozenset({"invalid"})
"""Of windows that were stored while it was. Nothing ever counted it, so nothing is lost."""


def _both(left: int | None, right: int | None) -> int | None:
    return right if left is None else left if right is None else left + right


def _counts_to_json(counts: Counts) -> dict[str, Any]:
    content = {one.name: getattr(counts, one.name) for one in fields(counts)}
    return content | {
        "slow": {repr(bound): count for bound, count in counts.slow.items()},
        "cached_slow": {repr(bound): count for bound, count in counts.cached_slow.items()},
        "outputs": dict(counts.outputs),
        "segments": {name: list(pair) for name, pair in counts.segments.items()},
        "metrics": {name: list(pair) for name, pair in counts.metrics.items()},
        "differences": dict(counts.differences),
    }


def _counts_from_json(content: Mapping[str, Any]) -> Counts:
    bounds = {
        name: {float(bound): count for bound, count in sorted(content.get(name, {}).items(), key=_bound)}
        for name in ("slow", "cached_slow")
    }
    pairs = {
        kind: {name: (bad, total) for name, (bad, total) in content.get(kind, {}).items()}
        for kind in ("segments", "metrics")
    }
    known = {name: value for name, value in content.items() if name not in _NO_LONGER_COUNTED}
    return Counts(**{**known, **bounds, "outputs": dict(content["outputs"]), **pairs})


def _bound(item: tuple[str, int]) -> float:
    return float(item[0])
