"""What is compared, gate by gate: each turns the windows into one evidence and the counts behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from flows.domain.judge.evidence import (
    WORSE,
    Array,
    mean_log,
    one_sample_evidence,
    ratio_logs,
    shift_evidence,
)
from flows.domain.judge.incidents import INCIDENT_SECONDS
from flows.domain.judge.paths import (
    Path,
    Tally,
    against,
    beyond,
    by_kind,
    rejection,
    spared,
    suspicion,
    table,
    tally,
    warm_windows,
)
from flows.domain.judge.picks import Pick, disagreed, failed, predicted, slower, slower_of
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Window


@dataclass(frozen=True, slots=True)
class Reading:
    """One gate: log E against the canary, the counts, and words for them."""

    gate: str
    log: float
    canary_bad: int
    canary_total: int
    stable_bad: int
    stable_total: int
    what: str
    """What the bad ones did, such as 'requests failed'."""
    acts: bool = True
    """False when the metric cannot be trusted to reject (its bursts differ between equal servers)."""

    pick: Pick = failed
    """The bad ones and all of them, of one window's counts of one arm; for tables and plots."""

    @property
    def sentence(self) -> str:
        text = f"{self.canary_bad} of {self.canary_total} {self.what} on the canary"
        text += f" ({percent(self.canary_bad, self.canary_total)})"
        if self.stable_total:
            text += f", {self.stable_bad} of {self.stable_total} on the stable"
            text += f" ({percent(self.stable_bad, self.stable_total)})"
        return text


def compared(
    policy: PromotionPolicy, windows: Sequence[Window], counted: Tally, followed: Path
) -> list[Reading]:
    """All gates of a canary beside its stable."""
    return [
        _errors(policy, windows, counted, float(followed.errors[-1])),
        _latency(policy, windows, counted, float(followed.latency[-1])),
        _outputs(policy, windows),
        _agreement(policy, windows),
    ]


def alone(policy: PromotionPolicy, counted: Tally, windows: Sequence[Window]) -> list[Reading]:
    """The service-level guard of a release that has no stable to be compared with."""
    bad, total = counted.canary_errors, counted.canary
    log = _too_many(policy, bad, total, policy.slo_error_rate, counted.seconds)
    readings = [Reading("errors", log, int(bad.sum()), int(total.sum()), 0, 0, "requests failed")]
    bound = slow_bound(policy, windows)
    if bound is not None and policy.slo_latency_seconds is not None:
        slow = np.array([window.canary.slow.get(bound, 0) for window in windows], dtype=np.float64)
        timed = np.array([window.canary.timed for window in windows], dtype=np.float64)
        judged = ~warm_windows(counted)
        log = _too_many(policy, slow * judged, timed * judged, policy.slo_slow_share, counted.seconds)
        what = f"requests took over {milliseconds(bound)}"
        reading = Reading(
            "latency", log, int(slow.sum()), int(timed.sum()), 0, 0, what, pick=slower(bound, bound)
        )
        readings.append(reading)
    return readings


def _too_many(policy: PromotionPolicy, bad: Array, total: Array, tolerated: float, seconds: Array) -> float:
    logs = beyond(bad[:, None], total, np.array([tolerated]), seconds, policy.pause_seconds)
    return float(mean_log(logs[:, -1, 0], axis=0))


def slow_bound(policy: PromotionPolicy, windows: Sequence[Window]) -> float | None:
    """The histogram bound that stands for the service-level latency; None when there is none."""
    limit = policy.slo_latency_seconds
    found = [window.canary.slow for window in windows if window.canary.timed]
    if limit is None or not found:
        return None
    return min((bound for bound in found[-1] if bound >= limit * (1 - 1e-9)), default=None)


def incident(policy: PromotionPolicy, windows: Sequence[Window], counted: Tally) -> str | None:
    """Why both releases seem to fail together; None when the stable is as healthy as it was, or the canary is
    proven to be spared.

    The stable's last minute against the service level, and against its own past.
    """
    first = _latest(windows, INCIDENT_SECONDS)
    bad, total = counted.stable_errors[first:].sum(), counted.stable[first:].sum()
    bad_past, total_past = counted.stable_errors[:first].sum(), counted.stable[:first].sum()
    logs = [_risen(policy, counted, first), _broken(policy, bad, total)]
    if bad > policy.slo_error_rate * total:
        # Not over: what little traffic cannot tell in a minute, five of them can.
        longer = slice(_latest(windows, 5 * INCIDENT_SECONDS), None)
        logs.append(_broken(policy, counted.stable_errors[longer].sum(), counted.stable[longer].sum()))
    if max(logs) < rejection(policy) or spared(policy, counted)[-1]:
        return None
    before = f", {percent(bad_past, total_past)} before" if total_past else ""
    return (
        f"the stable fails as well ({percent(bad, total)} of its last {total:.0f} requests{before}): "
        "an incident that both share; weights stay until it is over"
    )


