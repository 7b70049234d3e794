"""Which counts of a window a gate is about: the bad ones, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from flows.domain.judge.windows import Counts

Pick = Callable[[Counts, bool], tuple[int, int]]
"""(counts of one window, whether they are the canary's) → bad ones, all of them."""


def failed(counts: Counts, _canary: bool) -> tuple[int, int]:
    return counts.errors, counts.requests


def disagreed(counts: Counts, _canary: bool) -> tuple[int, int]:
    return counts.disagreed, counts.compared


def refused(counts: Counts, _canary: bool) -> tuple[int, int]:
    return counts.refused or 0, counts.requests


def lost(counts: Counts, _canary: bool) -> tuple[int, int]:
    sent = counts.sent or 0
    return max(0, sent - counts.requests), max(sent, counts.requests)


def slower(stable: float, canary: float) -> Pick:
    """Slower than the bound (seconds) that each arm is given."""
    return lambda counts, of_canary: (counts.slow.get(canary if of_canary else stable, 0), counts.timed)


def slower_of(cached: bool, stable: float, canary: float) -> Pick:
    """The same of the answers that were known already, or of those that were computed."""

    def pick(counts: Counts, of_canary: bool) -> tuple[int, int]:
        bound = canary if of_canary else stable
        known = counts.cached_slow.get(bound, 0)
        if cached:
            return known, counts.cached
        return counts.slow.get(bound, 0) - known, counts.timed - counts.cached

    return pick


def predicted(names: Collection[str]) -> Pick:
    """Predictions in any of these bins."""
    return lambda counts, _canary: (
        sum(counts.outputs.get(name, 0) for name in names),
        sum(counts.outputs.values()),
    )


def of_segment(name: str) -> Pick:
    return lambda counts, _canary: counts.segments.get(name, (0, 0))


def of_metric(name: str) -> Pick:
    return lambda counts, _canary: counts.metrics.get(name, (0, 0))


def told(counts: Counts, _canary: bool) -> tuple[int, int]:
    return counts.loss, counts.outcomes or 0
