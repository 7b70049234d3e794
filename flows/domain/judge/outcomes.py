"""What turned out to be true: how wrong the canary's predictions were, beside those of the stable.

Both releases answer the same live split, so the difference of two rows' losses, one of each, is on average
the difference of the releases. Each such difference is bet on: E is multiplied by
`1 + stake (difference - max_worse)`, averaged over a grid of stakes. Its expectation never grows while the
canary is at most `max_worse` worse (Waudby-Smith & Ramdas, arXiv 2010.09686), so it ever exceeds 1 / alpha
with a chance of at most alpha.

Exact where rows of different requests are independent, and whether a truth is reported does not depend on
the release; rows that come one after the other for the same release, as those of one request do, are one.
Losses are cut at their scale and divided by it, so they lie in [0, 1] whatever the errors do: what exceeds
the scale is as wrong as the scale. Differences are rounded down, which only favours the canary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flows.domain.judge.asked import Outcomes
from flows.domain.judge.evidence import Array, mean_log
from flows.domain.judge.gates import Reading
from flows.domain.judge.picks import told
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Window

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


@dataclass
class Pairing:
    """Pairs losses as they come: one of the canary with the mean of the stable's since the last pair, or the
    other way round where the canary has more. Who is paired never depends on how large a loss is."""

    differences: Counter[int] = field(default_factory=Counter)
    """Canary's loss minus the stable's, in parts of `FINEST`, rounded down → how many."""
    counts: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """Rows whose truth is known, by whether they are the canary's."""
    sums: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    _open: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})

    def add(self, loss: float, *, canary: bool) -> None:
        self.counts[canary] += 1
        self.sums[canary] += loss
        self._open[canary].append(loss)
        ours, theirs = self._open[True], self._open[False]
        if ours and theirs:
            difference = sum(ours) / len(ours) - sum(theirs) / len(theirs)
            self.differences[math.floor(difference * FINEST + 1e-9)] += 1
            self._open = {True: [], False: []}


def outcomes(policy: PromotionPolicy, windows: Sequence[Window]) -> list[Reading]:
    """The gate, where the policy asks for it. Its counts are points of loss, at most one a row."""
    asked = policy.outcomes
    if asked is None:
        return []
    pairs: Counter[int] = Counter()
    for window in windows:
        pairs.update({int(name): count for name, count in window.canary.differences.items()})
    stables = [window.stable for window in windows if window.stable is not None]
    log = evidence(pairs, asked.max_worse)
    return [
        Reading(
            "outcomes",
            log,
            sum(window.canary.loss for window in windows),
            sum(window.canary.outcomes for window in windows),
            sum(stable.loss for stable in stables),
            sum(stable.outcomes for stable in stables),
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
    known = sum(window.canary.outcomes for window in windows)
    if known >= policy.outcomes.required:
        return ""
    return (
        f"{known} of at least {policy.outcomes.required} outcomes of the canary are known (outcomes.required)"
    )
