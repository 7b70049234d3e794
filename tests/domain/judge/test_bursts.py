"""Requests that share a server share its fate: a pause convicts nobody, and harm that lasts is found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.domain.judge.judging import judge, judge_promoted
from flows.domain.judge.paths import Tally, against, beside, combined, path, rejection, suspicion, tally
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Window
from tests.bench.pauses import Fleet, Traffic, ramp

POLICY = PromotionPolicy()
BOUNDS = (0.05, 0.1, 0.25)


def counts(requests: int, errors: int = 0, slow: int = 0, **more: int) -> Counts:
    return Counts(requests, errors, requests, dict.fromkeys(BOUNDS, slow), **more)


def windows(
    arms: Sequence[tuple[Counts, Counts | None]], seconds: float = POLICY.window_seconds, weight: int = 5
) -> list[Window]:
    return [
        Window(seconds * index, seconds * (index + 1), weight, canary, stable)
        for index, (canary, stable) in enumerate(arms)
    ]


def first_rejection(seen: Sequence[Window], policy: PromotionPolicy = POLICY) -> Verdict | None:
    verdicts = (judge(policy, seen[: count + 1]) for count in range(len(seen)))
    return next((verdict for verdict in verdicts if verdict.kind == "reject"), None)


@pytest.mark.parametrize("length", [0.3, 5, 20])
@pytest.mark.parametrize("rps", [10, 1_000, 100_000])
@pytest.mark.parametrize("begin", [0.0, 3.0, 58.0])
@pytest.mark.parametrize("bad", ["errors", "slow"])
def test_one_pause_of_the_only_server_convicts_nobody_whatever_the_rate(
    length: float, rps: int, begin: float, bad: str
) -> None:
    patient = POLICY.model_copy(update={"warm_up_seconds": 0.0})
    each, arms = round(rps * patient.window_seconds), []
    for index in range(30):
        start = patient.window_seconds * index
        hit = max(0.0, min(begin + length, start + 5) - max(begin, start)) / 5
        canary = max(each // 20, 1)
        lost = round(canary * hit)
        arms.append((counts(canary, **{bad: lost}), counts(each - canary)))
    seen = windows(arms)
    verdicts = [judge(patient, seen[: count + 1]) for count in range(len(seen))]
    assert {verdict.kind for verdict in verdicts} == {"hold"}
    assert max(verdict.evidence for verdict in verdicts) < math.sqrt(1 / patient.alpha)


def test_the_same_requests_would_convict_if_they_were_independent() -> None:
    arms = (
        [(counts(25), counts(475))] * 12 + [(counts(25, 20), counts(475))] + [(counts(25), counts(475))] * 3
    )
    assert judge(POLICY, windows(arms)).kind == "hold"
    assert judge(POLICY.model_copy(update={"pause_seconds": 0.0}), windows(arms)).kind == "reject"


counted = st.tuples(st.integers(0, 400), st.floats(0, 1), st.integers(0, 4000), st.floats(0, 1))


@given(st.lists(counted, min_size=1, max_size=40), st.sampled_from([2.0, 5.0, 15.0, 60.0]))
@settings(max_examples=200, deadline=None)
def test_nothing_counts_for_more_than_independent_requests_would(
    drawn: list[tuple[int, float, int, float]], seconds: float
) -> None:
    """So what is exact for them stays exact: at every moment, for every ratio."""
    canary, stable = (np.array([one[place] for one in drawn], dtype=float) for place in (0, 2))
    bad, bad_s = (np.array([[float(int(one[place] * one[place + 1]))] for one in drawn]) for place in (0, 2))
    length = np.full(len(drawn), seconds)
    whole, kept, _ = beside(bad, bad_s, canary, stable, length, 20.0, every=True)
    assert (kept <= whole + 1e-9 * np.abs(whole) + 1e-9).all()
    for count in range(1, len(drawn) + 1):
        part = [one[:count] for one in (bad, bad_s, canary, stable, length)]
        now, trouble = against(*part, 20.0, last=True)
        path_, troubles = against(bad, bad_s, canary, stable, length, 20.0, last=False)
        assert now[0] == pytest.approx(path_[count - 1], rel=1e-9, abs=1e-7)
        assert trouble[0] == pytest.approx(troubles[count - 1], rel=1e-9, abs=1e-7)


@pytest.mark.parametrize(
    ("rps", "servers", "an_hour", "length"),
    [(10, 1, 6, 20), (100, 3, 6, 1), (1000, 10, 2, 20), (10_000, 50, 6, 1), (10_000, 50, 6, 20)],
)
def test_pauses_that_hit_the_servers_of_both_alike_hardly_ever_reject(
    rps: float, servers: int, an_hour: float, length: float
) -> None:
    """200 ramps, seeded: 1 % is two of them. Requests taken as independent lose twenty at least."""
    fleet = Fleet(servers, an_hour, length, 0.001)
    rng = np.random.default_rng(17)
    ends = ramp(rng, 200, Traffic(rps, fleet, fleet), POLICY, minutes=20)
    assert np.isfinite(ends.rejected).sum() <= 5
    believing = POLICY.model_copy(update={"pause_seconds": 0.0})
    rng = np.random.default_rng(17)
    ends = ramp(rng, 200, Traffic(rps, fleet, fleet), believing, minutes=20)
    assert np.isfinite(ends.rejected).sum() >= 20


@pytest.mark.parametrize(("rps", "within"), [(10, 90), (100, 45), (10_000, 45)])
@pytest.mark.parametrize("seconds", [5.0, 15.0])
def test_a_canary_that_fails_everything_is_out_soon(rps: int, within: float, seconds: float) -> None:
    policy = POLICY.model_copy(update={"window_seconds": seconds})
    rng = np.random.default_rng(3)
    for _ in range(5):
        arms = []
        for _ in range(round(120 / seconds)):
            canary = int(rng.poisson(rps * seconds / 20))
            arms.append((counts(canary, canary), counts(int(rng.poisson(rps * seconds * 0.95)))))
        seen = windows(arms, seconds)
        ends = [judge(policy, seen[: count + 1]).kind for count in range(len(seen))]
        found = ends.index("reject")
        assert seen[found].end <= within
        if rps == 10:
            assert sum(window.canary.errors for window in seen[: found + 1]) < 60


def test_two_pauses_in_a_row_are_still_no_outage() -> None:
    failing = [(counts(25, 25), counts(475))] * 8
    well = [(counts(25), counts(475))] * 20
    assert first_rejection(windows([*well, *failing, *well])) is None
    assert first_rejection(windows([*well, *failing, *failing, *well])) is not None


@pytest.mark.parametrize("errors", [1, 3, 12])
def test_a_canary_that_fails_evenly_is_found_beside_a_flawless_stable(errors: int) -> None:
    """No stretch of it is worse than another: that is no pause, although the stable shows no rate at all."""
    seen = windows([(counts(30, errors), counts(570))] * 60)
    found = first_rejection(seen)
    assert found is not None
    assert found.canary_total <= 30 * 36


def test_a_canary_that_falls_ill_later_is_found_within_minutes() -> None:
    well, ill = (counts(30), counts(570, 1)), (counts(30, 3), counts(570, 1))
    seen = windows([well] * 100 + [ill] * 80)
    found = first_rejection(seen)
    assert found is not None
    assert (found.canary_total - 3000) / 6 <= 360


def test_a_canary_that_is_sick_in_bursts_is_rejected_in_the_ramp() -> None:
    """Pauses of half a second ten times as often as the stable's six an hour, three servers each."""
    traffic = Traffic(200, Fleet(3, 60, 0.5), Fleet(3, 6, 0.5))
    ends = ramp(np.random.default_rng(5), 100, traffic, POLICY, minutes=45)
    assert np.isfinite(ends.rejected).sum() >= 85


