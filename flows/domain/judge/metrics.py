"""Metrics of the model's own: bad ones of all of them, canary against stable, by the test of errors.

Given how many of all belong to each release, the bad ones of equal releases fall alike on both. That holds as
long as they come soon: those of a step that only come in the next one make the canary look better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from flows.domain.judge.evidence import Array
from flows.domain.judge.gates import Reading
from flows.domain.judge.paths import apart
from flows.domain.judge.picks import Pick, of_metric
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Pair, Window


def metrics(policy: PromotionPolicy, windows: Sequence[Window]) -> list[Reading]:
    """One gate for each metric that the policy names, also where nobody has counted it yet."""
    gates = [(metric.name, metric.words, of_metric(metric.name)) for metric in policy.metrics]
    nothing = Counts()
    canary = [window.canary.metrics for window in windows]
    stable = [(window.stable or nothing).metrics for window in windows]
    return compared(policy, windows, gates, [gate for gate, _, _ in gates], canary, stable)


def compared(
    policy: PromotionPolicy,
    windows: Sequence[Window],
    gates: Sequence[tuple[str, str, Pick]],
    names: Sequence[str],
    canary: Sequence[Mapping[str, Pair]],
    stable: Sequence[Mapping[str, Pair]],
) -> list[Reading]:
    """Pairs of both arms of each window, by the sequential test that no pause of a server can fool.

    `gates` are names, words and picks of what `names` are in the pairs.
    """
    if not gates:
        return []
    ours, theirs = table(canary, names), table(stable, names)
    seconds = np.array([window.seconds for window in windows])
    arms = ours[..., 0], theirs[..., 0], ours[..., 1], theirs[..., 1]  # bad ones, then all
    logs = apart(*arms, seconds, policy.pause_seconds).tolist()
    readings = []
    for place, (gate, what, pick) in enumerate(gates):
        bad, total, bad_other, total_other = (
            int(one[:, place].sum()) for one in (arms[0], arms[2], arms[1], arms[3])
        )
        readings.append(Reading(gate, logs[place], bad, total, bad_other, total_other, what, pick=pick))
    return readings


def table(counted: Sequence[Mapping[str, Pair]], names: Sequence[str]) -> Array:
    """[T, names, 2]; 0 of 0 for a name that is not counted."""
    if list(chain.from_iterable(counted)) == [*names] * len(counted):  # as ever, and ten times as quick
        flat = chain.from_iterable(chain.from_iterable([one.values() for one in counted]))
        pairs = np.fromiter(flat, np.float64, len(counted) * len(names) * 2)
        return pairs.reshape(len(counted), len(names), 2)
    return np.array([[one.get(name, (0, 0)) for name in names] for one in counted], dtype=np.float64)


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
