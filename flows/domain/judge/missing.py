"""Sent against answered: requests whose clients left before the release had answered.

A release that hangs fails nothing and is never slow; its requests vanish from the counts of answers. Clients
also leave by their own choice, and then alike in both arms; one who leaves early meets a somewhat slower
canary more often. So only a difference of shares of more than `TOLERATED` is evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flows.domain.judge.evidence import shift_evidence
from flows.domain.judge.gates import Reading
from flows.domain.judge.picks import lost
from flows.domain.judge.windows import Counts, Window

TOLERATED = 0.1
"""A tenth of all requests: a canary that pauses loses fewer, one that hangs loses nearly all."""


def missing(windows: Sequence[Window]) -> list[Reading]:
    """The gate, canary against stable; nothing in windows of before it was counted."""
    arms = [(one.canary, one.stable) for one in windows if one.stable is not None]
    arms = [(canary, stable) for canary, stable in arms if canary.sent is not None]
    if not arms:
        return []
    (bad_c, total_c), (bad_s, total_s) = _lost([arm[0] for arm in arms]), _lost([arm[1] for arm in arms])
    log = shift_evidence(np.array(bad_c), np.array(total_c), np.array(bad_s), np.array(total_s), TOLERATED)
    what = "requests were never answered"
    return [Reading("missing", max(float(log), 0.0), bad_c, total_c, bad_s, total_s, what, pick=lost)]


def _lost(counted: Sequence[Counts]) -> tuple[int, int]:
    """Requests without an answer, and all. Over all windows, since one may end between the two counters; the
    gateway's own answers, for want of a server, were sent to nobody."""
    answered, sent = sum(one.requests for one in counted), sum(one.sent or 0 for one in counted)
    return max(0, sent - answered), max(sent, answered)
