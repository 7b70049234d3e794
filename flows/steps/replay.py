"""Judge stored windows again: what a promotion decided must come out the same from its own record."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flows.adapters.registry import Event, StoredWindow
from flows.domain.judge.judging import judge, judge_promoted
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.ruling import by_policy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.spec import parse_spec
from flows.steps.hotfix import policy_of


def replay_verdicts(spec: str, stored: Sequence[StoredWindow], events: Sequence[Event] = ()) -> int:
    """Judge the stored windows again, each with those before it; how many verdicts differ.

    `events` are the promotion's: a hotfix went by another policy than its spec's.

    A deadline was decided by the policy alone before promotions could end `unproven`; a stored verdict that
    has expired may be one of those.
    """
    policy = policy_of(events, parse_spec(spec, "model.yaml").promotion)
    windows = [Window.from_json(window.content) for window in stored]
    ramp = sum(not window.watching for window in stored)
    different = 0
    for number, row in enumerate(stored, start=1):
        if row.watching:
            again = judge_promoted(policy, windows[:ramp], windows[ramp:number])
        else:
            again = judge(policy, windows[:number])
        said = Verdict.from_json(row.verdict)
        if said.expired and not row.watching and said.to_json() != again.to_json():
            again = _by_policy_alone(policy, windows[:number])
        different += again.to_json() != said.to_json()
    return different


def _by_policy_alone(policy: PromotionPolicy, windows: Sequence[Window]) -> Verdict:
    return by_policy(policy, judge(policy.model_copy(update={"deadline_seconds": math.inf}), windows))
