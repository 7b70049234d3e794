"""What is counted: requests that do not fit a release, or are never answered; and windows of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.domain.judge.counters import Series, Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy, Weights
from flows.domain.judge.spoken import spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Window

STORED = json.loads((Path(__file__).parents[2] / "golden" / "stored_windows.json").read_text())
POLICY = PromotionPolicy()


def arm(requests: int, errors: int = 0, refused: int = 0, lost: int = 0, **more: Any) -> Counts:
    return Counts(
        requests,
        errors,
        requests,
        predicted=requests - errors - refused,
        refused=refused,
        sent=requests + lost,
        **more,
    )


def ramp(number: int, canary: Counts, stable: Counts | None, weight: int = 5) -> list[Window]:
    return [Window(15.0 * at, 15.0 * (at + 1), weight, canary, stable) for at in range(number)]


def first(windows: list[Window], policy: PromotionPolicy = POLICY) -> tuple[float, Verdict]:
    """The first verdict that is no hold, and its time."""
    for number in range(1, len(windows) + 1):
        verdict = judge(policy, windows[:number])
        if verdict.kind != "hold":
            break
    return windows[number - 1].end, verdict


@pytest.mark.parametrize("name", STORED)
def test_windows_stored_before_something_was_counted_replay_to_the_last_bit(name: str) -> None:
    policy = PromotionPolicy(window_seconds=30, deadline_seconds=3600)
    windows = [Window.from_json(window) for window in STORED[name]["windows"]]
    for number, verdict in enumerate(STORED[name]["verdicts"], start=1):
        assert judge(policy, windows[:number]).to_json() == Verdict.from_json(verdict).to_json()


def test_a_canary_that_refuses_every_request_is_rejected_within_four_minutes_at_30_rps() -> None:
    """5 % of 30 a second: about 22 a window, all answered 422: by the counts of errors as good as ever."""
    seconds, verdict = first(ramp(16, arm(22, refused=22), arm(428, refused=1)))
    assert (verdict.kind, verdict.metric) == ("reject", "client_errors")
    assert seconds <= 60
    assert verdict.sentence.startswith("22 of 22 requests were refused (400, 415, 422) on the canary (100 %)")


def test_a_canary_that_refuses_a_third_is_rejected_within_four_minutes_at_30_rps() -> None:
    seconds, verdict = first(ramp(16, arm(22, refused=7), arm(428, refused=2)))
    assert (verdict.kind, verdict.metric) == ("reject", "client_errors")
    assert seconds <= 240


def test_bad_rows_that_both_releases_refuse_alike_are_no_evidence() -> None:
    """One client sends thirty at once, now and then: which release each meets is the split's chance."""
    random = np.random.default_rng(1)
    rejected = 0
    for _ in range(200):
        windows = []
        for at in range(40):
            burst = 30 if random.random() < 0.2 else 0
            hit = int(random.binomial(burst, 0.05))
            canary, stable = arm(22 + hit, refused=hit), arm(428 + burst - hit, refused=burst - hit)
            windows.append(Window(15.0 * at, 15.0 * (at + 1), 5, canary, stable))
        rejected += judge(POLICY, windows).kind == "reject"
    assert rejected <= 2


@pytest.mark.parametrize("stable", [arm(428, refused=428), None], ids=["beside", "alone"])
def test_nothing_is_certified_that_answers_and_predicts_nothing(stable: Counts | None) -> None:
    """Also where the stable refuses as much, or where there is none."""
    weight = 5 if stable else 100
    verdict = judge(POLICY, ramp(30, arm(422, refused=422), stable, weight))
    assert (verdict.kind, verdict.metric) == ("hold", "metrics")
    assert verdict.sentence.startswith("only 0 of the ")


def test_the_gate_of_client_errors_can_be_switched_off() -> None:
    policy = PromotionPolicy(weights=Weights(client_errors=0))
    assert first(ramp(16, arm(22, refused=7), arm(428)), policy)[1].kind != "reject"


def test_a_canary_whose_requests_are_never_answered_is_rejected() -> None:
    """It hangs, its clients give up: no answer, no error, nothing slow, and a share of nothing."""
    seconds, verdict = first(ramp(16, arm(0, lost=22), arm(428, lost=1)))
    assert (verdict.kind, verdict.metric) == ("reject", "missing")
    assert seconds <= 60
    assert verdict.sentence.startswith("22 of 22 requests were never answered on the canary (100 %)")


def test_clients_that_leave_alike_from_both_releases_are_no_evidence() -> None:
    verdict = judge(POLICY, ramp(19, arm(14, lost=8), arm(278, lost=150)))
    assert verdict.kind == "hold"
    assert verdict.evidence < 2


def test_what_is_under_way_is_not_lost_and_the_gateways_own_answers_were_sent_to_nobody() -> None:
    def snapshot(at: float, sent: int, active: int, ok: int, failed: int) -> Snapshot:
        counters = {
            Series("sent", "m-v2", "", "gate"): sent,
            Series("active", "m-v2", "", "gate"): active,
            Series("requests", "m-v2", "2", "gate"): ok,
            Series("requests", "m-v2", "5", "gate"): failed,
            Series("requests", "m-v1", "2", "gate"): 0,
        }
        return Snapshot(at, {key: float(value) for key, value in counters.items()}, {"gate": at})

    def window(before: Snapshot, after: Snapshot) -> Counts:
        made = difference(before, after, "m-v2", "m-v1", 5)
        assert made.observed, made.why
        return made.canary

    before, busy, after = (
        snapshot(100, 10, 6, 4, 0),
        snapshot(115, 40, 2, 35, 0),
        snapshot(130, 60, 0, 55, 9),
    )
    # 30 more were sent, four fewer are under way, and three of these 34 were never answered.
    counts = window(before, busy)
    assert (counts.sent, counts.requests) == (34, 31)
    # A gauge that falls is no restart.
    assert (window(busy, after).sent, window(busy, after).requests) == (22, 29)


@pytest.mark.parametrize(
    ("gate", "canary"), [("client_errors", arm(22, refused=22)), ("missing", arm(0, lost=22))]
)
def test_tables_and_plots_show_the_counts_of_the_gate_that_rejected(gate: str, canary: Counts) -> None:
    windows = ramp(4, canary, arm(428))
    verdict = judge(POLICY, windows)
    shown = spoken(POLICY, windows, verdict)
    assert (shown.gate, shown.canary[0], shown.stable[0]) == (gate, (22, 22), (0, 428))
    assert shown.totals[0] == (verdict.canary_bad, verdict.canary_total)
