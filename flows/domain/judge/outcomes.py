"""What turned out to be true: how wrong the canary's predictions were, beside those of the stable.

Both releases answer the same live split, so the difference of two rows' losses, one of each, is on average
the difference of the releases. Each such difference is bet on: E is multiplied by
`1 + stake (difference - max_worse)`, averaged over a grid of stakes. Its expectation never grows while the
canary is at most `max_worse` worse (Waudby-Smith & Ramdas, arXiv 2010.09686), so it ever exceeds 1 / alpha
with a chance of at most alpha.

Exact where rows of different requests are independent, and whether and when a truth is reported does not
depend on the release. Truths that come late may differ from quick ones, and the canary's answers are younger
than the stable's once the ramp has shifted: so only rows that were answered at the same step are paired. Rows
that come one after the other for the same release, as those of one request do, are one.
Losses are cut at their scale and divided by it, so they lie in [0, 1] whatever the errors do: what exceeds
the scale is as wrong as the scale. Differences are rounded down, which only favours the canary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flows.domain.judge.asked import Outcomes
from flows.domain.judge.counters import Series
from flows.domain.judge.evidence import Array, mean_log
from flows.domain.judge.gates import Reading
from flows.domain.judge.picks import told
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Window

WATCHER = "watch"
"""Who counts, in the counters' label."""
PARTS = 1_000_000
"""A loss is added up in so many parts."""
FINEST = 100
"""Differences are counted in so many parts of the scale."""
LARGEST_LOG_LOSS = math.log(100)
"""A truth that had less than one per cent is as wrong as one per cent."""
STAKES: Array = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
"""Parts of the largest stake that can never lose everything."""


def loss(asked: Outcomes, prediction: Mapping[str, Any], outcome: Any) -> float | None:
    """How wrong one row was, from 0 to 1; None when that cannot be told (no such output, no usable truth)."""
    said = prediction.get(asked.prediction) if asked.prediction else next(iter(prediction.values()), None)
    if said is None or outcome is None:
        return None
    if asked.loss == "wrong":
        return float(said != outcome)
    if asked.loss == "log":
        chance = _chance(said, outcome)
        if chance is None:
            return None
        return min(-math.log(max(chance, 1e-300)), LARGEST_LOG_LOSS) / LARGEST_LOG_LOSS
    if not (_is_number(said) and _is_number(outcome)):
        return None
    error = min(abs(float(said) - float(outcome)) / asked.scale, 1.0)
    return error if asked.loss == "absolute" else error * error


def _chance(said: Any, outcome: Any) -> float | None:
    """The probability that the prediction gave to what came true."""
    chance: Any = None
    if isinstance(said, Sequence) and not isinstance(said, str):
        if isinstance(outcome, int) and not isinstance(outcome, bool) and 0 <= outcome < len(said):
            chance = said[outcome]
    elif _is_number(said) and outcome in (0, 1):
        chance = said if outcome == 1 else 1 - said
    return float(chance) if _is_number(chance) and 0 <= chance <= 1 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class Pairing:
    """Pairs losses as they come: one of the canary with the mean of the stable's since the last pair, or the
    other way round where the canary has more. Who is paired never depends on how large a loss is.

    `counts` are the counters of `pairing.series(...)` when an earlier run has counted already.
    """

    def __init__(self, canary: str, stable: str, counts: Mapping[Series, float] | None = None) -> None:
        self._names = {True: canary, False: stable}
        self._counts = {
            Series(kind, name, "", WATCHER): 0 for kind in ("outcomes", "loss") for name in (canary, stable)
        }
        self._counts.update({series: round(count) for series, count in (counts or {}).items()})
        self._rest = {True: 0, False: 0}
        self._open: defaultdict[int, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})

    def add(self, loss: float, *, canary: bool, step: int) -> None:
        """A row's loss, from 0 to 1, and the step of the ramp at which it was answered."""
        self._count("outcomes", canary)
        # In whole parts, so that sums are exact and never exceed the number of rows.
        whole, self._rest[canary] = divmod(self._rest[canary] + round(loss * PARTS), PARTS)
        self._count("loss", canary, amount=whole)
        arms = self._open[step]
        arms[canary].append(loss)
        ours, theirs = arms[True], arms[False]
        if ours and theirs:
            difference = sum(ours) / len(ours) - sum(theirs) / len(theirs)
            self._count("differences", True, str(math.floor(difference * FINEST + 1e-9)))
            del self._open[step]

    def series(self) -> dict[Series, float]:
        """Counters since the first row: outcomes and loss of both releases, differences of the canary, in
        parts of `FINEST`, rounded down."""
        return dict(self._counts)

    def _count(self, kind: str, canary: bool, label: str = "", amount: int = 1) -> None:
        series = Series(kind, self._names[canary], label, WATCHER)
        self._counts[series] = self._counts.get(series, 0) + amount


def outcomes(policy: PromotionPolicy, windows: Sequence[Window]) -> list[Reading]:
    """The gate, where the policy asks for it. Its counts are points of loss, at most one a row."""
    asked = policy.outcomes
    if asked is None:
        return []
    found: defaultdict[str, int] = defaultdict(int)
    for window in windows:
        for name, count in window.canary.differences.items():
            found[name] += count
    pairs = {int(name): count for name, count in found.items()}
    stables = [window.stable for window in windows if window.stable is not None]
    log = evidence(pairs, asked.max_worse)
    return [
        Reading(
            "outcomes",
            log,
            sum(window.canary.loss for window in windows),
            sum(window.canary.outcomes or 0 for window in windows),
            sum(stable.loss for stable in stables),
            sum(stable.outcomes or 0 for stable in stables),
            f"possible points of {asked.loss} loss were made",
            acts=asked.weight > 0,
            pick=told,
        )
    ]


def evidence(differences: Mapping[int, int], tolerated: float) -> float:
    """log E that the mean difference of losses exceeds `tolerated`."""
    if not differences:
        return 0.0
    excess = np.array(list(differences), dtype=np.float64) / FINEST - tolerated
    times = np.array(list(differences.values()), dtype=np.float64)
    stakes = STAKES / (1 + tolerated)
    return float(mean_log(np.log1p(stakes[:, None] * excess) @ times, axis=0))


def unspoken(policy: PromotionPolicy, windows: Sequence[Window]) -> str:
    """Why the truth must be waited for; empty when it need not."""
    if policy.outcomes is None:
        return ""
    if windows[-1].canary.outcomes is None:
        return "what has turned out to be true cannot be read: does Redis answer?"
    known = sum(window.canary.outcomes or 0 for window in windows)
    if known >= policy.outcomes.required:
        return ""
    return (
        f"{known} of at least {policy.outcomes.required} outcomes of the canary are known (outcomes.required)"
    )
