"""The judge's mathematics: what an e-value promises is checked, not assumed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.domain.judge.evidence import (
    BETTER,
    WORSE,
    bounds,
    detector,
    mean_log,
    mixture,
    one_sample_evidence,
    ratio_logs,
    shift_evidence,
)

counts = st.integers(0, 10**9)


def evidence(bad: list[float], both: list[float], share: list[float], tolerated: float = 1.0) -> float:
    logs = ratio_logs(
        np.array(bad, dtype=float)[:, None],
        np.array(both, dtype=float)[:, None],
        np.array(share, dtype=float),
        WORSE if tolerated == 1 else BETTER,
        tolerated,
    )
    return float(mean_log(logs.sum(axis=1)[:, 0], axis=0))


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_expectation_under_the_exact_null_is_at_most_one(
    canary: int, stable: int, data: st.DataObject
) -> None:
    """Not by simulation: every way in which `bad` of the requests may fall on the two arms is added up."""
    bad = data.draw(st.integers(0, canary + stable))
    share = canary / (canary + stable)
    expectation = sum(
        math.comb(canary, x)
        * math.comb(stable, bad - x)
        / math.comb(canary + stable, bad)
        * math.exp(evidence([x], [bad], [share]))
        for x in range(max(0, bad - stable), min(canary, bad) + 1)
    )
    assert expectation <= 1 + 1e-12


def binomial(total: int, rate: float) -> list[float]:
    return [math.comb(total, x) * rate**x * (1 - rate) ** (total - x) for x in range(total + 1)]


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.001, 0.5), st.floats(1, 4))
@settings(max_examples=200, deadline=None)
def test_expectation_of_the_certificate_is_at_most_one_for_a_canary_that_is_twice_as_bad(
    canary: int, stable: int, rate: float, beyond: float
) -> None:
    """Exactly, for Bernoulli requests of two arms, at twice the rate or more."""
    bad_c, bad_s = binomial(canary, min(2 * rate * beyond, 1.0)), binomial(stable, rate)
    share = canary / (canary + stable)
    expectation = sum(
        chance_c * chance_s * math.exp(evidence([x], [x + y], [share], 2.0))
        for x, chance_c in enumerate(bad_c)
        for y, chance_s in enumerate(bad_s)
    )
    assert expectation <= 1 + 1e-9


@given(st.integers(1, 40), st.floats(0.001, 0.9), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_expectation_of_the_service_level_guard_is_at_most_one_below_it(
    total: int, tolerated: float, part: float
) -> None:
    chances = np.array(binomial(total, tolerated * part))
    logs = one_sample_evidence(np.arange(total + 1.0), np.full(total + 1, float(total)), tolerated)
    assert float(chances @ np.exp(mean_log(logs, axis=-1))) <= 1 + 1e-9


@given(
    st.floats(0.001, 0.3),
    st.integers(1, 60),
    st.integers(1, 300),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_expectation_over_windows_is_at_most_one_by_simulation(
    rate: float, canary: int, stable: int, windows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    runs = 4000
    bad_c = rng.binomial(canary, rate, (runs, windows)).astype(float)[..., None]
    bad_s = rng.binomial(stable, rate, (runs, windows)).astype(float)[..., None]
    share = np.full((runs, windows), canary / (canary + stable))
    logs = ratio_logs(bad_c, bad_c + bad_s, share).sum(axis=-2)[..., 0]
    # Cut at 50: the sample mean of a heavy tail is no estimate; a cut mean may only be smaller.
    values = np.minimum(np.exp(mean_log(logs, axis=0)), 50)
    assert values.mean() <= 1 + 5 * values.std() / math.sqrt(runs) + 1e-9


@pytest.mark.parametrize(("rate", "rps"), [(0.001, 10), (0.02, 3), (0.3, 1)])
def test_never_rejected_more_than_alpha_on_paths_of_10_000_windows(rate: float, rps: int) -> None:
    """Weights change, the base rate drifts, and one looks after every window: alpha holds."""
    rng = np.random.default_rng(7)
    runs, windows, alpha = 400, 10_000, 0.05
    crossed = np.zeros(runs, dtype=bool)
    for start in range(0, runs, 50):
        weight = np.repeat([0.05, 0.25, 0.5, 0.1], windows // 4)
        drift = rate * (1 + 0.8 * np.sin(np.arange(windows) / 700))
        total = rng.poisson(rps * 15, (50, windows))
        canary = rng.binomial(total, weight)
        bad_c = rng.binomial(canary, drift).astype(float)[..., None]
        bad_s = rng.binomial(total - canary, drift).astype(float)[..., None]
        logs = ratio_logs(bad_c, bad_c + bad_s, canary / np.maximum(total, 1))
        path = mean_log(np.cumsum(logs, axis=-2), axis=0)[..., 0]
        crossed[start : start + 50] = path.max(axis=1) >= math.log(1 / alpha)
    # 400 paths: at most alpha, and three standard deviations of the simulation.
    assert crossed.mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_a_drift_of_both_arms_is_no_evidence_but_pooled_rates_would_be() -> None:
    """Base rate and weight rise together (Simpson): within windows the arms are equal."""
    canary, stable = [50.0, 500.0], [950.0, 500.0]
    bad_c, bad_s = [0.05, 25.0], [0.95, 25.0]
    share = [c / (c + s) for c, s in zip(canary, stable, strict=True)]
    windowed = evidence(bad_c, [c + s for c, s in zip(bad_c, bad_s, strict=True)], share)
    pooled = evidence([sum(bad_c)], [sum(bad_c) + sum(bad_s)], [sum(canary) / 2000])
    assert windowed < 0 < pooled


@given(
    st.integers(0, 400),
    st.integers(0, 4000),
    st.floats(0.001, 0.999),
    st.floats(0, 1),
    st.sampled_from([1.0, 2.0]),
)
@settings(max_examples=500, deadline=None)
def test_splitting_a_window_at_equal_share_changes_nothing(
    bad: int, bad_stable: int, share: float, cut: float, tolerated: float
) -> None:
    first, first_stable = int(bad * cut), int(bad_stable * cut)
    whole = evidence([bad], [bad + bad_stable], [share], tolerated)
    parts = [first, bad - first], [first + first_stable, bad - first + bad_stable - first_stable]
    assert evidence(*parts, [share, share], tolerated) == pytest.approx(whole, rel=1e-9, abs=1e-7)


@given(st.lists(st.tuples(counts, counts, st.floats(0, 1)), min_size=1, max_size=20), st.integers(0, 19))
@settings(max_examples=500, deadline=None)
def test_more_bad_canary_requests_never_lower_the_evidence(
    windows: list[tuple[int, int, float]], where: int
) -> None:
    bad, stable, share = map(list, zip(*windows, strict=True))
    index = where % len(bad)
    more = list(bad)
    more[index] += 1
    before = evidence(bad, [b + s for b, s in zip(bad, stable, strict=True)], share)
    after = evidence(more, [b + s for b, s in zip(more, stable, strict=True)], share)
    assert after >= before - 1e-9 * max(1.0, abs(before))


@given(counts, counts, counts, counts)
@settings(max_examples=300, deadline=None)
def test_no_overflow_at_a_thousand_million_requests(a: int, b: int, c: int, d: int) -> None:
    total_c, total_s = max(a, b), max(c, d)
    bad_c, bad_s = min(a, b), min(c, d)
    share = total_c / max(total_c + total_s, 1)
    assert math.isfinite(evidence([bad_c], [bad_c + bad_s], [share]))
    assert math.isfinite(evidence([bad_c], [bad_c + bad_s], [share], 2.0))
    low, high = bounds(np.array([bad_c, bad_s]), np.array([total_c, total_s]), 0.025)
    assert np.all((low >= 0) & (low <= high) & (high <= 1))
    arms = [np.array([float(value)]) for value in (bad_c, total_c, bad_s, total_s)]
    assert np.all(np.isfinite(shift_evidence(arms[0], arms[1], arms[2], arms[3], 0.1)))
    assert np.all(np.isfinite(one_sample_evidence(arms[0], arms[1], 0.01)))


@pytest.mark.parametrize(("delta", "requests"), [(0.01, 753), (0.005, 1585), (0.001, 8797)])
def test_error_free_requests_for_an_absolute_certificate(delta: float, requests: int) -> None:
    """The figures of the literature's Beta(1/2, 1/2) mixture at 2.5 %, to a request."""
    found = next(
        n for n in range(requests - 3, requests + 3) if bounds(np.array(0), np.array(n), 0.025)[1] < delta
    )
    assert abs(found - requests) <= 1


