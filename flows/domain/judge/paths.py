"""The judge's arithmetic over all windows of a ramp at once: evidence, certificate and progress after each.

The judge looks at the last window; the report's plot and the simulations of `make bench-judge` look at every
one. Leading axes are independent runs, so that what is simulated is what decides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flows.domain.judge import bursts, incidents
from flows.domain.judge.evidence import (
    BETTER,
    LARGEST,
    PRIOR,
    WORSE,
    Array,
    bounds,
    costs,
    mean_log,
    one_sample_evidence,
    ratio_logs,
    since,
)
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window

Key = TypeVar("Key")

APPLIED = 0.8
"""A step is credited only where at least this part of the set weight is seen in the requests."""
SIGMAS = 3.0
"""… allowing for this much chance."""
HASTE = 3.0
"""A step of a canary that rescues the stable takes this part of the usual time."""


@dataclass(frozen=True)
class Tally:
    """Observed windows as arrays [..., T], and [..., T, B] for the compared latency bounds."""

    seconds: Array
    weight: Array
    canary: Array
    canary_errors: Array
    stable: Array
    stable_errors: Array
    canary_timed: Array
    stable_timed: Array
    canary_slow: Array
    stable_slow: Array
    bounds: tuple[tuple[float, float], ...] = ()
    """Per compared pair: the stable's bound in seconds and the canary's, longer by the slowdown."""
    started: Array | None = None
    """Servers that began to serve in each window; None: none."""
    pause_seconds: float = 20.0
    warm_up_seconds: float = 0.0
    cached: tuple[Array, Array, Array, Array] | None = None
    """Answers that were known already, which the latencies above leave out: the canary's and the stable's
    [..., T], and the slow ones of these [..., T, B]. None: none."""


def tally(policy: PromotionPolicy, windows: Sequence[Window]) -> Tally:
    """The arrays of observed windows. The arm that is missing counts nothing."""
    nothing = Counts()
    canaries = [window.canary for window in windows]
    stables = [window.stable or nothing for window in windows]
    arms = [*canaries, *stables]
    bounds, slow = table([counts.slow for counts in arms])
    pairs = paired(policy, _shared(bounds, arms))
    places = {bound: place for place, bound in enumerate(bounds)}

    def column(values: list[float]) -> Array:
        return np.array(values, dtype=np.float64)

    timed = column([counts.timed for counts in arms])
    cached = column([counts.cached for counts in arms])
    known = np.zeros_like(slow)
    if cached.any():
        known = np.array(
            [[counts.cached_slow.get(bound, 0) for bound in bounds] for counts in arms], dtype=np.float64
        )
    computed, each = slow - known, len(canaries)
    of_canary, of_stable = [places[pair[1]] for pair in pairs], [places[pair[0]] for pair in pairs]

    return Tally(
        column([window.seconds for window in windows]),
        column([window.weight for window in windows]),
        column([counts.requests for counts in canaries]),
        column([counts.errors for counts in canaries]),
        column([counts.requests for counts in stables]),
        column([counts.errors for counts in stables]),
        (timed - cached)[:each],
        (timed - cached)[each:],
        computed[:each, of_canary],
        computed[each:, of_stable],
        tuple(pairs),
        column([counts.started for counts in canaries]),
        policy.pause_seconds,
        warm_up(policy),
        (cached[:each], cached[each:], known[:each, of_canary], known[each:, of_stable])
        if cached.any()
        else None,
    )


def warm_up(policy: PromotionPolicy) -> float:
    """Seconds of a step, and of a new server, whose slowness counts for nothing: at most half of a step."""
    return min(policy.warm_up_seconds, policy.dwell_seconds / 2)


def paired(policy: PromotionPolicy, bounds: Sequence[float]) -> list[tuple[float, float]]:
    """Each bound for the stable with the smallest one that is `max_slowdown` times as long for the canary."""
    pairs = []
    for bound in bounds:
        slower = [other for other in bounds if other >= bound * policy.max_slowdown * (1 - 1e-9)]
        if slower and slower[0] >= policy.latency_floor_seconds:
            pairs.append((bound, slower[0]))
    return pairs


@dataclass(frozen=True)
class Path:
    """After every window: log E against the canary by gate, and how far the step is. All [..., T], but for
    the evidences, which are [..., 1] when only the last was asked for."""

    errors: Array
    latency: Array
    trouble: Array
    """log E of what the last two tolerated pauses hold, the gates' greatest, as if it were no pause."""
    step_seconds: Array
    """Observed seconds at the current weight, with the weight really applied."""
    step_requests: Array
    """Canary requests in these."""
    applied: NDArray[np.bool_]
    """Whether the share measured in this step agrees with the weight."""


