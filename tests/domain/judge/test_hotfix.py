"""Whose incident it is: the canary's own counts decide, and one that is proven better goes on, and sooner."""

from __future__ import annotations

import numpy as np
import pytest

from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window
from tests.bench.simulated import START, Arm, Promotion, Traffic

POLICY = PromotionPolicy(window_seconds=20)
FAILING = [0.1, 0.3]


def played(
    seed: int, rps: float, stable: float, canary: float, policy: PromotionPolicy = POLICY
) -> Promotion:
    rng = np.random.default_rng(seed)
    return Promotion(policy, Traffic(rng, rps, Arm(error_rate=canary), Arm(error_rate=stable)))


def minutes(run: Promotion) -> float:
    return (run.traffic.now - START) / 60


def windows(
    number: int, canary: tuple[int, int], stable: tuple[int, int], weight: int = 50, start: float = START
) -> list[Window]:
    """Of 5 s; pairs are (requests, errors)."""
    arms = [Counts(*arm, arm[0]) for arm in (canary, stable)]
    return [Window(start + 5 * one, start + 5 * one + 5, weight, *arms) for one in range(number)]


@pytest.mark.parametrize("rps", [10, 100, 1000])
@pytest.mark.parametrize("stable", FAILING)
def test_a_hotfix_is_promoted_sooner_than_usual(rps: float, stable: float) -> None:
    for seed in range(3):
        run = played(seed, rps, stable, 0.001)
        assert run.run(30) == "promoted"
        assert minutes(run) < 12, "three steps of 5 min each would be usual"
    said = [verdict.sentence for verdict in run.verdicts if verdict.kind == "advance"]
    assert "the stable fails" in said[0]
    assert "100 of the usual 300 s are enough" in said[0]


@pytest.mark.parametrize("rps", [10, 100, 1000])
@pytest.mark.parametrize("rate", FAILING)
def test_a_canary_that_fails_as_the_stable_does_is_held_and_not_certified_for_it(
    rps: float, rate: float
) -> None:
    for seed in range(3):
        run = played(seed, rps, rate, rate)
        assert run.run(25) == "open"
        assert run.verdicts[-1].metric == "incident"
        assert {one.kind for one in run.verdicts} == {"hold"}


@pytest.mark.parametrize("rps", [10, 100, 1000])
def test_a_hotfix_that_falls_into_an_incident_of_both_is_held_again(rps: float) -> None:
    """What it has proven before does not count against what it does now."""
    run = played(4, rps, 0.1, 0.001)
    run._shift(5)
    while run.step().kind != "advance":
        assert minutes(run) < 15
    assert run.traffic.stable is not None
    run.traffic.canary.error_rate = run.traffic.stable.error_rate = 0.3
    verdicts = [run.step() for _ in range(20)]
    assert {one.metric for one in verdicts[6:]} == {"incident"}
    assert {one.kind for one in verdicts[6:]} == {"hold"}


@pytest.mark.parametrize("rps", [10, 100, 1000])
def test_a_hotfix_that_is_half_as_bad_or_worse_waits(rps: float) -> None:
    """Between better and as bad: nothing is proven, and the incident holds it."""
    run = played(5, rps, 0.2, 0.15)
    assert run.run(25) == "open"
    assert "advance" not in {one.kind for one in run.verdicts}


def test_a_pause_of_the_stable_makes_nobody_a_hotfix() -> None:
    """Twenty seconds in which the stable fails: the steps take as long as ever, and nothing is certified
    that was not before."""
    calm = windows(40, (10, 0), (190, 0), 5)
    pause = windows(4, (10, 0), (190, 190), 5, calm[-1].end)
    after = windows(14, (10, 0), (190, 0), 5, pause[-1].end)
    verdict = judge(POLICY, [*calm, *pause, *after])
    assert (verdict.kind, verdict.metric) == ("hold", "time")
    assert "290 of 300 s" in verdict.sentence


def test_an_incident_of_both_is_no_certificate() -> None:
    """Two minutes in which both fail alike are a thousand bad requests at a ratio of 1, and say nothing of a
    canary that fails three times as often in between."""
    calm = windows(62, (100, 0), (100, 0))
    alike = windows(24, (100, 30), (100, 30), start=calm[-1].end)
    worse = [
        one
        for turn in range(30)
        for one in windows(
            1, (100, 3 * int(turn % 10 == 0)), (100, int(turn % 10 == 0)), start=alike[-1].end + 5 * turn
        )
    ]
    few = PromotionPolicy(max_absolute=0.0005)
    verdict = judge(few, [*calm, *alike, *worse])
    assert (verdict.kind, verdict.metric) == ("hold", "proof")


def test_a_canary_worse_than_a_failing_stable_is_still_rejected() -> None:
    for seed in range(3):
        run = played(seed, 100, 0.1, 0.4)
        assert run.run(30) == "rollback"
        assert run.verdicts[-1].metric == "errors"
