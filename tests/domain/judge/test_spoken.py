"""What is shown are the counts of the gate that decided, whichever it was."""

from __future__ import annotations

import pytest

from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import spoken
from flows.domain.judge.windows import Counts, Window

POLICY = PromotionPolicy(window_seconds=10)
SLOW = {0.1: 5, 0.2: 2, 1.0: 0}
HEALTHY = Counts(requests=500, errors=1, timed=500, slow=SLOW, outputs={"yes": 250, "no": 250})


def windows(canary: Counts, count: int = 60, *, stable: Counts | None = HEALTHY) -> list[Window]:
    return [Window(10.0 * i, 10.0 * i + 10, 50, canary, stable) for i in range(count)]


@pytest.mark.parametrize(
    ("canary", "gate", "what", "bad", "total"),
    [
        (
            Counts(500, 250, 500, SLOW, HEALTHY.outputs),
            "errors",
            "requests failed",
            250,
            500,
        ),
        (
            Counts(500, 1, 500, {0.1: 400, 0.2: 400, 1.0: 0}, HEALTHY.outputs),
            "latency",
            "requests took over 200 ms (100 ms with 2 times the patience)",
            400,
            500,
        ),
        (
            Counts(500, 1, 500, SLOW, {"yes": 450, "no": 50}),
            "outputs",
            "predictions were in",
            None,
            500,
        ),
    ],
)
def test_each_gate_shows_what_it_counted(
    canary: Counts, gate: str, what: str, bad: int | None, total: int
) -> None:
    seen = windows(canary)
    verdict = judge(POLICY, seen)
    assert (verdict.kind, verdict.metric) == ("reject", gate)
    shown = spoken(POLICY, seen, verdict)
    assert (shown.gate, len(shown.canary), len(shown.stable)) == (gate, 60, 60)
    assert shown.what.startswith(what)
    assert shown.canary[0][1] == total
    if bad is not None:
        assert shown.canary[0][0] == bad
    # The sums are those of the verdict, so picture and sentence cannot disagree.
    assert shown.totals == (
        (verdict.canary_bad, verdict.canary_total),
        (verdict.stable_bad, verdict.stable_total),
    )


def test_a_release_alone_is_shown_by_its_service_level() -> None:
    policy = PromotionPolicy(window_seconds=10, slo_latency_seconds=0.1, slo_slow_share=0.01)
    slow = Counts(500, 1, 500, {0.1: 400, 0.2: 400, 1.0: 0}, HEALTHY.outputs)
    seen = windows(slow, stable=None)
    verdict = judge(policy, seen)
    assert verdict.metric == "latency"
    shown = spoken(policy, seen, verdict)
    assert shown.what == "requests took over 100 ms"
    assert (shown.canary[0], shown.stable[0]) == ((400, 500), (0, 0))


def test_a_hold_and_an_empty_promotion_show_the_errors() -> None:
    seen = windows(HEALTHY, 2)
    assert spoken(POLICY, seen, judge(POLICY, seen)).gate == "errors"
    assert spoken(POLICY, [], None).canary == ()