def path(counted: Tally, *, last: bool = False) -> Path:
    """Follow a ramp; with `last`, the costly parts only for its last window."""
    errors, trouble = against(
        counted.canary_errors[..., None],
        counted.stable_errors[..., None],
        counted.canary,
        counted.stable,
        counted.seconds,
        counted.pause_seconds,
        last=last,
    )
    latency = np.zeros_like(errors)
    if counted.bounds:
        judged = ~warm_windows(counted)
        kinds = [
            against(
                slow * judged[..., None],
                slow_stable * judged[..., None],
                timed * judged,
                timed_stable * judged,
                counted.seconds,
                counted.pause_seconds,
                last=last,
            )
            for timed, timed_stable, slow, slow_stable in by_kind(counted)
        ]
        latency, slowness = (mean_log(np.stack(logs), axis=0) for logs in zip(*kinds, strict=True))
        trouble = np.maximum(trouble, slowness)
    applied = _plausible(counted.canary, counted.canary + counted.stable, counted.weight)
    credited = applied & (counted.canary + counted.stable > 0)
    new = _shifted(counted)
    seconds, requests, total = (
        since(new, amounts * credited, axis=-1)
        for amounts in (counted.seconds, counted.canary, counted.canary + counted.stable)
    )
    return Path(
        errors,
        latency,
        trouble,
        seconds,
        requests,
        _plausible(requests, total, counted.weight) & applied,
    )


def by_kind(counted: Tally) -> list[tuple[Array, Array, Array, Array]]:
    """Timed requests of the canary and of the stable, and slow ones: of answers that were computed, and of
    those that were known already, if any were. That a release begins with a cold cache is no fault of it."""
    computed = counted.canary_timed, counted.stable_timed, counted.canary_slow, counted.stable_slow
    return [computed] if counted.cached is None else [computed, counted.cached]


def _shifted(counted: Tally) -> NDArray[np.bool_]:
    return np.asarray(np.diff(counted.weight, axis=-1, prepend=np.nan) != 0)


def warm_windows(counted: Tally) -> NDArray[np.bool_]:
    """Windows that begin within a warm-up: of the step, or of a server that joined later. Servers that join
    again and again are forgiven every other time, so that at least half of a step is looked at."""
    age = since(_shifted(counted), counted.seconds, axis=-1) - counted.seconds
    warm = np.asarray(age < counted.warm_up_seconds - 1e-6)
    if counted.started is None or not (counted.started * ~warm).any() or counted.warm_up_seconds <= 0:
        return warm
    forgiven, until, again = warm.copy(), -math.inf, -math.inf
    now = np.cumsum(counted.seconds)
    for place in np.flatnonzero(counted.started * ~warm):
        begun = float(now[place] - counted.seconds[place])
        if begun >= again:
            until = float(now[place]) + counted.warm_up_seconds
            again = until + counted.warm_up_seconds
            forgiven |= (now > begun) & (now - counted.seconds < until)
    return forgiven


def against(
    bad: Array, bad_stable: Array, canary: Array, stable: Array, seconds: Array, pause: float, *, last: bool
) -> tuple[Array, Array]:
    """log E after every window (with `last` after the last one) that the canary's bad requests come more
    often, averaged over the metrics; and of the last two pauses alone, as if all requests were independent.

    What is left out of the evidence never turns it into evidence for the canary (E below 1).
    """
    weights = PRIOR.reshape(-1, *(1,) * bad.ndim)
    if not last:
        whole, counted, recent = (
            mean_log(logs, axis=0, weights=weights)
            for logs in beside(bad, bad_stable, canary, stable, seconds, pause, every=True)
        )
        return mean_log(np.maximum(counted, np.minimum(whole, 0)), axis=-1), mean_log(recent, axis=-1)
    young = bursts.stretches(seconds, pause, every=False).first[-bursts.COARSE :][0]
    whole, recent = (
        mean_log(
            _independent(bad[part], bad_stable[part], canary[part], stable[part]),
            axis=0,
            weights=PRIOR[:, None],
        )
        for part in (slice(None), slice(young, None))
    )
    doubtful = whole > 0
    if doubtful.any():
        bad, bad_stable = bad[:, doubtful], bad_stable[:, doubtful]
        logs = beside(bad, bad_stable, canary, stable, seconds, pause, every=False)[1][:, -1]
        whole[doubtful] = np.maximum(mean_log(logs, axis=0, weights=PRIOR[:, None]), 0)
    return mean_log(whole, axis=-1)[None], mean_log(recent, axis=-1)[None]