def test_the_stables_own_bursts_do_not_forbid_to_reject() -> None:
    """Its halves differ whenever one of its servers pauses; only a lasting difference forbids it."""
    rng = np.random.default_rng(8)
    arms = [(counts(50, 5), counts(950, 40 if index % 12 == 0 else 0)) for index in range(60)]
    seen = []
    for window in windows(arms):
        assert window.stable is not None
        first = window.stable.errors if rng.random() < 0.5 else 0
        halves = counts(475, first), counts(475, window.stable.errors - first)
        seen.append(Window(window.start, window.end, 5, window.canary, window.stable, halves))
    assert first_rejection(seen) is not None


def test_no_step_is_left_in_the_middle_of_what_may_be_a_pause() -> None:
    policy = PromotionPolicy(dwell_seconds=30, window_seconds=5)
    well, failing = (counts(50), counts(950)), (counts(50, 50), counts(950))
    assert judge(policy, windows([well] * 6)).kind == "advance"
    verdict = judge(policy, windows([well] * 4 + [failing] * 3))
    assert (verdict.kind, verdict.metric) == ("hold", "errors")
    assert "the next seconds tell" in verdict.sentence
    over = judge(policy, windows([well] * 4 + [failing] * 3 + [well] * 9))
    assert over.kind == "advance"


def test_a_pause_after_100_percent_and_one_of_a_first_release_send_nobody_back() -> None:
    seen = windows([(counts(50), counts(50))] * 60, weight=50)
    start = seen[-1].end
    since = [
        Window(start + 5 * i, start + 5 * i + 5, 100, counts(100, 100 if 10 <= i < 14 else 0), None)
        for i in range(60)
    ]
    kinds = {judge_promoted(POLICY, seen, since[: count + 1]).kind for count in range(60)}
    assert kinds == {"hold"}
    first = [Window(w.start, w.end, 100, w.canary, None) for w in since]
    assert "reject" not in {judge(POLICY, first[: count + 1]).kind for count in range(60)}
    outage = [
        Window(w.start, w.end, 100, counts(100, 100 if i >= 10 else 0), None) for i, w in enumerate(since)
    ]
    assert judge_promoted(POLICY, seen, outage).kind == "reject"
    assert judge(POLICY, outage).kind == "reject"