@given(st.floats(0.0005, 0.9995), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_bounds_hold_at_all_times_together(rate: float, seed: int) -> None:
    """Looked at after each of 2 000 requests, the interval loses the true rate in at most 5 % of the runs."""
    rng = np.random.default_rng(seed)
    bad = np.cumsum(rng.random((300, 2000)) < rate, axis=1)
    total = np.arange(1, 2001)
    lost = (mixture(bad, total, np.array(rate)) >= math.log(20)).any(axis=1)
    assert lost.mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_detector_forgets_the_good_past_and_keeps_its_false_alarms() -> None:
    rng = np.random.default_rng(3)
    windows, runs, alpha = 60, 4000, 0.01
    good = one_sample_evidence(rng.binomial(150, 0.02, (windows, runs)).astype(float), np.array(150.0), 0.02)
    alarms = mean_log(detector(good), axis=-1).max(axis=0) >= math.log(windows / alpha)
    assert alarms.mean() <= alpha + 3 * math.sqrt(alpha / runs)
    late = rng.binomial(150, np.where(np.arange(600) < 500, 0.002, 0.08)).astype(float)
    gains = one_sample_evidence(late, np.array(150.0), 0.02)
    alarm = int(np.argmax(mean_log(detector(gains), axis=-1) >= math.log(600 / alpha)))
    assert 500 <= alarm < 510
    # Added up without forgetting, the good past would hide the harm for far longer.
    assert mean_log(np.cumsum(gains, axis=0), axis=-1)[alarm] < 0


@pytest.mark.parametrize("tolerated", [0.1, 0.25])
def test_a_shift_within_the_tolerance_is_no_evidence(tolerated: float) -> None:
    rng = np.random.default_rng(8)
    runs = 4000
    bad_c = rng.binomial(400, 0.3 + tolerated, runs).astype(float)
    bad_s = rng.binomial(2000, 0.3, runs).astype(float)
    logs = shift_evidence(bad_c, np.full(runs, 400.0), bad_s, np.full(runs, 2000.0), tolerated)
    assert np.minimum(np.exp(logs), 1e3).mean() <= 1
    far = shift_evidence(
        np.array([300.0]), np.array([400.0]), np.array([600.0]), np.array([2000.0]), tolerated
    )
    assert far[0] > math.log(1000)


def test_shift_evidence_is_the_least_over_the_tolerated_rates() -> None:
    arms = np.array([30.0]), np.array([40.0]), np.array([20.0]), np.array([100.0])
    rates = np.linspace(1e-6, 0.75 - 1e-6, 200_001)
    scan = mixture(arms[0], arms[1], rates + 0.25) + mixture(arms[2], arms[3], rates)
    assert shift_evidence(*arms, 0.25)[0] == pytest.approx(scan.min(), abs=1e-6)


def test_mean_log_with_weights() -> None:
    logs = np.log(np.array([1.0, 3.0, 5.0]))
    assert math.exp(mean_log(logs, axis=0)) == pytest.approx(3)
    assert math.exp(mean_log(logs, axis=0, weights=np.array([2.0, 1.0, 1.0]))) == pytest.approx(2.5)


def test_every_ratio_of_the_grid_is_reached() -> None:
    """Each alternative is the best one for its own true ratio."""
    for index, ratio in enumerate(WORSE):
        logs = ratio_logs(np.array([[0.1 * ratio]]), np.array([[0.1 * ratio + 0.9]]), np.array([0.1]))[
            :, 0, 0
        ]
        assert int(np.argmax(logs)) == index
    assert all(later > earlier for earlier, later in itertools.pairwise(WORSE))