def apart(bad: Array, bad_stable: Array, canary: Array, stable: Array, seconds: Array, pause: float) -> Array:
    """As `against` after the last window, for G gates of which each has requests of its own: four arrays
    [T, G] → log E [G]."""
    rows, gates = np.nonzero(bad + bad_stable)
    paid = costs(_share(canary[rows, gates], stable[rows, gates]), WORSE, 1.0)
    paid = paid * (bad + bad_stable)[rows, gates]
    paid = np.stack([np.bincount(gates, one, bad.shape[1]) for one in paid])
    whole = mean_log(np.log(WORSE)[:, None] * bad.sum(axis=0) - paid, axis=0, weights=PRIOR[:, None])
    doubtful = np.flatnonzero(whole > 0)
    if len(doubtful):
        bad, bad_stable = bad.T[doubtful, :, None], bad_stable.T[doubtful, :, None]
        canary, stable = canary.T[doubtful], stable.T[doubtful]
        logs = beside(bad, bad_stable, canary, stable, seconds, pause, every=False)[1][..., -1, 0]
        whole[doubtful] = np.maximum(mean_log(logs, axis=0, weights=PRIOR[:, None]), 0)
    return whole


def _independent(bad: Array, bad_stable: Array, canary: Array, stable: Array) -> Array:
    """log e by ratio [ratios, G] of all windows together, as of independent requests."""
    paid = costs(_share(canary, stable), WORSE, 1.0) @ (bad + bad_stable)
    result: Array = np.log(WORSE)[:, None] * bad.sum(axis=0) - paid
    return result


def beside(
    bad: Array, bad_stable: Array, canary: Array, stable: Array, seconds: Array, pause: float, *, every: bool
) -> tuple[Array, Array, Array]:
    """log e by ratio [ratios, ..., P, G] after each window, or each stretch, against the stable: as of
    independent requests, what counts of it, and what the last two pauses hold.

    `bad` and `bad_stable` are [..., T, G], `canary` and `stable` the requests [..., T] that they are part of.
    """
    groups = bursts.stretches(seconds, pause, every=every)
    paid = costs(_share(canary, stable), WORSE, 1.0)[..., None] * (bad + bad_stable)
    bad, bad_stable = groups.sums(bad, axis=-2), groups.sums(bad_stable, axis=-2)
    canary, stable, seconds = (groups.sums(one, axis=-1) for one in (canary, stable, seconds))
    slopes = np.log(WORSE).reshape(-1, *(1,) * bad.ndim)
    logs = slopes * bad - groups.sums(paid, axis=-2)
    whole, recent = bursts.added_up(groups, logs), bursts.recent(groups, logs)
    if pause <= 0:
        return whole, whole, recent
    own, other = bursts.habit(groups, bad, canary), bursts.habit(groups, bad_stable, stable, bursts.UNSEEN)
    gains = slopes - costs(_share(canary, stable), WORSE, 1.0)[..., None]
    return whole, bursts.counted(groups, logs, gains, bad, canary, own, other, seconds, pause), recent


def beyond(bad: Array, total: Array, tolerated: Array, seconds: Array, pause: float) -> Array:
    """log e by ratio [ratios, P, G] after each stretch that bad requests [T, G] come at more than the rates
    `tolerated` [G], without anybody to compare with."""
    groups = bursts.stretches(seconds, pause, every=False)
    bad = groups.sums(bad, axis=-2)
    total, seconds = groups.sums(total, axis=-1), groups.sums(seconds, axis=-1)
    logs = np.moveaxis(one_sample_evidence(bad, total[:, None], tolerated), -1, 0)
    if pause <= 0:
        return bursts.added_up(groups, logs)
    own, other = bursts.habit(groups, bad, total), bursts.Habit(tolerated, np.ones(1))
    gains = np.log(WORSE).reshape(-1, 1, 1)
    return bursts.counted(groups, logs, gains, bad, total, own, other, seconds, pause)