def _latest(windows: Sequence[Window], seconds: float) -> int:
    """The first window of the last so many seconds, or of the last four windows."""
    since = windows[-1].end - seconds
    first = next(index for index, one in enumerate(windows) if one.end > since)
    return min(first, max(0, len(windows) - 4))


def _broken(policy: PromotionPolicy, bad: float, total: float) -> float:
    """log E that more fail than the service level allows."""
    return float(
        mean_log(one_sample_evidence(np.array(bad), np.array(total), policy.slo_error_rate), axis=-1)
    )


def _risen(policy: PromotionPolicy, counted: Tally, first: int) -> float:
    """log E that the stable, from the window `first` on, fails over `max_ratio` times as often as before.

    Averaged over beginnings of the past, since the later past may be the incident itself, and over the last
    few windows, since the incident may be young.
    """
    logs = [np.zeros(1)]
    recent = len(counted.stable) - first
    while first and recent:
        bad, total = counted.stable_errors[-recent:].sum(), counted.stable[-recent:].sum()
        bad_past, total_past = np.cumsum(counted.stable_errors[:first]), np.cumsum(counted.stable[:first])
        share = total / np.maximum(total + total_past, 1)
        both = (bad + bad_past)[:, None]
        logs.append(
            ratio_logs(
                np.full_like(both, bad), both, share, policy.max_ratio * WORSE, policy.max_ratio
            ).reshape(-1)
        )
        recent //= 2
    return float(mean_log(np.concatenate(logs), axis=0))


def percent(part: float, whole: float) -> str:
    if not whole:
        return "0 %"
    value = 100 * part / whole
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _errors(policy: PromotionPolicy, windows: Sequence[Window], counted: Tally, log: float) -> Reading:
    return Reading(
        "errors",
        log,
        int(counted.canary_errors.sum()),
        int(counted.canary.sum()),
        int(counted.stable_errors.sum()),
        int(counted.stable.sum()),
        "requests failed",
        acts=log < suspicion(policy) or _even(policy, windows, "errors"),
    )


def _even(policy: PromotionPolicy, windows: Sequence[Window], gate: str) -> bool:
    """The A/A check: whether the gate's own test finds the halves of the stable's servers alike."""
    logs = []
    halves = [(window, window.halves) for window in windows if window.halves is not None]
    for side in (0, 1) if halves else ():
        counted = tally(
            policy,
            [Window(one.start, one.end, one.weight, pair[side], pair[1 - side]) for one, pair in halves],
        )
        arms = counted.canary_slow, counted.stable_slow, counted.canary_timed, counted.stable_timed
        if gate == "errors":
            bad, other = counted.canary_errors[:, None], counted.stable_errors[:, None]
            arms = bad, other, counted.canary, counted.stable
        if arms[0].shape[1]:
            logs.append(against(*arms, counted.seconds, policy.pause_seconds, last=True)[0])
    return not logs or float(mean_log(np.concatenate(logs), axis=0)) < rejection(policy)


def _latency(policy: PromotionPolicy, windows: Sequence[Window], counted: Tally, log: float) -> Reading:
    if not counted.bounds:
        timed = int(counted.canary_timed.sum()), int(counted.stable_timed.sum())
        return Reading("latency", 0.0, 0, timed[0], 0, timed[1], "requests were slow")
    kinds = [[arm.sum(axis=0) for arm in arms] for arms in by_kind(counted)]
    excess = np.stack([_excess(*arms) for arms in kinds])
    kind, worst = divmod(int(np.argmax(excess)), excess.shape[1])
    timed_c, timed_s, slow_c, slow_s = kinds[kind]
    bound_s, bound_c = counted.bounds[worst]
    names = ("requests",) if len(kinds) == 1 else ("computed answers", "answers from the cache")
    what = f"{names[kind]} took over {milliseconds(bound_c)}"
    if bound_c != bound_s:
        what += f" ({milliseconds(bound_s)} with {bound_c / bound_s:.3g} times the patience)"
    pick = slower(bound_s, bound_c) if len(kinds) == 1 else slower_of(kind == 1, bound_s, bound_c)
    return Reading(
        "latency",
        log,
        int(slow_c[worst]),
        int(timed_c),
        int(slow_s[worst]),
        int(timed_s),
        what,
        acts=log < suspicion(policy) or _even(policy, windows, "latency"),
        pick=pick,
    )


