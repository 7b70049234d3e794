"""Counts in, verdict out: a pure function of the policy and the stored windows. No clock, no client.

The order of questions: is there anything to see; is the canary's harm proven; is somebody else's harm in the
way; has this step had its time, its requests and, before the last one, its certificate. Whatever is not
answered holds, and at the deadline the policy says what a hold becomes.

A window (`windows.Window`) holds, for each release, what its gateway and its servers counted in that time:
requests, failed and slow ones, outputs, agreement with the stable, servers that have started; for the stable
also the halves of its servers. `alpha` holds exactly where requests are bad independently of each other given
the hour, and by simulation where servers of both releases pause for up to `pause_seconds`; see `bursts`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flows.domain.judge import gates
from flows.domain.judge.evidence import Array, bounds, detector, mean_log
from flows.domain.judge.gates import Reading, percent
from flows.domain.judge.outcomes import unspoken
from flows.domain.judge.paths import (
    Tally,
    beside,
    beyond,
    certified,
    final_weight,
    gate_weights,
    hastened,
    last_proving_step,
    passed,
    path,
    rejection,
    rescues,
    suspicion,
    tally,
)
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.readings import beside_the_stable
from flows.domain.judge.ruling import at_deadline, check_order, harm, numbers, rejected, short, total_evidence
from flows.domain.judge.segments import named
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.waiting import blind, more_of_step, per_second, waiting
from flows.domain.judge.windows import Window


def judge(policy: PromotionPolicy, windows: Sequence[Window]) -> Verdict:
    """Judge a ramp. `windows` are all of the promotion, in order; the step is the last one's weight.

    Raises EvidenceInvalid when there are no windows or their times do not rise.
    """
    check_order(windows)
    expired = windows[-1].end - windows[0].start >= policy.deadline_seconds
    observed = [window for window in windows if window.observed]
    if not windows[-1].observed:
        verdict = Verdict("unobserved", "time", f"nothing can be seen, weights stay: {windows[-1].why}")
    elif windows[-1].stable is None:
        verdict = _alone(policy, observed)
    else:
        verdict = _beside(policy, observed)
    return at_deadline(policy, verdict, windows) if expired else verdict


def judge_promoted(policy: PromotionPolicy, promotion: Sequence[Window], since: Sequence[Window]) -> Verdict:
    """Judge the release after 100 %: `promotion` are the windows of its ramp, `since` the ones after it.

    Beside the previous release when it keeps a hold-back share, else against what the ramp has shown: worse
    than `max_ratio` times and `max_absolute` points above that. `advance` ends the watch, nothing found in
    `post_watch_seconds`; `reject` sends the traffic back to the previous release; an end that nobody could
    see is `unobserved` with outcome `keep`. Raises EvidenceInvalid as `judge` does.
    """
    check_order(since)
    seconds = max(window.end for window in since) - since[0].start
    over = seconds >= policy.post_watch_seconds
    if not since[-1].observed:
        sentence = f"nothing can be seen after 100 %: {since[-1].why}"
        return Verdict("unobserved", "time", sentence, expired=over, outcome="keep" if over else "wait")
    windows = [window for window in since if window.observed]
    counted = tally(policy, windows)
    ramp = [window for window in promotion if window.observed]
    readings = _detected(policy, counted, ramp)
    total = total_evidence(policy, {one.gate: one.log for one in readings})
    verdict = numbers(policy, counted, total)
    planned = max(len(windows), policy.post_watch_seconds / policy.window_seconds)
    worst = harm(policy, readings, rejection(policy) + math.log(planned))
    if worst is not None:
        return rejected(verdict, worst, f"worse since it serves everybody (evidence {short(total)})")
    counts = f"{verdict.canary_bad} of {verdict.canary_total} requests failed"
    if over:
        sentence = f"{counts} in the {seconds:.0f} s after 100 %"
        return replace(verdict, kind="advance", outcome="advance", expired=True, sentence=sentence)
    sentence = f"{counts} in {seconds:.0f} of {policy.post_watch_seconds:.0f} s after 100 %"
    left = (policy.post_watch_seconds - seconds) / 60
    return replace(verdict, metric="time", minutes_needed=left, sentence=sentence)


def _detected(policy: PromotionPolicy, counted: Tally, ramp: Sequence[Window]) -> list[Reading]:
    """An e-detector a gate: harm may begin at any time after 100 %."""
    before = tally(policy, ramp)
    # Without a hold-back only stragglers reach the previous release, and they are no control group.
    control = policy.hold_back > 0 and counted.stable.sum() > 0
    readings = []
    for gate, bad, total, bad_s, total_s, bad_before, total_before in (
        (
            "errors",
            counted.canary_errors[:, None],
            counted.canary,
            counted.stable_errors[:, None],
            counted.stable,
            before.canary_errors[:, None] + before.stable_errors[:, None],
            before.canary + before.stable,
        ),
        # Latency follows the load of the machine and of the hour: without a control group at the same
        # time, slower than before says nothing about the release.
        *(_slow(counted, before) if control else ()),
    ):
        if control:
            arms = bad, bad_s, total, total_s, counted.seconds, policy.pause_seconds
            logs = beside(*arms, every=False)[1]
        else:
            worst = bounds(bad_before.sum(axis=0), np.full(bad.shape[1], total_before.sum()), policy.beta)[1]
            if not total_before.sum():
                worst = np.full(bad.shape[1], policy.slo_error_rate)
            limit = np.maximum(worst * policy.max_ratio, worst + policy.max_absolute)
            logs = beyond(bad, total, np.minimum(limit, 0.99), counted.seconds, policy.pause_seconds)
        gains = np.diff(np.moveaxis(logs, 0, -1), axis=0, prepend=0)
        log = mean_log(detector(gains)[-1].reshape(-1), axis=0)
        most = int(np.argmax(bad.sum(axis=0) - bad_s.sum(axis=0)))
        what = "requests failed"
        if gate == "latency":
            what = f"requests took over {gates.milliseconds(counted.bounds[most][1])}"
        readings.append(
            Reading(
                gate,
                float(log),
                int(bad[:, most].sum()),
                int(total.sum()),
                int((bad_s if control else bad_before)[:, most].sum()),
                int((total_s if control else total_before).sum()),
                what,
            )
        )
    return readings


def _slow(counted: Tally, before: Tally) -> list[tuple[str, Array, Array, Array, Array, Array, Array]]:
    """The latency arrays of the watch and of its ramp, where their bounds are the same."""
    if not counted.bounds or (before.bounds and before.bounds != counted.bounds):
        return []
    earlier = before.canary_slow + before.stable_slow if before.bounds else np.zeros_like(counted.canary_slow)
    timed = before.canary_timed + before.stable_timed if before.bounds else np.zeros(1)
    return [
        (
            "latency",
            counted.canary_slow,
            counted.canary_timed,
            counted.stable_slow,
            counted.stable_timed,
            earlier,
            timed,
        )
    ]


def _beside(policy: PromotionPolicy, windows: list[Window]) -> Verdict:
    """The canary against the stable."""
    counted = tally(policy, windows)
    followed = path(counted, last=True)
    readings = beside_the_stable(policy, windows, counted, followed)
    total = total_evidence(policy, {one.gate: one.log for one in readings})
    verdict = numbers(policy, counted, total)
    worst = harm(policy, readings, rejection(policy))
    if worst is not None:
        whom = named(policy, windows) if worst.gate == "errors" else ""
        return rejected(
            verdict, worst, f"{whom}evidence {short(total)}, enough from {1 / policy.alpha:.0f} on"
        )
    weights = gate_weights(policy, {one.gate for one in readings})
    suspect = max((one for one in readings if one.gate in weights), key=lambda one: one.log)
    if total >= rejection(policy):
        why = "but the stable's own servers differ as much: bursts, which hold and do not reject"
        return replace(verdict, metric=suspect.gate, sentence=f"{suspect.sentence}; {why}")
    incident = gates.incident(policy, windows, counted)
    if incident is not None:
        return replace(verdict, metric="incident", sentence=incident)
    if total >= suspicion(policy):
        why = f"evidence {short(total)}: no more traffic until it is cleared or rejected"
        return replace(verdict, metric=suspect.gate, sentence=f"{suspect.sentence}; {why}")
    if float(followed.trouble[-1]) >= suspicion(policy):
        why = "a pause, or the beginning of more: the next seconds tell"
        return replace(
            verdict, metric=suspect.gate, sentence=f"{suspect.sentence}, and just now again; {why}"
        )
    wrong = next((one for one in readings if one.gate == "outcomes" and one.log >= rejection(policy)), None)
    if wrong is not None and policy.outcomes is not None:
        why = f"healthy, and more than {100 * policy.outcomes.max_worse:g} points worse: held, "
        why += "until it is rejected or cleared" if policy.outcomes.weight else "not rejected"
        return replace(verdict, metric="outcomes", sentence=f"{wrong.sentence}; {why}")
    proven = certified(policy, counted, last=True)
    untold = unspoken(policy, windows) if windows[-1].weight == last_proving_step(policy) else ""
    if untold and proven[-1]:
        return replace(verdict, metric="proof", sentence=untold)
    if passed(policy, counted, followed, np.array([total]), proven)[-1] and not blind(policy, windows):
        return replace(
            verdict, kind="advance", outcome="advance", sentence=passed_sentence(policy, verdict, counted)
        )
    return waiting(policy, windows, counted, followed, verdict)


def _alone(policy: PromotionPolicy, windows: list[Window]) -> Verdict:
    """A release without a stable: the service level is what it must keep."""
    counted = tally(policy, windows)
    readings = gates.alone(policy, counted, windows)
    total = total_evidence(policy, {one.gate: one.log for one in readings})
    errors = readings[0]
    upper = bounds(np.array(errors.canary_bad), np.array(errors.canary_total), policy.beta)[1]
    verdict = numbers(policy, counted, total)
    worst = harm(policy, readings, rejection(policy))
    if worst is not None:
        level = policy.slo_error_rate if worst.gate == "errors" else policy.slo_slow_share
        return rejected(verdict, worst, f"the service level allows {percent(level, 1)}")
    followed = path(counted, last=True)
    seconds, requests = followed.step_seconds[-1], followed.step_requests[-1]
    unseen = blind(policy, windows)
    if not errors.canary_total:
        return replace(verdict, metric="traffic", sentence="no request has reached the release yet")
    if unseen:
        return replace(verdict, metric="metrics", sentence=unseen)
    if seconds < policy.dwell_seconds or requests < policy.min_requests:
        return more_of_step(policy, verdict, float(seconds), float(requests), per_second(counted))
    proven = f"at most {percent(float(upper), 1)} of the requests fail"
    if upper >= policy.slo_error_rate:
        sentence = f"{errors.sentence}; not yet proven to be below {percent(policy.slo_error_rate, 1)}"
        return replace(verdict, metric="proof", sentence=sentence)
    sentence = f"{errors.sentence}; {proven}, and {percent(policy.slo_error_rate, 1)} are allowed"
    return replace(verdict, kind="advance", outcome="advance", metric="errors", sentence=sentence)


def passed_sentence(policy: PromotionPolicy, verdict: Verdict, counted: Tally) -> str:
    weight = int(counted.weight[-1])
    counts = (
        f"{verdict.canary_bad} of {verdict.canary_total} requests failed on the canary, "
        f"{verdict.stable_bad} of {verdict.stable_total} on the stable"
    )
    if weight >= final_weight(policy):
        return f"the gateway sends the canary what it should at {weight} %; {counts}"
    if rescues(policy, counted)[-1]:
        usual = f"{hastened(policy):.0f} of the usual {policy.dwell_seconds:.0f} s are enough"
        return f"{counts}; the stable fails, and the canary is proven to be better: {usual}"
    if weight >= last_proving_step(policy):
        return f"{counts}; certified: {_worst_case(policy, verdict)}"
    return f"{counts}; nothing speaks against it at {weight} % (evidence {short(math.log(verdict.evidence))})"


def _worst_case(policy: PromotionPolicy, verdict: Verdict) -> str:
    if verdict.interval[1] < policy.max_absolute:
        return f"at most {100 * max(verdict.interval[1], 0):.2g} points more errors than the stable"
    return f"fewer than {policy.max_ratio:g} times the stable's errors"
