"""The failure matrix: what may go wrong around a canary, line by line, and what the judge must make of it.

Played through counters, windows and the judge. How a Prometheus may answer badly is in
tests/integration/test_prometheus_answers.py, how a counter may lie in test_judge_counters.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window, unobserved
from tests.bench.simulated import CANARY, START, Arm, Promotion, Traffic

POLICY = PromotionPolicy(window_seconds=30)


def promotion(seed: int = 1, policy: PromotionPolicy = POLICY, **traffic: Any) -> Promotion:
    return Promotion(policy, Traffic(np.random.default_rng(seed), **traffic))


def counts(requests: int, errors: int = 0, **more: Any) -> Counts:
    return Counts(requests, errors, requests, **more)


def windows(number: int, canary: Counts, stable: Counts | None, weight: int = 5) -> list[Window]:
    return [
        Window(START + 30 * index, START + 30 * (index + 1), weight, canary, stable)
        for index in range(number)
    ]


@pytest.mark.parametrize(
    ("at_deadline", "end"), [("rollback", "rollback"), ("keep", "keep"), ("promote_unproven", "keep")]
)
def test_no_canary_traffic_beside_a_busy_stable(at_deadline: str, end: str) -> None:
    """Held, then the policy; never promoted, never rejected, and no silence counts as approval."""
    policy = PromotionPolicy.model_validate({"window_seconds": 60, "at_deadline": at_deadline})
    run = promotion(policy=policy)
    run.mesh = False
    assert run.run(200) == end
    assert {(verdict.kind, verdict.metric) for verdict in run.verdicts} == {("hold", "weight")}
    assert [verdict.outcome for verdict in run.verdicts[:-1]] == ["wait"] * (len(run.verdicts) - 1)
    assert "0 % of the requests, not 5 %" in run.verdicts[-1].sentence


@pytest.mark.parametrize("minutes", [1, 5, 30])
@pytest.mark.parametrize(
    "canary", [Arm(), Arm(error_rate=0.02), Arm(up=False), Arm(median_seconds=0.2)], ids=lambda arm: repr(arm)
)
@pytest.mark.parametrize("seed", [1, 2])
def test_an_outage_of_prometheus_changes_no_final_verdict(minutes: int, canary: Arm, seed: int) -> None:
    ends = []
    for blind in ((), ((60.0, 60.0 + 60 * minutes),)):
        run = promotion(seed, canary=Arm(**{name: getattr(canary, name) for name in Arm.__annotations__}))
        run.blind = blind
        end = run.run(120)
        away = [verdict for verdict in run.verdicts if verdict.kind == "unobserved"]
        assert bool(away) == (bool(blind) and len(run.verdicts) > 2)
        assert {verdict.outcome for verdict in away} <= {"wait"}
        weights = {window.weight for window in run.windows if not window.observed}
        assert len(weights) <= 1, "the weights are frozen while nothing can be seen"
        ends.append((end, run.verdicts[-1].kind, run.verdicts[-1].metric))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("minutes", [1, 5, 30])
def test_the_same_counts_with_a_gap_are_the_same_evidence_to_the_last_digit_that_counts(minutes: int) -> None:
    rng = np.random.default_rng(5)
    # The share is the same in every window, so that one long window says what many short ones say.
    whole = [
        Window(START + 30 * i, START + 30 * (i + 1), 10, counts(30, int(bad)), counts(270, int(bad_s)))
        for i, (bad, bad_s) in enumerate(
            zip(rng.binomial(30, 0.1, 80), rng.binomial(270, 0.05, 80), strict=True)
        )
    ]
    first, last = 10, 10 + 2 * minutes
    lost = whole[first : last + 1]
    stables = [window.stable for window in lost if window.stable is not None]
    covered = Window(
        lost[0].start,
        lost[-1].end,
        10,
        sum((window.canary for window in lost[1:]), lost[0].canary),
        sum(stables[1:], stables[0]),
    )
    gaps = [unobserved(lost[0].start, window.end, 10, "away") for window in lost[:-1]]
    gap = [*whole[:first], *gaps, covered, *whole[last + 1 :]]
    independent = POLICY.model_copy(update={"pause_seconds": 0.0})
    steady, interrupted = judge(independent, whole), judge(independent, gap)
    assert interrupted.evidence == pytest.approx(steady.evidence, rel=1e-9)
    assert (interrupted.kind, interrupted.metric) == (steady.kind, steady.metric)
    assert interrupted.interval == steady.interval
    # Where pauses are tolerated, what nobody has seen in detail counts as one stretch, and never for more.
    assert judge(POLICY, gap).evidence < judge(POLICY, whole).evidence < steady.evidence


def test_six_requests_a_minute_and_one_error() -> None:
    quiet = windows(30, counts(0), counts(3))
    failed = [*quiet[:-1], Window(quiet[-1].start, quiet[-1].end, 5, counts(1, 1), counts(2))]
    assert judge(POLICY, failed).kind == "hold"
    # One of two would be 50 %: below any threshold on a rate, and no evidence of anything.
    assert judge(POLICY, failed).evidence < 10 < 1 / POLICY.alpha
    on_stable = [*quiet[:-1], Window(quiet[-1].start, quiet[-1].end, 5, counts(1), counts(2, 1))]
    assert judge(POLICY, on_stable).evidence <= 1


@pytest.mark.parametrize("rate", [0.06, 0.2, 1.0])
def test_a_shared_incident_in_the_middle_of_a_step(rate: float) -> None:
    run = promotion(3)
    run.run(4)
    assert run.traffic.stable
    run.traffic.canary.error_rate = run.traffic.stable.error_rate = rate
    weight, during = run.weight, [run.step() for _ in range(20)]
    assert {verdict.kind for verdict in during} == {"hold"}
    assert during[-1].metric == "incident"
    assert "both share" in during[-1].sentence
    assert run.weight == weight
    # However long it lasts, it does not become the new normal; and when it is over, the ramp goes on.
    assert {verdict.metric for verdict in [run.step() for _ in range(60)]} == {"incident"}
    run.traffic.canary.error_rate = run.traffic.stable.error_rate = 0.005
    after = [run.step() for _ in range(15)]
    assert after[-1].metric != "incident"
    assert not any(verdict.kind == "reject" for verdict in after)


def test_an_error_rate_that_drifts_is_no_incident_even_if_there_is_much_traffic() -> None:
    """Significant is not the same as bad: 1.5 times the errors of the morning freeze nothing."""
    seen = [
        Window(START + 30 * i, START + 30 * (i + 1), 5, counts(1500, 8 + i // 10), counts(28500, 142 + 2 * i))
        for i in range(40)
    ]
    assert judge(POLICY, seen).kind == "advance"


def test_a_canary_that_crash_loops_is_rejected_by_the_gateways_503s() -> None:
    """Its servers never show a metric; "no data" of them is not what decides."""
    run = promotion(canary=Arm(up=False))
    assert run.run(30) == "rollback"
    assert (run.verdicts[-1].kind, run.verdicts[-1].metric) == ("reject", "errors")
    assert not any(window.canary.reported for window in run.windows)
    assert run.traffic.now - START < 300
    # It came up, and then began to crash: half of the windows without servers.
    loops = promotion(2)
    loops.run(3)
    for crash in range(40):
        loops.traffic.canary.up = bool(crash % 2)
        if loops.step().kind == "reject":
            break
    assert (loops.verdicts[-1].kind, loops.verdicts[-1].metric) == ("reject", "errors")


def test_servers_that_fall_silent_are_held_even_if_they_had_spoken() -> None:
    spoke = windows(10, counts(25), counts(475))
    assert judge(POLICY, spoke).kind == "advance"
    dark = Window(spoke[-1].end, spoke[-1].end + 30, 5, counts(25, reported=False), counts(475))
    verdict = judge(POLICY, [*spoke, dark])
    assert (verdict.kind, verdict.metric) == ("hold", "metrics")
    # Without the stable's outputs the canary's are compared with nothing, which must not pass for agreement.
    alone = windows(30, counts(25), counts(475, reported=False))
    assert (judge(POLICY, alone).kind, judge(POLICY, alone).metric) == ("hold", "metrics")
    assert "the stable's servers show no metrics" in judge(POLICY, alone).sentence
    uncompared = POLICY.model_copy(update={"weights": POLICY.weights.model_copy(update={"outputs": 0.0})})
    assert judge(uncompared, alone).kind == "advance"


@pytest.mark.parametrize("seed", range(3))
def test_twice_the_errors_under_the_service_level(seed: int) -> None:
    run = promotion(seed, rps=200.0, canary=Arm(error_rate=0.008), stable=Arm(error_rate=0.004))
    assert run.run(60) == "rollback"
    assert run.verdicts[-1].canary_bad / run.verdicts[-1].canary_total < POLICY.slo_error_rate / 2


def test_a_weight_that_the_mesh_does_not_apply_gives_no_credit_for_the_step() -> None:
    run = promotion()
    run.run(6)
    assert run.weight == 25
    run.mesh = False
    run.traffic.applied = 5
    stuck = [run.step() for _ in range(30)]
    assert {(verdict.kind, verdict.metric) for verdict in stuck} == {("hold", "weight")}
    run.traffic.applied = 25
    # The time before is not counted: the step's dwell begins when the weight is applied.
    later = [run.step() for _ in range(7)]
    assert not any(verdict.kind == "advance" for verdict in later)
    assert any(run.step().kind == "advance" for _ in range(15))


@pytest.mark.parametrize("share", [25, 50])
def test_somebody_elses_share_is_what_the_evidence_is_credited_to(share: int) -> None:
    """The route says 25 % where ours said 5: by the set weight a healthy canary would seem to fail five times
    as often as it should."""
    for seed in range(5):
        run = promotion(seed, canary=Arm(error_rate=0.02), stable=Arm(error_rate=0.02))
        run.run(1)
        run.traffic.applied = share
        seen = [run.step() for _ in range(40)]
        assert not any(verdict.kind == "reject" for verdict in seen)
        assert run.windows[-1].share == pytest.approx(share / 100, abs=0.12)
    sick = promotion(9, canary=Arm(error_rate=0.06), stable=Arm(error_rate=0.02))
    sick.run(1)
    sick.traffic.applied = share
    assert any(sick.step().kind == "reject" for _ in range(60))


def test_bursts_on_the_stables_own_servers_hold_and_do_not_reject() -> None:
    """One of the stable's two servers fails: equal releases differ as much as the canary does."""
    sick = (counts(2000, 80), counts(2000, 0))
    arms = windows(20, counts(200, 10), counts(4000, 80))
    uneven = [Window(w.start, w.end, w.weight, w.canary, w.stable, sick) for w in arms]
    assert (judge(POLICY, arms).kind, judge(POLICY, uneven).kind) == ("reject", "hold")
    # Only errors are untrusted then: a canary that is slow as well is still taken out …
    slow = [
        Window(
            w.start,
            w.end,
            w.weight,
            Counts(200, 10, 200, {0.1: 120, 0.25: 100}),
            Counts(4000, 80, 4000, {0.1: 40, 0.25: 4}),
            sick,
        )
        for w in arms
    ]
    assert (judge(POLICY, slow).kind, judge(POLICY, slow).metric) == ("reject", "latency")
    # … unless one half of the stable's servers is that much slower than the other, whichever it is.
    quick = Counts(2000, 0, 2000, {0.1: 20, 0.25: 2})
    late = Counts(2000, 0, 2000, {0.1: 1200, 0.25: 1000})
    for halves, kind in (((quick, quick), "reject"), ((quick, late), "hold"), ((late, quick), "hold")):
        seen = [Window(w.start, w.end, w.weight, w.canary, w.stable, halves) for w in slow]
        clean = [
            Window(w.start, w.end, w.weight, Counts(200, 0, 200, w.canary.slow), w.stable, w.halves)
            for w in seen
        ]
        assert judge(POLICY, clean).kind == kind