NEWER = frozenset({"client_errors", "missing", "segments"})
"""Gates that older windows do not count."""


def combined(
    policy: PromotionPolicy, gates: dict[str, Array], counted: Collection[str] | None = None
) -> Array:
    """log of the weighted mean of the gates' evidences; gates without data count as evidence 1. Those that
    came later and that the windows do not count (by default: that the policy does not ask for) take no part:
    an old verdict stays what it was."""
    weights = gate_weights(policy, asked(policy) if counted is None else counted)
    zero = np.zeros_like(next(iter(gates.values())))
    logs = np.stack([gates.get(name, zero) for name in weights])
    shares = np.array(list(weights.values())).reshape(-1, *(1,) * zero.ndim)
    return mean_log(logs, axis=0, weights=shares)


def asked(policy: PromotionPolicy) -> set[str]:
    """The gates of `NEWER` and of the model's own that windows of today count under this policy."""
    gates = {"client_errors", "missing", *(metric.name for metric in policy.metrics)}
    if policy.segments:
        gates.add("segments")
    if policy.outcomes is not None:
        gates.add("outcomes")
    return gates


def gate_weights(policy: PromotionPolicy, counted: Collection[str]) -> dict[str, float]:
    """The gates that are on, with their weights; see `combined`."""
    weights = policy.weights.model_dump()
    weights |= {metric.name: metric.weight for metric in policy.metrics if metric.name in counted}
    if policy.outcomes is not None and "outcomes" in counted:
        weights["outcomes"] = policy.outcomes.weight
    for name in NEWER - set(counted):
        weights[name] = 0.0
    if policy.min_agreement is None:
        weights["agreement"] = 0.0
    on = {name: weight for name, weight in weights.items() if weight > 0}
    return on or {"errors": 1.0}


def certificate(
    policy: PromotionPolicy, logs: Array, arms: tuple[Array, Array, Array, Array]
) -> NDArray[np.bool_]:
    """Whether the canary is proven to be less than `max_ratio` times or `max_absolute` worse.

    `logs` are the ratio test's, one a ratio of `better(policy)`; `arms` the canary's errors and requests and
    the stable's, cumulated.
    """
    relative = mean_log(logs, axis=0) >= math.log(1 / policy.beta)
    bad_c, total_c, bad_s, total_s = arms
    upper = bounds(bad_c, total_c, policy.beta / 2)[1]
    lower = bounds(bad_s, total_s, policy.beta / 2)[0]
    return np.asarray(relative | (upper - lower < policy.max_absolute))


def better(policy: PromotionPolicy) -> Array:
    return BETTER[policy.max_ratio > BETTER]


def certified(policy: PromotionPolicy, counted: Tally, *, last: bool = False) -> NDArray[np.bool_]:
    """Whether the canary has its certificate after every window; with `last` only after the last [..., 1].

    By what was counted while the stable kept the service level: in an incident both fail alike, and that says
    nothing of the time between incidents. A canary that rescues the stable needs no other certificate.
    """
    calm = calmly(policy, counted)
    share = _share(calm.canary, calm.stable)
    logs = ratio_logs(
        calm.canary_errors[..., None],
        (calm.canary_errors + calm.stable_errors)[..., None],
        share,
        better(policy),
        policy.max_ratio,
    )
    at = slice(-1, None) if last else slice(None)
    arms = (calm.canary_errors, calm.canary, calm.stable_errors, calm.stable)
    bad_c, total_c, bad_s, total_s = (np.cumsum(arm, axis=-1)[..., at] for arm in arms)
    proven = certificate(policy, np.cumsum(logs, axis=-2)[..., at, 0], (bad_c, total_c, bad_s, total_s))
    return proven | rescues(policy, counted)[..., at]


def calmly(policy: PromotionPolicy, counted: Tally) -> Tally:
    """The same with the windows emptied in which the stable broke the service level. Chosen by the stable's
    errors alone: what is left out can only make it look better."""
    kept = ~incidents.failing(counted.stable_errors, counted.stable, counted.seconds, policy.slo_error_rate)
    if kept.all():
        return counted
    arms = ("canary", "canary_errors", "stable", "stable_errors")
    return replace(counted, **{arm: getattr(counted, arm) * kept for arm in arms})


