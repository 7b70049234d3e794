"""A policy that contradicts itself is refused, and the field is named; a plan says what it can find."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flows.domain.errors import SpecInvalid
from flows.domain.judge.plan import duration, plan
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.spec import parse_spec

SPEC = """
name: flights
signature: {{inputs: [{{name: x, type: number}}], outputs: [{{name: y, type: number}}]}}
promotion: {promotion}
"""


@pytest.mark.parametrize(
    ("promotion", "key"),
    [
        ("{steps: [25, 5, 100]}", "promotion.steps: "),
        ("{steps: [5, 25, 50]}", "promotion.steps: "),
        ("{steps: [5, 5, 100]}", "promotion.steps: "),
        ("{steps: [0, 100]}", "promotion.steps: "),
        ("{steps: []}", "promotion.steps: "),
        ("{alpha: 0}", "promotion.alpha: "),
        ("{alpha: 1}", "promotion.alpha: "),
        ("{alpha: .nan}", "promotion.alpha: "),
        ("{beta: -0.1}", "promotion.beta: "),
        ("{dwell_seconds: .inf}", "promotion.dwell_seconds: "),
        ("{dwell_seconds: 5000}", "promotion.deadline_seconds: "),
        ("{dwell_seconds: 100, deadline_seconds: 60}", "promotion.deadline_seconds: "),
        ("{dwell_seconds: 4}", "promotion.window_seconds: "),
        ("{max_ratio: 1}", "promotion.max_ratio: "),
        ("{max_shift: 1.5}", "promotion.max_shift: "),
        ("{approve_before: [30]}", "promotion.approve_before: "),
        ("{at_deadline: shrug}", "promotion.at_deadline: "),
        ("{hold_back: 60}", "promotion.hold_back: "),
        ("{hold_back: 50, steps: [5, 100]}", "promotion.hold_back: "),
        ("{hold_back: 10, post_watch_seconds: 0}", "promotion.hold_back: is for the watch after 100 %"),
        (
            "{hold_back: 10, steps: [5, 95, 100]}",
            "promotion.hold_back: leaves the canary 90 % at most, and 95",
        ),
        (
            "{hold_back: 10, steps: [5, 90, 100]}",
            "promotion.hold_back: leaves the canary 90 % at most, and 90",
        ),
        ("{dwell_seconds: 0, deadline_seconds: 4}", "promotion.deadline_seconds: must not be below window"),
        ("{deadline_seconds: 0}", "promotion.deadline_seconds: "),
        ("{window_seconds: 0}", "promotion.window_seconds: "),
        ("{min_requests: 0}", "promotion.min_requests: "),
        ("{max_absolute: 0}", "promotion.max_absolute: "),
        ("{max_slowdown: 0.5}", "promotion.max_slowdown: "),
        ("{min_agreement: 1.2}", "promotion.min_agreement: "),
        ("{min_agreement: 0.9, weights: {agreement: 0}}", "promotion.weights: agreement is 0"),
        (
            "{weights: {errors: 0, latency: 0, outputs: 0, client_errors: 0, missing: 0}}",
            "promotion.weights: only agreement counts",
        ),
        ("{slo_error_rate: 1}", "promotion.slo_error_rate: "),
        ("{slo_latency_seconds: 0}", "promotion.slo_latency_seconds: "),
        ("{post_watch_seconds: -1}", "promotion.post_watch_seconds: "),
        (
            "{weights: {errors: 0, latency: 0, outputs: 0, client_errors: 0, missing: 0, agreement: 0}}",
            "promotion.weights.agreement: ",
        ),
        ("{weights: {errors: -1}}", "promotion.weights.errors: "),
        ("{patience: 5}", "promotion.patience: unknown key"),
    ],
)
def test_a_contradiction_is_named(promotion: str, key: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse_spec(SPEC.format(promotion=promotion), "model.yaml")
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_defaults_and_a_quick_policy_are_valid() -> None:
    assert PromotionPolicy().steps == (5, 25, 50, 100)
    quick = parse_spec(SPEC.format(promotion="{dwell_seconds: 8, window_seconds: 2}"), "model.yaml").promotion
    assert quick.dwell_seconds == 8


def test_the_plan_of_the_issue() -> None:
    found = plan(PromotionPolicy(), 12, 0.005)
    assert found.decides
    assert found.minutes_to_find == pytest.approx(27, abs=3)
    assert found.minutes_to_certify == pytest.approx(15.5, abs=1)
    assert found.sentences[0].startswith(
        "at the last hour's 12 rps a doubling of 0.5 % errors is found in about 2"
    )
    assert found.sentences[1] == "a healthy canary is certified in about 15 min"


@pytest.mark.parametrize(
    ("policy", "rps", "rate", "warning"),
    [
        ({}, 0.1, 0.01, "cannot decide within its deadline of 3 h"),
        ({"at_deadline": "promote_unproven"}, 0.1, 0.01, "promoted unproven"),
        ({"deadline_seconds": 900}, 10, 0.005, "16 min would be enough"),
        ({}, 0.0, 0.0, "no traffic in the last hour"),
    ],
)
def test_a_plan_that_cannot_decide_warns_with_numbers(
    policy: dict[str, Any], rps: float, rate: float, warning: str
) -> None:
    found = plan(PromotionPolicy.model_validate(policy), rps, rate)
    assert not found.decides
    assert found.minutes_to_certify is None
    last = found.sentences[-1]
    assert last.startswith("warning: ")
    assert warning in last


def test_a_plan_without_a_control_group_says_that_nothing_will_be_compared() -> None:
    for rps in (0.0, 50.0):
        found = plan(PromotionPolicy(steps=(100,)), rps, 0.005)
        assert (found.decides, found.minutes_to_find, found.minutes_to_certify) == (False, None, None)
        assert found.sentences[-1].startswith("warning: no step before 100 %")


def test_a_doubling_that_the_policy_accepts_is_said_to_pass() -> None:
    quick = PromotionPolicy(dwell_seconds=8, window_seconds=2, max_absolute=0.02)
    found = plan(quick, 150, 0.001)
    assert found.minutes_to_find is None
    assert found.sentences[0].endswith("it is proven to stay within max_absolute before that")
    assert found.decides


def test_more_traffic_never_makes_a_plan_slower() -> None:
    minutes = [plan(PromotionPolicy(), rps, 0.005).minutes_to_find or 1e9 for rps in (1, 5, 20, 100, 1000)]
    assert minutes == sorted(minutes, reverse=True)
    assert plan(PromotionPolicy(), 10, 0.0).sentences[0].endswith("a canary that has some is soon found")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (95, "95 s"), (1440, "24 min"), (16_920, "4.7 h"), (10**6, "12 days")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- pace: three keys by one name ------------------------------------------------------------------------


def paced(promotion: str) -> PromotionPolicy:
    return parse_spec(SPEC.format(promotion=promotion), "model.yaml").promotion


def test_a_pace_sets_steps_dwell_and_requests_together() -> None:
    assert paced("{pace: standard}").model_dump() == PromotionPolicy().model_dump(), "the defaults are a pace"
    quick, careful = paced("{pace: quick}"), paced("{pace: careful}")
    assert (quick.steps, quick.dwell_seconds, quick.min_requests) == ((10, 50, 100), 60, 20)
    assert (careful.steps, careful.dwell_seconds, careful.min_requests) == ((1, 5, 25, 50, 100), 900, 200)
    free = {"pace", "steps", "dwell_seconds", "min_requests"}
    assert quick.model_dump(exclude=free) == careful.model_dump(exclude=free), "proof is the same at any pace"


def test_a_key_that_is_written_wins_over_the_pace() -> None:
    quick = paced("{pace: quick, steps: [1, 100], min_requests: 7}")
    assert (quick.steps, quick.min_requests, quick.dwell_seconds) == ((1, 100), 7, 60)


@pytest.mark.parametrize(
    ("promotion", "problem"),
    [
        ("{pace: fast}", "promotion.pace: Input should be 'quick', 'standard' or 'careful' (found 'fast')"),
        ("{pace: [quick]}", "promotion.pace: Input should be 'quick', 'standard' or 'careful'"),
        ("{pace: careful, deadline_seconds: 600}", "promotion.deadline_seconds: must not be below 3600"),
        ("{pace: quick, approve_before: [25]}", "promotion.approve_before: 25 is not one of the steps"),
    ],
)
def test_a_pace_that_cannot_be_is_one_clear_error(promotion: str, problem: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        paced(promotion)
    assert str(caught.value).startswith(f"model.yaml: {problem}")
    assert str(caught.value).count("model.yaml") == 1


def test_the_plan_says_in_minutes_what_each_pace_would_take() -> None:
    policy = PromotionPolicy()
    found = plan(policy, 12, 0.005)
    (sentence,) = [one for one in found.sentences if one.startswith("a healthy canary by pace: ")]
    minutes = {
        name: float(text) for name, text in re.findall(r"(quick|standard|careful) (\d+) min", sentence)
    }
    assert minutes["quick"] < minutes["standard"] < minutes["careful"]
    assert minutes["standard"] == pytest.approx(found.minutes_to_certify, abs=0.5)
    for name, expected in minutes.items():
        alone = plan(paced(f"{{pace: {name}}}"), 12, 0.005).minutes_to_certify
        assert expected == pytest.approx(alone, abs=1.5), f"{name} on its own takes as long as the plan says"
    assert sentence.endswith("this model's is standard")
    own = plan(paced("{pace: quick, min_requests: 7}"), 12, 0.005).sentences
    assert any(one.endswith("this model's is quick, with keys of its own") for one in own)
    slow = plan(PromotionPolicy(), 0.1, 0.005).sentences
    assert any("(after the deadline)" in one or "more than 30 days" in one for one in slow)
