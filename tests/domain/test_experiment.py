"""The sequential comparison of an A/B test: valid at every look, and able to decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.domain.errors import SpecInvalid
from flows.domain.experiment import Arm, Plan, _least_evidence, compare, imbalance
from flows.domain.routes import Match, Routes

counts = st.integers(min_value=0, max_value=10**9)


def arm(release: str, count: int, share: float) -> Arm:
    return Arm(release, count, min(float(count), round(count * share)))


@given(counts, counts, st.floats(0, 1), st.floats(0, 1))
def test_the_interval_holds_the_observed_difference_and_nothing_overflows(
    n_a: int, n_b: int, p_a: float, p_b: float
) -> None:
    found = compare(arm("m-v1", n_a, p_a), arm("m-v2", n_b, p_b), 0.05)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert math.isfinite(found.log_evidence)


@given(counts, counts, st.floats(0, 1), st.floats(0, 1))
def test_swapping_the_arms_mirrors_the_result(n_a: int, n_b: int, p_a: float, p_b: float) -> None:
    there = compare(arm("m-v1", n_a, p_a), arm("m-v2", n_b, p_b), 0.05)
    back = compare(arm("m-v2", n_b, p_b), arm("m-v1", n_a, p_a), 0.05)
    assert there.low == pytest.approx(-back.high, abs=1e-6)
    assert there.better == back.better


def test_evidence_and_interval_agree() -> None:
    """The interval excludes zero exactly when the evidence is enough."""
    for hits in range(500, 700, 5):
        found = compare(Arm("m-v1", 1000, 500), Arm("m-v2", 1000, hits), 0.05)
        assert (found.low > 0) == (found.log_evidence >= math.log(20)), hits


def test_a_healthy_pair_is_seldom_called_different_however_often_one_looks() -> None:
    """500 experiments without a difference, looked at after each of 25 batches: at most alpha wrong."""
    random = np.random.default_rng(7)
    wrong = 0
    for _ in range(500):
        a = random.binomial(40, 0.3, 25).cumsum()
        b = random.binomial(40, 0.3, 25).cumsum()
        sizes = range(40, 1001, 40)
        wrong += any(
            _least_evidence(Arm("m-v1", n, float(x)), Arm("m-v2", n, float(y)), 0.0) >= math.log(20)
            for n, x, y in zip(sizes, a, b, strict=True)
        )
    assert wrong / 500 <= 0.05


def test_the_interval_covers_a_real_difference_at_all_times() -> None:
    random = np.random.default_rng(11)
    missed = 0
    for _ in range(100):
        a = random.binomial(40, 0.20, 25).cumsum()
        b = random.binomial(10, 0.27, 25).cumsum()
        for look in range(0, 25, 3):
            found = compare(
                Arm("m-v1", 40 * (look + 1), float(a[look])),
                Arm("m-v2", 10 * (look + 1), float(b[look])),
                0.05,
            )
            if not found.low <= 0.07 <= found.high:
                missed += 1
                break
    assert missed / 100 <= 0.05


def test_a_real_difference_is_found() -> None:
    found = compare(Arm("m-v1", 4000, 2800), Arm("m-v2", 4000, 3000), 0.05)
    assert found.better == "m-v2"
    assert "m-v2 is better: m-v1 70.00% of 4000, m-v2 75.00% of 4000 outcomes; difference +" in found.sentence


def test_nothing_is_decided_on_silence() -> None:
    found = compare(Arm("m-v1"), Arm("m-v2"), 0.05)
    assert (found.better, found.low, found.high) == (None, -1, 1)
    lonely = compare(Arm("m-v1", 10_000, 9000), Arm("m-v2"), 0.05)
    assert lonely.better is None


@pytest.mark.parametrize(("count", "total"), [(10, 11), (10, -1), (10, math.nan), (0, 1)])
def test_impossible_arms_are_refused(count: int, total: float) -> None:
    with pytest.raises(ValueError, match="cannot sum to"):
        Arm("m-v1", count, total)


def test_a_broken_split_is_noticed() -> None:
    plan = Plan("m", "m-v1", "m-v2", share=50, sticky="none")
    assert imbalance(plan, 5030, 4970) is None
    assert imbalance(plan, 0, 0) is None
    assert "got 40.0% of 10000 requests instead of 50 %" in str(imbalance(plan, 6000, 4000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": "m-v1"}, "both arms are m-v1"),
        ({"b": "other-v2"}, "other-v2 is not a release of m"),
        ({"share": 0}, "share must be 1 to 99 percent, found 0"),
        ({"share": 100}, "share must be 1 to 99"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1"),
        ({"sticky": "ip"}, "sticky must be cookie, header or none"),
    ],
)
def test_a_plan_that_contradicts_itself(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecInvalid, match=message):
        Plan(**({"model": "m", "a": "m-v1", "b": "m-v2"} | changes))  # type: ignore[arg-type]


def test_the_routes_keep_a_visitor_on_his_release() -> None:
    assert Plan("m", "m-v1", "m-v2", share=20).routes() == Routes(
        {"m-v1": 80, "m-v2": 20},
        (Match("cookie", "modelserve-m", "1", "m-v1"), Match("cookie", "modelserve-m", "2", "m-v2")),
    )
    assert Plan("m", "m-v1", "m-v2", sticky="none").routes().matches == ()
    by_header = Plan("m", "m-v1", "m-v2", sticky="header").routes().matches
    assert [match.value for match in by_header] == ["a", "b"]


@pytest.mark.parametrize(
    ("measure", "prediction", "outcome", "score"),
    [
        ("outcome", {}, True, 1.0),
        ("outcome", {}, 0, 0.0),
        ("outcome", {}, 0.25, 0.25),
        ("outcome", {}, 17, None),
        ("outcome", {}, "yes", None),
        ("outcome", {}, None, None),
        ("late", {"late": True}, True, 1.0),
        ("late", {"late": True}, False, 0.0),
        ("late", {"delay": 3}, True, None),
        ("label", {"label": "cat"}, "cat", 1.0),
    ],
)
def test_what_counts_as_success(
    measure: str, prediction: dict[str, object], outcome: object, score: float | None
) -> None:
    assert Plan("m", "m-v1", "m-v2", measure=measure).success(prediction, outcome) == score
