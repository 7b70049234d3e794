"""Metrics of the model's own: bad ones of all of them, canary against stable, by the test of errors.

Given how many of all belong to each release, the bad ones of equal releases fall alike on both. That holds as
long as they come soon: those of a step that only come in the next one make the canary look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flows.domain.judge.gates import Reading
from flows.domain.judge.paths import against
from flows.domain.judge.picks import Pick, of_metric
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window


def metrics(policy: PromotionPolicy, windows: Sequence[Window]) -> list[Reading]:
    """One gate for each metric that the policy names, also where nobody has counted it yet."""
    return [
        compared(policy, windows, metric.name, metric.words, of_metric(metric.name))
        for metric in policy.metrics
    ]


def compared(policy: PromotionPolicy, windows: Sequence[Window], gate: str, what: str, pick: Pick) -> Reading:
    """What `pick` picks of both arms, by the sequential test that no pause of a server can fool."""
    nothing = Counts()
    rows = [(*pick(one.canary, True), *pick(one.stable or nothing, False), one.seconds) for one in windows]
    bad_c, total_c, bad_s, total_s, seconds = np.array(rows, dtype=np.float64).T
    log = 0.0
    if bad_c.any() or bad_s.any():
        arms = bad_c[:, None], bad_s[:, None], total_c, total_s, seconds, policy.pause_seconds
        log = float(against(*arms, last=True)[0][-1])
    bad, total, bad_other, total_other = (int(column.sum()) for column in (bad_c, total_c, bad_s, total_s))
    return Reading(gate, log, bad, total, bad_other, total_other, what, pick=pick)


def unreported(policy: PromotionPolicy, step: Sequence[Window]) -> str:
    """Which metric would pass in silence, since nobody counts it; empty when none."""
    for metric in policy.metrics:
        pick = of_metric(metric.name)
        for arm, counted in (
            ("canary", [one.canary for one in step]),
            ("stable", [one.stable for one in step if one.stable is not None]),
        ):
            if any(one.requests for one in counted) and not any(pick(one, True)[1] for one in counted):
                return (
                    f"promotion.metrics: {metric.name} counts nothing of the {arm} at this step: "
                    f"is {metric.total} the name of a counter?"
                )
    return ""