def _excess(timed: Array, timed_stable: Array, slow: Array, slow_stable: Array) -> Array:
    """How many standard deviations more of the canary's are slow than of both, by bound."""
    share, both = timed / np.maximum(timed + timed_stable, 1), slow + slow_stable
    result: Array = (slow - share * both) / np.sqrt(np.maximum(both, 1))
    return result


def _outputs(policy: PromotionPolicy, windows: Sequence[Window]) -> Reading:
    """Shares of predictions, canary against stable on the same live split, within the tolerance.

    Requests of different times are different requests: only windows of one weight, where both releases see
    the same mix, are added up; the steps' evidences are averaged.
    """
    steps: list[tuple[float, Reading]] = []
    for _, group in groupby(windows, key=lambda window: window.weight):
        steps.append(_shift(list(group), policy.max_shift))
    planned = max(len(policy.steps), len(steps))
    logs = [log for log, _ in steps] + [0.0] * (planned - len(steps))
    worst = max(steps, key=lambda step: step[0])[1]
    return Reading(
        "outputs",
        float(mean_log(np.array(logs), axis=0)),
        worst.canary_bad,
        worst.canary_total,
        worst.stable_bad,
        worst.stable_total,
        worst.what,
        pick=worst.pick,
    )


def _shift(windows: list[Window], tolerated: float) -> tuple[float, Reading]:
    canary = _summed([window.canary.outputs for window in windows])
    stable = _summed([window.stable.outputs for window in windows if window.stable is not None])
    names = sorted({*canary, *stable}, key=_edge)
    total_c, total_s = int(sum(canary.values())), int(sum(stable.values()))
    nothing = Reading(
        "outputs", 0.0, 0, total_c, 0, total_s, "predictions were elsewhere", pick=predicted(())
    )
    if len(names) < 2 or not total_c or not total_s:
        return 0.0, nothing
    bins_c, bins_s = (np.array([one.get(name, 0.0) for name in names]) for one in (canary, stable))
    labels = [f"predictions were in {name}" for name in names]
    groups = [names[place : place + 1] for place in range(len(names))]
    if all(math.isfinite(_edge(name)[0]) for name in names[:-1]):
        # Ordered bins: also everything up to a bin, which sees a shift that is spread over many bins.
        bins_c, bins_s = (np.concatenate([one, np.cumsum(one)[:-1]]) for one in (bins_c, bins_s))
        labels += [f"predictions were up to {name}" for name in names[:-1]]
        groups += [names[: place + 1] for place in range(len(names) - 1)]
    more = shift_evidence(bins_c, np.array(total_c), bins_s, np.array(total_s), tolerated)
    fewer = shift_evidence(bins_s, np.array(total_s), bins_c, np.array(total_c), tolerated)
    worst = int(np.argmax(np.abs(bins_c / total_c - bins_s / total_s)))
    reading = Reading(
        "outputs",
        0.0,
        int(bins_c[worst]),
        total_c,
        int(bins_s[worst]),
        total_s,
        labels[worst],
        pick=predicted(groups[worst]),
    )
    return float(mean_log(np.concatenate([more, fewer]), axis=0)), reading


def _agreement(policy: PromotionPolicy, windows: Sequence[Window]) -> Reading:
    """Shadow answers of both arms' servers: whoever sends the copies counts them."""
    if policy.min_agreement is None:
        return Reading("agreement", 0.0, 0, 0, 0, 0, "shadow answers disagreed")
    arms = [arm for window in windows for arm in (window.canary, window.stable) if arm is not None]
    bad, total = sum(arm.disagreed for arm in arms), sum(arm.compared for arm in arms)
    logs = one_sample_evidence(np.array(bad), np.array(total), 1 - policy.min_agreement)
    log = float(mean_log(logs, axis=-1))
    return Reading("agreement", log, bad, total, 0, 0, "shadow answers disagreed", pick=disagreed)


def _edge(name: str) -> tuple[float, str]:
    """The upper edge of a bin of scores (`le_0.5`, `gt_0.9`); infinity for a class."""
    kind, _, number = name.partition("_")
    try:
        return (float(number) if kind == "le" else math.inf, name)
    except ValueError:
        return (math.inf, name)


def _summed(bins: Sequence[Mapping[str, int]]) -> dict[str, float]:
    names, rows = table(bins)
    return dict(zip(names, rows.sum(axis=0).tolist(), strict=True))
