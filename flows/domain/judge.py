"""Counts in, verdict out: a pure function of the policy and the stored windows."""

from __future__ import annotations

from collections.abc import Sequence

from flows.domain.policy import PromotionPolicy
from flows.domain.verdict import Verdict
from flows.domain.windows import Window


def judge(policy: PromotionPolicy, windows: Sequence[Window]) -> Verdict:
    """Judge a ramp. `windows` are all of the promotion, in order; the step is the last one's weight."""
    raise NotImplementedError


def judge_promoted(policy: PromotionPolicy, promotion: Sequence[Window], since: Sequence[Window]) -> Verdict:
    """Judge the release after 100 %: `promotion` are the windows of its ramp, `since` the ones after it.

    `advance` ends the watch (nothing found in `post_watch_seconds`), `reject` sends back to the previous.
    """
    raise NotImplementedError
