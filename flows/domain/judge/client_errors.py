"""Requests that do not fit a release: answered 400, 415 or 422 by its servers.

Whether a request fits is the request's, and which release it meets is the split's chance. So the two shares
may be compared request by request, also when one client sends thirty bad ones at once. Other answers of class
4 speak of the client alone (its key, its rate, the size or the address of what it sends) and are not counted
here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flows.domain.judge.gates import Reading
from flows.domain.judge.paths import against
from flows.domain.judge.picks import refused
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window


def client_errors(windows: Sequence[Window]) -> list[Reading]:
    """The gate, canary against stable, by the test of errors; nothing in windows of before it was counted."""
    rows = [
        (one.canary.refused, one.canary.requests, one.stable.refused or 0, one.stable.requests, one.seconds)
        for one in windows
        if one.stable is not None and one.canary.refused is not None
    ]
    if not rows:
        return []
    bad_c, total_c, bad_s, total_s, seconds = np.array(rows, dtype=np.float64).T
    log, _ = against(bad_c[:, None], bad_s[:, None], total_c, total_s, seconds, 0.0, last=True)
    bad, total, bad_other, total_other = (int(column.sum()) for column in (bad_c, total_c, bad_s, total_s))
    what = "requests were refused (400, 415, 422)"
    return [Reading("client_errors", float(log[-1]), bad, total, bad_other, total_other, what, pick=refused)]


def unpredicted(policy: PromotionPolicy, step: Sequence[Counts]) -> str:
    """Why answers are not enough at this step: too few of them are predictions; empty when they are."""
    counted = [one for one in step if one.predicted is not None]
    requests, predicted = sum(one.requests for one in counted), sum(one.predicted or 0 for one in counted)
    if requests == 0 or predicted >= (policy.min_requests if requests >= policy.min_requests else 1):
        return ""
    return (
        f"only {predicted} of the {requests} requests that the release answered at this step were predicted"
    )
