"""What a promotion can find and when, said before it starts; and what a waiting canary still needs.

Expected counts go through the judge's own arithmetic, so the plan and the judge cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flows.domain.judge.evidence import Array, ratio_logs
from flows.domain.judge.paths import (
    Tally,
    asked,
    better,
    calmly,
    certificate,
    certified,
    combined,
    final_weight,
    gate_weights,
    last_proving_step,
    passed,
    path,
    rejection,
    warm_up,
)
from flows.domain.judge.policy import PACES, PromotionPolicy

LONGEST = 30 * 86400.0
"""How far the plan looks, in seconds, to say how long the deadline would have to be."""
PLANNED_WINDOWS = 1200


@dataclass(frozen=True, slots=True)
class Plan:
    """Minutes are from the first step on; None: not before the deadline."""

    requests_per_second: float
    error_rate: float
    minutes_to_find: float | None
    """Until a canary with twice the errors is rejected."""
    minutes_to_certify: float | None
    """Until a healthy canary is through the last step before 100 %."""
    sentences: tuple[str, ...]
    """To be printed, one a line; the warnings are among them and begin with 'warning: '."""
    decides: bool
    """Whether a healthy canary can be certified before the deadline."""


def plan(policy: PromotionPolicy, requests_per_second: float, base_error_rate: float) -> Plan:
    """Walk the ramp with expected counts. Both arguments as measured over the last hour, of all arms."""
    rate = min(max(base_error_rate, 0.0), 0.5)
    if not last_proving_step(policy):
        uncompared = (
            "warning: no step before 100 %: the canary is compared with nobody before it serves everybody"
        )
        return Plan(max(requests_per_second, 0.0), rate, None, None, (uncompared,), False)
    if requests_per_second <= 0:
        silence = "warning: there was no traffic in the last hour; without any, the canary holds and then: "
        return Plan(0.0, rate, None, None, (silence + _at_deadline(policy),), False)
    find, accepted = _walk(policy, requests_per_second, rate, 2.0)
    _, certify = _walk(policy, requests_per_second, rate, 1.0)
    deadline = policy.deadline_seconds
    traffic = f"at the last hour's {requests_per_second:.3g} rps"
    sentences = [
        _found_sentence(traffic, rate, find, accepted is not None, deadline),
        _certified_sentence(certify, deadline),
        _forgiven_sentence(policy),
        *_shared_sentence(policy),
        paces(policy, requests_per_second, rate),
    ]
    if certify is None or certify > deadline:
        enough = f"; {duration(certify)} would be enough" if certify is not None else ""
        sentences.append(
            f"warning: this plan cannot decide within its deadline of {duration(deadline)}{enough}; "
            f"then: {_at_deadline(policy)}"
        )
    return Plan(
        requests_per_second,
        rate,
        find / 60 if find is not None and find <= deadline else None,
        certify / 60 if certify is not None and certify <= deadline else None,
        tuple(sentences),
        certify is not None and certify <= deadline,
    )


def paces(policy: PromotionPolicy, requests_per_second: float, base_error_rate: float) -> str:
    """A sentence: the minutes in which a healthy canary is certified at each pace."""
    said = []
    for name, keys in PACES.items():
        # Not validated: the question is how long it would take, whatever the policy's own deadline.
        other = policy.model_copy(update={**keys, "pace": name})
        certify = _walk(other, requests_per_second, base_error_rate, 1.0)[1]
        late = certify is not None and certify > policy.deadline_seconds
        takes = "more than 30 days" if certify is None else f"{certify / 60:.0f} min"
        said.append(f"{name} {takes}{' (after the deadline)' if late else ''}")
    own = any(getattr(policy, key) != value for key, value in PACES[policy.pace].items())
    mine = f"{policy.pace}, with keys of its own" if own else policy.pace
    return f"a healthy canary by pace: {', '.join(said)}; this model's is {mine}"


def needed(policy: PromotionPolicy, counted: Tally) -> int | None:
    """Canary requests still needed for the certificate if both arms go on as they did; None when they would
    not be enough at any number."""
    counted = calmly(policy, counted)
    canary, stable = counted.canary.sum(), counted.stable.sum()
    bad_c, bad_s = counted.canary_errors.sum(), counted.stable_errors.sum()
    pooled = (bad_c + bad_s + 0.5) / (canary + stable + 1)
    rate_c, rate_s = (bad_c + pooled) / (canary + 1), (bad_s + pooled) / (stable + 1)
    part = min(max(float(counted.weight[-1]) / 100, 0.01), 0.99)
    more = np.geomspace(1, 1e8, 120)
    more_s = more * (1 - part) / part
    share = counted.canary / np.maximum(counted.canary + counted.stable, 1)
    seen = ratio_logs(
        counted.canary_errors[:, None],
        (counted.canary_errors + counted.stable_errors)[:, None],
        share,
        better(policy),
        policy.max_ratio,
    ).sum(axis=(-2, -1))
    grown = ratio_logs(
        (more * rate_c)[:, None],
        (more * rate_c + more_s * rate_s)[:, None],
        np.full_like(more, part),
        better(policy),
        policy.max_ratio,
    )[..., 0]
    arms = (bad_c + more * rate_c, canary + more, bad_s + more_s * rate_s, stable + more_s)
    enough = np.flatnonzero(certificate(policy, seen[:, None] + grown, arms))
    return int(np.ceil(more[enough[0]])) if len(enough) else None


def _walk(
    policy: PromotionPolicy, requests_per_second: float, rate: float, ratio: float
) -> tuple[float | None, float | None]:
    """Seconds until a canary with `ratio` times the errors is rejected, and until it has passed the last step
    with a control group, by expected counts; None when not within LONGEST."""
    horizon = policy.deadline_seconds
    while True:
        seconds = max(policy.window_seconds, horizon / PLANNED_WINDOWS)
        rejected, through = _ramp(policy, requests_per_second, rate, ratio, seconds)
        if horizon >= LONGEST or rejected is not None or through is not None:
            return rejected, through
        horizon = min(horizon * 8, LONGEST)


def _ramp(
    policy: PromotionPolicy, requests_per_second: float, rate: float, ratio: float, seconds: float
) -> tuple[float | None, float | None]:
    steps: Sequence[int] = [step for step in policy.steps if step < final_weight(policy)]
    weights = np.full(PLANNED_WINDOWS, float(steps[0]))
    for step, following in zip(steps, [*steps[1:], 0], strict=True):
        counted = _expected(weights, seconds, requests_per_second, rate, ratio)
        followed = path(counted)
        evidence = combined(policy, {"errors": followed.errors})
        rejected = np.flatnonzero(evidence >= rejection(policy))
        step_passed = passed(policy, counted, followed, evidence, certified(policy, counted))
        through = np.flatnonzero(step_passed & (weights == step))
        if len(rejected) and (not len(through) or rejected[0] <= through[0]):
            return float(rejected[0] + 1) * seconds, None
        if not len(through):
            return None, None
        if step == last_proving_step(policy) or not following:
            return None, float(through[0] + 1) * seconds
        weights[through[0] + 1 :] = following
    return None, None


def _expected(weights: Array, seconds: float, requests_per_second: float, rate: float, ratio: float) -> Tally:
    canary = requests_per_second * seconds * weights / 100
    stable = requests_per_second * seconds - canary
    none = np.zeros((len(weights), 0))
    return Tally(
        np.full_like(weights, seconds),
        weights,
        canary,
        canary * min(rate * ratio, 1.0),
        stable,
        stable * rate,
        canary,
        stable,
        none,
        none,
    )


def _found_sentence(traffic: str, rate: float, find: float | None, accepted: bool, deadline: float) -> str:
    doubling = f"{traffic} a doubling of {100 * rate:.2g} % errors"
    if rate == 0:
        return f"{traffic} there were no errors: a canary that has some is soon found"
    if find is None and accepted:
        return f"{doubling} is not looked for: it is proven to stay within max_absolute before that"
    if find is None:
        return f"{doubling} would not be found: too few errors"
    late = "" if find <= deadline else ", after the deadline"
    return f"{doubling} is found in about {duration(find)}{late}"


def _certified_sentence(certify: float | None, deadline: float) -> str:
    if certify is None or certify > deadline:
        return "a healthy canary is not certified before the deadline"
    return f"a healthy canary is certified in about {duration(certify)}"


def _forgiven_sentence(policy: PromotionPolicy) -> str:
    """What is not held against a canary, and so is found later or not at all."""
    pauses = "requests count as independent: a pause of a server may convict (pause_seconds)"
    if policy.pause_seconds:
        pauses = (
            f"a pause of a server of up to {duration(policy.pause_seconds)} convicts nobody: what is bad "
            "within it counts once, as likely to hit either release"
        )
    seconds = warm_up(policy)
    warming = f"; slowness in the first {duration(seconds)} of a step or of a server counts for nothing"
    return pauses + (warming if seconds and policy.weights.latency else "")


def _shared_sentence(policy: PromotionPolicy) -> list[str]:
    """How alpha is shared, where the model asks for gates of its own: each costs the others a little."""
    if not policy.segments and not policy.metrics and policy.outcomes is None:
        return []
    weights = gate_weights(policy, asked(policy))
    whole = sum(weights.values())
    shares = [f"{name} {100 * weight / whole:.2g} %" for name, weight in weights.items()]
    sentence = f"of the {100 * policy.alpha:.2g} % to reject a healthy canary, gates get: {', '.join(shares)}"
    if policy.segments:
        sentence += f"; all values of {' and '.join(policy.segments)} share that of segments"
    return [sentence, *_outcomes_sentence(policy)]


def _outcomes_sentence(policy: PromotionPolicy) -> list[str]:
    if policy.outcomes is None:
        return []
    becomes = "rejected" if policy.outcomes.weight else "held"
    sentence = f"a canary that is proven wrong is {becomes}"
    if policy.outcomes.required:
        sentence += f"; {policy.outcomes.required} outcomes of its answers are waited for before 100 %"
    return [sentence]


def duration(seconds: float) -> str:
    """As people say it: 40 s, 24 min, 4.7 h, 12 days."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            value = seconds / length
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _at_deadline(policy: PromotionPolicy) -> str:
    return {
        "rollback": "the traffic goes back, and the release is unproven; one that nothing precedes stays",
        "keep": "the canary keeps its weight",
        "promote_unproven": "it is promoted unproven if it had traffic, and recorded as such",
    }[policy.at_deadline]
