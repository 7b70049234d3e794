"""A cold cache is no slow release: what was computed is compared with what was computed, hits with hits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import spoken
from flows.domain.judge.windows import Counts, EvidenceInvalid, Window
from tests.bench.simulated import CANARY, STABLE, Arm, Promotion, Traffic

POLICY = PromotionPolicy(window_seconds=20)
MODEL_SECONDS = 0.1
WARM = Arm(error_rate=0.001, median_seconds=MODEL_SECONDS, hits=0.6)


def played(seed: int, canary: Arm, stable: Arm = WARM, rps: float = 20) -> Promotion:
    rng = np.random.default_rng(seed)
    # A release changes what it is while it serves: its cache fills, and each run has arms of its own.
    return Promotion(POLICY, Traffic(rng, rps, replace(canary), replace(stable)))


@pytest.mark.parametrize("hits", [0.0, 0.05, 0.3])
def test_a_canary_whose_cache_is_cold_is_promoted(hits: float) -> None:
    ends = [played(seed, replace(WARM, hits=hits)).run(60) for seed in range(4)]
    assert ends == ["promoted"] * 4


def test_a_canary_that_hits_more_often_than_the_stable_is_no_slower_for_it() -> None:
    ends = [played(seed, WARM, replace(WARM, hits=0.1)).run(60) for seed in range(3)]
    assert ends == ["promoted"] * 3


@pytest.mark.parametrize(
    ("slower", "what"),
    [
        ({"median_seconds": 0.4}, "computed answers took over"),
        ({"median_seconds": 0.4, "hits": 0.1}, "computed answers took over"),
        ({"hit_seconds": 0.2}, "answers from the cache took over"),
        ({"queue_seconds": 0.3}, "took over"),
        ({"queue_seconds": 0.3, "hits": 0.1}, "took over"),
    ],
    ids=["the model", "the model, and cold", "hits", "before the server", "before the server, and cold"],
)
def test_what_is_slow_is_found_where_it_is_slow(slower: dict[str, Any], what: str) -> None:
    run = played(7, replace(WARM, **slower))
    assert run.run(60) == "rollback"
    verdict = run.verdicts[-1]
    assert verdict.metric == "latency"
    assert what in verdict.sentence
    shown = spoken(POLICY, run.windows, verdict)
    assert shown.totals[0] == (verdict.canary_bad, verdict.canary_total)


def test_a_hotter_stable_does_not_hide_a_slow_canary_among_hits() -> None:
    """All the stable's answers but a few are hits: what is left is still compared with the canary's."""
    run = played(8, replace(WARM, hits=0.2, median_seconds=0.5), replace(WARM, hits=0.95), rps=100)
    assert run.run(60) == "rollback"


def test_gateways_that_mark_no_hits_and_windows_of_before_are_judged_as_ever() -> None:
    run = played(9, replace(WARM, hits=0.0), replace(WARM, hits=0.0))
    run.run(5)
    stored = [window.to_json() for window in run.windows]
    for window in stored:
        for arm in ("canary", "stable"):
            del window[arm]["cached"], window[arm]["cached_slow"]
    assert [Window.from_json(window) for window in stored] == run.windows


def test_hits_survive_the_store_and_add_up() -> None:
    run = played(10, replace(WARM, hits=0.3))
    run.run(2)
    again = [Window.from_json(window.to_json()) for window in run.windows]
    assert again == run.windows
    assert judge(POLICY, again) == run.verdicts[-1]
    one = run.windows[0].canary
    assert 0 < one.cached < one.timed
    assert (one + one).cached_slow == {bound: 2 * count for bound, count in one.cached_slow.items()}
    assert {CANARY, STABLE} == {series.release for series in run.traffic.counters if series.kind == "cached"}


@pytest.mark.parametrize(("cached", "slow"), [(3, {}), (1, {0.1: 2}), (2, {0.1: 2})])
def test_more_hits_than_answers_cannot_be(cached: int, slow: dict[float, int]) -> None:
    with pytest.raises(EvidenceInvalid, match="cached"):
        Counts(2, 0, 2, {0.1: 1}, cached=cached, cached_slow=slow)
