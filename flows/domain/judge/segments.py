"""Errors by the value of a column: a canary that fails for one user in two hundred, and for all of those.

Among all requests such a canary is a little worse; among those of one country it fails always. The servers
count by the values that the signature names, and each from zero on, so that the number of values is known
before anything is judged: their evidences are averaged, which shares `alpha` among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from flows.domain.judge.evidence import mean_log
from flows.domain.judge.gates import Reading
from flows.domain.judge.metrics import compared
from flows.domain.judge.picks import of_segment
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window

MOST = 0.5
"""A value that holds more than this part of the failures is named beside them."""


def segments(policy: PromotionPolicy, windows: Sequence[Window]) -> list[Reading]:
    """One gate for all values of the columns that the policy names; the counts are those of the worst one."""
    if not policy.segments:
        return []
    found = by_value(policy, windows)
    if not found:
        return [Reading("segments", 0.0, 0, 0, 0, 0, "requests failed")]
    log = float(mean_log(np.array([one.log for one in found]), axis=0))
    worst = max(found, key=lambda one: one.log)
    counts = worst.canary_bad, worst.canary_total, worst.stable_bad, worst.stable_total
    return [Reading("segments", log, *counts, worst.what, pick=worst.pick)]


def by_value(policy: PromotionPolicy, windows: Sequence[Window]) -> list[Reading]:
    """A reading for each value that either arm's servers know."""
    nothing = Counts()
    canary = [window.canary.segments for window in windows]
    stable = [(window.stable or nothing).segments for window in windows]
    known = dict.fromkeys(chain.from_iterable([*canary, *stable]))
    names = [name for name in known if name.partition("=")[0] in policy.segments]
    gates = [("segments", f"requests with {name} failed", of_segment(name)) for name in names]
    return compared(policy, windows, gates, names, canary, stable)


def named(policy: PromotionPolicy, windows: Sequence[Window]) -> str:
    """Whom the canary fails for, where most of its failures share a value; empty where they do not."""
    failed = sum(window.canary.errors for window in windows)
    worst = max(by_value(policy, windows), key=lambda one: one.log, default=None)
    if worst is None or worst.log <= 0 or worst.canary_bad <= MOST * failed:
        return ""
    return f"{worst.canary_bad} of {worst.canary_total} {worst.what} on the canary; "


def uncounted(policy: PromotionPolicy, step: Sequence[Window]) -> str:
    """Why the servers' silence is no health: they do not count by the column; empty when they do."""
    seen = [window for window in step if window.canary.requests]
    known = {name.partition("=")[0] for window in seen for name in window.canary.segments}
    lacking = [column for column in policy.segments if seen and column not in known]
    if not lacking:
        return ""
    return f"promotion.segments: the canary's servers do not count by {lacking[0]}; build its image anew"