@pytest.mark.parametrize("disagreed", [0, 5, 40])
def test_shadow_agreement_is_judged_by_pairs(disagreed: int) -> None:
    """At least 90 % must agree; 95 % do, or 60 %. Who sends the copies counts them, here the stable."""
    strict = POLICY.model_copy(update={"min_agreement": 0.9})
    verdict = judge(strict, windows(20, counts(25), counts(475, compared=100, disagreed=disagreed)))
    assert verdict.kind == ("reject" if disagreed == 40 else "advance")


def test_windows_stored_while_invalid_outputs_were_counted_apart_read_as_they_did() -> None:
    """Such answers are errors, status 500, and were counted as that all the time."""
    seen = windows(20, counts(25, errors=1), counts(475))
    old = [window.to_json() for window in seen]
    for window in old:
        window["canary"]["invalid"], window["stable"]["invalid"] = 0, 0
    assert [Window.from_json(window) for window in old] == seen


@pytest.mark.parametrize(("shift", "kind"), [(0.0, "advance"), (0.15, "advance"), (0.45, "reject")])
def test_predictions_may_differ_within_the_tolerance(shift: float, kind: str) -> None:
    def bins(total: int, low: float) -> dict[str, int]:
        return {"le_0.5": round(total * low), "le_1": total - round(total * low)}

    canary = counts(100, outputs=bins(100, 0.5 + shift))
    stable = counts(400, outputs=bins(400, 0.5))
    verdict = judge(POLICY, windows(20, canary, stable, weight=25))
    assert verdict.kind == kind
    if kind == "reject":
        assert verdict.metric == "outputs"


def test_an_arm_that_never_appears_is_neither_good_nor_bad() -> None:
    assert judge(POLICY, windows(200, counts(0), counts(0))).sentence.startswith("no requests at all")
    no_stable = judge(POLICY, windows(200, counts(500, 50), counts(0), weight=50))
    assert (no_stable.kind, no_stable.metric) == ("hold", "traffic")
    for run in (promotion(rps=0.0), promotion(rps=0.0, canary=Arm(up=False))):
        assert run.run(20) == "open"
        assert {verdict.kind for verdict in run.verdicts} == {"hold"}
        assert not any(series.release == CANARY and value for series, value in run.traffic.counters.items())
