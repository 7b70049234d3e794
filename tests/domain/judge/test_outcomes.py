"""Delayed truth as a gate: what a loss is, who is paired, what is found and what must not be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from flows.domain.judge.asked import Outcomes
from flows.domain.judge.counters import Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.judge.outcomes import Pairing, loss
from flows.domain.judge.plan import plan
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import spoken
from flows.domain.judge.windows import Counts, Window

CANARY, STABLE = "flights-v2", "flights-v1"


@pytest.mark.parametrize(
    ("kind", "said", "outcome", "expected"),
    [
        ("log", 0.5, True, math.log(2) / math.log(100)),
        ("log", 0.5, 0, math.log(2) / math.log(100)),
        ("log", 0.0, 1, 1.0),
        ("log", [0.1, 0.9], 1, -math.log(0.9) / math.log(100)),
        ("log", [0.1, 0.9], 2, None),
        ("log", 7.0, 1, None),
        ("log", "yes", 1, None),
        ("absolute", 3.0, 5, 0.2),
        ("absolute", 300.0, 5, 1.0),
        ("squared", 3.0, 5, 0.04),
        ("absolute", float("nan"), 5, None),
        ("absolute", 3.0, "late", None),
        ("wrong", "yes", "no", 1.0),
        ("wrong", "yes", "yes", 0.0),
        ("wrong", "yes", None, None),
    ],
)
def test_a_loss_lies_between_none_and_the_scale_or_is_not_told(
    kind: Any, said: object, outcome: object, expected: float | None
) -> None:
    found = loss(Outcomes(loss=kind, scale=10.0), {"y": said}, outcome)
    assert found == (None if expected is None else pytest.approx(expected))


def test_only_rows_of_the_same_step_are_paired() -> None:
    """The canary's answers are younger once the weight has grown; late truths may be worse ones."""
    pairing = Pairing(CANARY, STABLE)
    pairing.add(0.9, canary=False, step=0)
    pairing.add(0.1, canary=True, step=1)
    assert not [series for series in pairing.series() if series.kind == "differences"]
    pairing.add(0.1, canary=False, step=1)
    assert [series.label for series in pairing.series() if series.kind == "differences"] == ["0"]


def ramp(seed: int, worse: float, minutes: int = 30) -> list[Window]:
    """Half and half, twenty outcomes a window of each; losses of 0 or 1, `worse` by so much on the canary."""
    random = np.random.default_rng(seed)
    pairing = Pairing(CANARY, STABLE)
    before, windows = Snapshot(0, {}, {"gate": 0.1}).joined(pairing.series(), ("0", "0")), []
    for at in range(1, 2 * minutes + 1):
        for canary in random.random(40) < 0.5:
            bad = random.random() < 0.2 + worse * canary
            pairing.add(float(bad), canary=bool(canary), step=0)
        after = Snapshot(30.0 * at, {}, {"gate": 30.0 * at}).joined(pairing.series(), ("0", "0"))
        told = difference(before, after, CANARY, STABLE, 50)
        assert told.observed, told.why
        assert told.stable is not None
        one, other = (
            Counts(1000, 5, outcomes=arm.outcomes, loss=arm.loss, differences=arm.differences)
            for arm in (told.canary, told.stable)
        )
        windows.append(Window(told.start, told.end, 50, one, other))
        before = after
    return windows


def policy(**outcomes: object) -> PromotionPolicy:
    return PromotionPolicy.model_validate({"outcomes": {"loss": "wrong", **outcomes}})


def outcome_of(asked: PromotionPolicy, windows: list[Window]) -> str:
    for number in range(5, len(windows) + 1, 5):
        verdict = judge(asked, windows[:number])
        held = verdict.metric == "outcomes" and asked.outcomes is not None and not asked.outcomes.weight
        if verdict.kind == "reject" or held:
            shown = spoken(asked, windows[:number], verdict)
            if verdict.kind == "reject":
                assert shown.totals[0] == (verdict.canary_bad, verdict.canary_total)
            assert shown.totals[0][0] > 0
            return f"{verdict.kind} {verdict.metric}"
    return "nothing"


@pytest.mark.parametrize(("weight", "says"), [(0, "hold outcomes"), (6, "reject outcomes")])
def test_a_wrong_canary_is_held_or_rejected_and_the_picture_shows_its_losses(
    weight: float, says: str
) -> None:
    asked = policy(weight=weight)
    assert [outcome_of(asked, ramp(seed, 0.2)) for seed in range(5)] == [says] * 5


@pytest.mark.parametrize("weight", [0, 6])
def test_equal_canaries_are_rarely_spoken_against(weight: float) -> None:
    asked = policy(weight=weight)
    assert sum(outcome_of(asked, ramp(seed, 0.0)) != "nothing" for seed in range(100)) <= 1


def test_the_plan_says_what_the_truth_does() -> None:
    held, rejecting = (" ".join(plan(policy(weight=w, required=500), 100, 0.01).sentences) for w in (0, 3))
    assert "500 outcomes" in held
    assert "proven wrong is held" in held
    assert "outcomes 2" in rejecting  # its share of alpha, in percent