def slow_for(seconds: float, **more: int) -> list[Window]:
    arms = []
    for index in range(120):
        slow = 40 if 5 * index < seconds else 0
        arms.append((counts(50, 0, slow, **more), counts(950, 0, 5)))
    return windows(arms)


def test_slowness_while_warming_up_is_no_evidence_and_errors_are() -> None:
    assert first_rejection(slow_for(30)) is None
    assert first_rejection(slow_for(60)) is None
    found = first_rejection(slow_for(600))
    assert found is not None
    assert found.metric == "latency"
    failing = [Window(w.start, w.end, 5, counts(50, 50), w.stable) for w in slow_for(0)]
    assert first_rejection(failing[:9]) is not None


def test_each_shift_and_each_new_server_has_its_warm_up_and_a_server_that_keeps_starting_has_not() -> None:
    policy = PromotionPolicy(max_slowdown=1.0, pause_seconds=0)

    def verdict(starts: Sequence[int], slow_after: float = 40.0) -> str:
        seen, since = [], math.inf
        for index in range(72):
            since = 0.0 if index in starts else since
            slow = 40 if since < slow_after else 0
            canary = counts(50, 0, slow, started=int(index in starts))
            seen.append(Window(5.0 * index, 5.0 * index + 5, 5, canary, counts(950, 0, 5)))
            since += 5
        return judge(policy, seen).kind

    assert verdict([40]) == "advance"
    assert verdict([16, 44]) == "advance"
    assert verdict([20, 30, 40, 50, 60]) == "reject"
    assert verdict([40], slow_after=math.inf) == "reject"
    shifted = [
        Window(
            5.0 * i, 5.0 * i + 5, 5 if i < 60 else 25, counts(50, 0, 40 if 60 <= i < 70 else 0), counts(950)
        )
        for i in range(100)
    ]
    assert first_rejection(shifted, policy) is None


def test_a_warm_up_is_at_most_half_of_a_step() -> None:
    policy = PromotionPolicy(dwell_seconds=20, pause_seconds=0)
    assert first_rejection(slow_for(600), policy) is not None
    assert tally(policy, slow_for(0)).warm_up_seconds == 10


def test_windows_that_were_stored_before_servers_were_counted_are_judged() -> None:
    content = windows([(counts(25, 1), counts(475, 5))])[0].to_json()
    for arm in ("canary", "stable"):
        del content[arm]["started"]
    window = Window.from_json(content)
    assert window.canary.started == 0
    assert judge(POLICY, [window]).kind == "hold"
    assert Window.from_json(window.to_json()) == window


@pytest.mark.parametrize(("base", "ratio"), [(0.005, 2), (0.002, 3), (0.005, 1.5)])
def test_independent_errors_are_found_near_the_limit(base: float, ratio: float) -> None:
    """Wald's limit: the expected time of the sequential test that knows the ratio."""
    rps, part = 100.0, 0.05
    both = rps * base * (part * ratio + 1 - part)
    limit = math.log(1 / POLICY.alpha) / (
        rps * base * part * ratio * math.log(ratio) - both * math.log1p(part * (ratio - 1))
    )
    rng = np.random.default_rng(1)
    length = int(3 * limit / 5)
    canary, stable = (
        rng.poisson(rps * 5 * part, (60, length)),
        rng.poisson(rps * 5 * (1 - part), (60, length)),
    )
    bad, bad_s = rng.binomial(canary, base * ratio), rng.binomial(stable, base)
    none, seconds, weight = np.zeros((60, length, 0)), np.full((60, length), 5.0), np.full((60, length), 5.0)
    arms = [one.astype(float) for one in (canary, bad, stable, bad_s)]
    followed = path(Tally(seconds, weight, *arms, arms[0], arms[2], none, none))
    found = combined(POLICY, {"errors": followed.errors}) >= rejection(POLICY)
    times = np.where(found.any(axis=1), 5 * found.argmax(axis=1) + 5, np.inf)
    assert np.median(times) / limit <= 1.65
    assert suspicion(POLICY) < rejection(POLICY)


def test_stretches_do_not_depend_on_how_time_was_cut() -> None:
    """Windows of 1, 2 or 5 seconds are gathered in the same stretches of ten."""
    ends = []
    for seconds in (1.0, 2.0, 5.0):
        bad = [3.0 if int(10 * index) in range(6) else 0.0 for index in range(12)]
        per = int(10 / seconds)
        errors = np.array(list(itertools.chain.from_iterable([one] + [0.0] * (per - 1) for one in bad)))
        arms = (
            errors[:, None],
            0 * errors[:, None],
            np.full(len(errors), 5 * seconds),
            np.full(len(errors), 95 * seconds),
        )
        ends.append(against(*arms, np.full(len(errors), seconds), 20.0, last=True)[0][0])
    assert ends == pytest.approx([ends[0]] * 3, rel=1e-9)
