"""The pieces of a verdict: which gate decides, the numbers it carries, what becomes of it at the deadline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flows.domain.judge.evidence import LARGEST, bounds
from flows.domain.judge.gates import Reading
from flows.domain.judge.paths import Tally, combined, cut, gate_weights
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import EvidenceInvalid, Window

BLIND_SECONDS = 86400.0
"""How long after its deadline a promotion that cannot be seen waits for a window that is seen."""


def check_order(windows: Sequence[Window]) -> None:
    """Raises EvidenceInvalid when there is nothing to judge or a time was counted twice."""
    if not windows:
        raise EvidenceInvalid("windows: there are none; read the counters before judging")
    observed = [(index, window) for index, window in enumerate(windows) if window.observed]
    for (_, earlier), (index, later) in itertools.pairwise(observed):
        if later.start < earlier.end:
            raise EvidenceInvalid(
                f"windows[{index}].start: {later.start} is before the end of the last one, {earlier.end}: "
                "requests would be counted twice"
            )


def harm(policy: PromotionPolicy, readings: Sequence[Reading], threshold: float) -> Reading | None:
    """The gate that weighs most in a proven harm; None when the evidence does not reach e^threshold."""
    acting = {one.gate: one.log if one.acts else -LARGEST for one in readings}
    if total_evidence(policy, acting) < threshold:
        return None
    weights = gate_weights(policy, acting)
    return max(readings, key=lambda one: acting[one.gate] + math.log(weights.get(one.gate, 1e-300)))


def total_evidence(policy: PromotionPolicy, logs: dict[str, float]) -> float:
    return float(combined(policy, {gate: np.array(log) for gate, log in logs.items()}, logs))


def numbers(policy: PromotionPolicy, counted: Tally, total: float) -> Verdict:
    """A hold with everything that a verdict carries whatever it becomes."""
    bad_c, total_c = counted.canary_errors.sum(), counted.canary.sum()
    bad_s, total_s = counted.stable_errors.sum(), counted.stable.sum()
    low, high = bounds(np.array([bad_c, bad_s]), np.array([total_c, total_s]), policy.beta / 2)
    return Verdict(
        "hold",
        "errors",
        "",
        cut(total),
        int(bad_c),
        int(total_c),
        int(bad_s),
        int(total_s),
        (float(low[0] - high[1]), float(high[0] - low[1])),
    )


def rejected(verdict: Verdict, reading: Reading, why: str) -> Verdict:
    return replace(
        verdict,
        kind="reject",
        outcome="rollback",
        metric=reading.gate,
        sentence=f"{reading.sentence}; {why}",
        canary_bad=reading.canary_bad,
        canary_total=reading.canary_total,
        stable_bad=reading.stable_bad,
        stable_total=reading.stable_total,
    )


def at_deadline(policy: PromotionPolicy, verdict: Verdict, windows: Sequence[Window]) -> Verdict:
    """What becomes of the last window's verdict once the deadline has passed.

    While nothing can be seen, nothing is decided: the first window that is seen decides, and after
    BLIND_SECONDS the traffic stays where it is. A release that nothing precedes is not taken out for want of
    evidence, since nobody would answer then. All else is the policy's.
    """
    allowed = f"{policy.deadline_seconds / 60:.3g} min"
    if verdict.kind == "unobserved":
        late = windows[-1].end - windows[0].start - policy.deadline_seconds
        if late < BLIND_SECONDS:
            sentence = (
                f"{verdict.sentence}; the deadline of {allowed} is over, the next window that is seen decides"
            )
            return replace(verdict, expired=True, sentence=sentence)
        sentence = f"not decided within {allowed}, nor seen for a day after that: {verdict.sentence}"
        return replace(verdict, expired=True, outcome="keep", sentence=sentence)
    decided = by_policy(policy, verdict)
    if decided.outcome == "rollback" and decided.kind == "hold" and windows[-1].stable is None:
        stays = "nothing precedes the release, so it stays, unproven"
        return replace(decided, outcome="keep", sentence=f"{not_decided(policy, verdict)}; {stays}")
    return decided


def not_decided(policy: PromotionPolicy, verdict: Verdict) -> str:
    return f"not decided within {policy.deadline_seconds / 60:.3g} min: {verdict.sentence}"


def by_policy(policy: PromotionPolicy, verdict: Verdict) -> Verdict:
    """What the policy makes of a verdict that is neither a pass nor a rejection.

    Until `unproven` was an end of its own this was all that happened at a deadline, whatever could be seen
    and whoever else served; a replay asks it for verdicts of that time.
    """
    verdict = replace(verdict, expired=True)
    if verdict.kind in ("advance", "reject"):
        return verdict
    late = not_decided(policy, verdict)
    if policy.at_deadline == "rollback":
        return replace(verdict, outcome="rollback", sentence=f"{late}; the policy takes the traffic back")
    if policy.at_deadline == "promote_unproven" and verdict.kind == "hold":
        if verdict.metric == "time":
            return verdict
        # Only evidence may be missing: a step without requests is never passed on silence.
        if verdict.metric == "proof" or verdict.requests_needed:
            sentence = f"{late}; promoted unproven, as the policy says"
            return replace(verdict, kind="advance", outcome="advance", unproven=True, sentence=sentence)
    return replace(verdict, outcome="keep", sentence=f"{late}; the traffic stays as it is")


def short(log: float) -> str:
    return f"{cut(log):.3g}" if log < 14 else f"10^{log / math.log(10):.0f}"
