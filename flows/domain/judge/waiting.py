"""Why a canary has to wait at its step, and for how long: time, requests, the mesh, metrics, or proof."""

from __future__ import annotations

import math
from dataclasses import replace

from flows.domain.judge import gates
from flows.domain.judge.client_errors import unpredicted
from flows.domain.judge.gates import percent
from flows.domain.judge.metrics import unreported
from flows.domain.judge.paths import Path, Tally, final_weight, hastened, rescues
from flows.domain.judge.plan import duration, needed
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.segments import uncounted
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window

NO_STABLE = "no request reaches the stable: there is nothing to compare with"


def waiting(
    policy: PromotionPolicy, windows: list[Window], counted: Tally, followed: Path, verdict: Verdict
) -> Verdict:
    """Which of the conditions is not met yet."""
    weight = int(counted.weight[-1])
    here = [index for index, one in enumerate(counted.weight) if one == weight]
    canary, stable = counted.canary[here].sum(), counted.stable[here].sum()
    seconds, requests = followed.step_seconds[-1], followed.step_requests[-1]
    if canary + stable == 0:
        return replace(verdict, metric="traffic", sentence="no requests at all: nothing can be compared")
    if not followed.applied[-1] or requests == 0:
        share = f"{percent(canary, canary + stable)} of the requests, not {weight} %"
        return replace(verdict, metric="weight", sentence=f"the canary gets {share}: no credit for this step")
    if stable == 0 and weight < final_weight(policy):
        return replace(verdict, metric="traffic", sentence=NO_STABLE)
    unseen = blind(policy, windows)
    if unseen:
        return replace(verdict, metric="metrics", sentence=unseen)
    rate = per_second(counted)
    if rescues(policy, counted)[-1]:
        policy = policy.model_copy(update={"dwell_seconds": hastened(policy)})
    if seconds < policy.dwell_seconds - 1e-6 or requests < policy.min_requests:
        return more_of_step(policy, verdict, seconds, requests, rate)
    more = needed(policy, counted)
    if more is None:
        sentence = "at these error rates no number of requests would certify the canary"
        return replace(verdict, metric="proof", sentence=sentence)
    minutes = more / rate / 60 if rate else None
    time = f", about {duration(60 * minutes)} at this rate" if minutes is not None else ""
    sentence = f"needs about {more} more canary requests for its certificate{time}"
    return replace(verdict, metric="proof", sentence=sentence, requests_needed=more, minutes_needed=minutes)


def more_of_step(
    policy: PromotionPolicy, verdict: Verdict, seconds: float, requests: float, rate: float
) -> Verdict:
    """More of this step: its time, or its requests."""
    missing = max(0, math.ceil(policy.min_requests - requests))
    rest = max(0.0, policy.dwell_seconds - float(seconds))
    if missing and rate:
        rest = max(rest, missing / rate)
    metric = "time" if seconds < policy.dwell_seconds - 1e-6 else "traffic"
    sentence = f"{seconds:.0f} of {policy.dwell_seconds:.0f} s at this step"
    if missing:
        sentence += f", {requests:.0f} of at least {policy.min_requests} canary requests"
    return replace(
        verdict, metric=metric, sentence=sentence, requests_needed=missing, minutes_needed=rest / 60
    )


def blind(policy: PromotionPolicy, windows: list[Window]) -> str:
    """Which gate would pass in silence, since what it looks at is not reported; empty when none."""
    weight = windows[-1].weight
    step = [window for window in windows if window.weight == weight]
    stables = [window.stable for window in step if window.stable is not None]
    if stables and weight < final_weight(policy) and not any(stable.requests for stable in stables):
        return NO_STABLE
    here = [window.canary for window in step]
    requests = sum(counts.requests for counts in here)
    # The last word counts: servers that have fallen silent may have begun to answer nonsense.
    asked = [counts for counts in here if counts.requests]
    if policy.require_metrics and asked and not asked[-1].reported:
        return "the canary's servers show no metrics: its outputs cannot be checked (require_metrics)"
    unproven = unpredicted(policy, here)
    if unproven:
        return unproven
    compared = [stable for stable in stables if stable.requests]
    if policy.require_metrics and policy.weights.outputs and compared and not compared[-1].reported:
        return "the stable's servers show no metrics: predictions cannot be compared (require_metrics)"
    beside = weight < final_weight(policy) and bool(stables)
    silent = beside and (uncounted(policy, step) or unreported(policy, step))
    if silent and policy.require_metrics and requests >= policy.min_requests:
        return silent
    if requests >= policy.min_requests and policy.weights.latency and not any(one.timed for one in here):
        return "the gateway shows no latencies of the canary: is its histogram recorded?"
    if (
        windows[-1].stable is None
        and policy.slo_latency_seconds is not None
        and gates.slow_bound(policy, windows) is None
    ):
        return f"no histogram bound reaches slo_latency_seconds ({policy.slo_latency_seconds:g})"
    return ""


def per_second(counted: Tally) -> float:
    """Canary requests a second at the current weight."""
    here = counted.weight == counted.weight[-1]
    return float(counted.canary[here].sum() / max(counted.seconds[here].sum(), 1e-9))