def spared(policy: PromotionPolicy, counted: Tally) -> NDArray[np.bool_]:
    """Whether the canary is proven, after every window, to have no part in what the stable suffers."""
    arms = (counted.canary_errors, counted.canary, counted.stable_errors, counted.stable)
    return incidents.spared(*arms, policy.max_ratio, policy.alpha)


def rescues(policy: PromotionPolicy, counted: Tally) -> NDArray[np.bool_]:
    """Whether the canary is spared, after every window, of a failure that lasts: each step is a relief."""
    level, new = policy.slo_error_rate, _shifted(counted)
    found = incidents.lasting(counted.stable_errors, counted.stable, level, new)
    return found & spared(policy, counted) if found.any() else found


def hastened(policy: PromotionPolicy) -> float:
    """Seconds at a step that are enough for a rescue: a third, and what a look at the latency takes."""
    least = max(policy.dwell_seconds / HASTE, warm_up(policy) + 2 * policy.pause_seconds)
    return min(policy.dwell_seconds, least)


def passed(
    policy: PromotionPolicy, counted: Tally, followed: Path, evidence: Array, proven: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether the step at each window's weight may be left upwards. `evidence` is log E over all gates,
    `proven` says whether the canary has its certificate."""
    final = counted.weight >= final_weight(policy)
    proof = proven | (counted.weight < last_proving_step(policy))
    dwell = np.where(rescues(policy, counted), hastened(policy), policy.dwell_seconds)
    return np.asarray(
        followed.applied
        & np.where(
            final,
            followed.step_requests > 0,
            (followed.step_seconds >= dwell - 1e-6)
            & (followed.step_requests >= policy.min_requests)
            & (np.maximum(evidence, followed.trouble) < suspicion(policy))
            & proof,
        )
    )


def suspicion(policy: PromotionPolicy) -> float:
    """log E from which on the canary gets no more traffic until it is cleared: half-way to a rejection."""
    return math.log(1 / policy.alpha) / 2


def rejection(policy: PromotionPolicy) -> float:
    return math.log(1 / policy.alpha)


def final_weight(policy: PromotionPolicy) -> int:
    """Where the ramp ends."""
    return 100 - policy.hold_back


def last_proving_step(policy: PromotionPolicy) -> int:
    """The last step with a control group; to leave it, the canary must have its certificate."""
    before = [step for step in policy.steps if step < final_weight(policy)]
    return before[-1] if before else 0


def cut(log: float) -> float:
    """e^log as a finite float."""
    return math.exp(min(max(log, -LARGEST), LARGEST))


def _share(canary: Array, stable: Array) -> Array:
    return canary / np.maximum(canary + stable, 1)


def _plausible(canary: Array, total: Array, weight: Array) -> NDArray[np.bool_]:
    part = weight / 100
    chance = SIGMAS * np.sqrt(total * part * (1 - part))
    return np.asarray(canary >= APPLIED * part * total - chance)


def _shared(bounds: Sequence[float], arms: Sequence[Counts]) -> list[float]:
    """The bounds of every window that timed a request: only these add up."""
    timed = [counts.slow for counts in arms if counts.timed]
    if all(len(slow) == len(bounds) for slow in timed):
        return sorted(bounds) if timed else []
    return sorted(set(bounds).intersection(*timed))


def table(counted: Sequence[Mapping[Key, int]]) -> tuple[list[Key], Array]:
    """All keys, and a row of counts for each mapping: 0 for a key that it lacks."""
    keys = list(counted[0]) if counted else []
    if list(chain.from_iterable(counted)) == keys * len(counted):
        # As ever, unless the mesh changed its buckets or a class was predicted for the first time.
        flat = chain.from_iterable([one.values() for one in counted])
        rows = np.fromiter(flat, np.float64, len(counted) * len(keys))
    else:
        keys = list(dict.fromkeys(chain.from_iterable(counted)))
        rows = np.array([[one.get(key, 0) for key in keys] for one in counted], dtype=np.float64)
    return keys, rows.reshape(len(counted), len(keys))
