"""The gate that spoke, window by window: what tables and plots show of a promotion.

A release that is rejected for its latency has no failed requests to show; the counts that decided are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.domain.judge import gates
from flows.domain.judge.gates import Reading
from flows.domain.judge.paths import path, tally
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.readings import beside_the_stable
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Pair, Window


@dataclass(frozen=True)
class Spoken:
    """A gate's counts of every window; (0, 0) where nothing was seen or nobody stood beside it."""

    gate: str
    what: str
    """What the bad ones did, such as `requests took over 150 ms`."""
    canary: tuple[Pair, ...]
    stable: tuple[Pair, ...]

    @property
    def totals(self) -> tuple[Pair, Pair]:
        """Of the canary and of the stable, over all windows."""
        canary, stable = (
            (sum(bad for bad, _ in arm), sum(every for _, every in arm)) for arm in (self.canary, self.stable)
        )
        return canary, stable


def spoken(policy: PromotionPolicy, windows: Sequence[Window], verdict: Verdict | None) -> Spoken:
    """The counts of the gate that `verdict` names; those of the errors where it names none."""
    reading = _reading(policy, [window for window in windows if window.observed], verdict)
    canary = tuple(reading.pick(window.canary, True) for window in windows)
    stable = tuple(
        (0, 0) if window.stable is None else reading.pick(window.stable, False) for window in windows
    )
    return Spoken(reading.gate, reading.what, canary, stable)


def _reading(policy: PromotionPolicy, windows: Sequence[Window], verdict: Verdict | None) -> Reading:
    errors = Reading("errors", 0.0, 0, 0, 0, 0, "requests failed")
    if verdict is None or not windows:
        return errors
    counted = tally(policy, windows)
    if windows[-1].stable is None:
        readings = gates.alone(policy, counted, windows)
    else:
        readings = beside_the_stable(policy, windows, counted, path(counted, last=True))
    return next((one for one in readings if one.gate == verdict.metric), errors)
