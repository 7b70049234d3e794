"""The gate that spoke, window by window: what tables and plots show of a promotion.

A release that is rejected for its latency has no failed requests to show; the counts that decided are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.domain.judge import gates
from flows.domain.judge.client_errors import client_errors
from flows.domain.judge.gates import Reading
from flows.domain.judge.missing import missing
from flows.domain.judge.paths import path, tally
from flows.domain.judge.picks import Pick, failed
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window

Pair = tuple[int, int]
"""Bad ones, and all of them."""


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
    what, pick, gate = ("requests failed", failed, "errors") if reading is None else _of(reading)
    canary = tuple(pick(window.canary, True) for window in windows)
    stable = tuple((0, 0) if window.stable is None else pick(window.stable, False) for window in windows)
    return Spoken(gate, what, canary, stable)


def _of(reading: Reading) -> tuple[str, Pick, str]:
    return reading.what, reading.pick, reading.gate


def _reading(policy: PromotionPolicy, windows: Sequence[Window], verdict: Verdict | None) -> Reading | None:
    if verdict is None or not windows:
        return None
    broken = gates.broken_outputs(policy, windows)
    counted = tally(policy, windows)
    if windows[-1].stable is None:
        readings = gates.alone(policy, counted, windows)
    else:
        readings = gates.compared(policy, windows, counted, path(counted, last=True))
        readings += [*client_errors(windows), *missing(windows)]
    found = [*readings, *([broken] if broken is not None else [])]
    return next((one for one in found if one.gate == verdict.metric), None)
