"""What a deadline makes of a promotion that nobody has proven and nobody has rejected."""

from __future__ import annotations

import pytest

from flows.adapters.registry import StoredWindow
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.ruling import BLIND_SECONDS
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Window, unobserved
from flows.steps.replay import replay_verdicts

START = 1_700_000_000.0
DEADLINE = 3600.0
POLICIES = ("rollback", "keep", "promote_unproven")
SPEC = """
name: flights
signature:
  inputs: [{name: hour, type: integer}]
  outputs: [{name: late, type: boolean}]
promotion: {window_seconds: 60, deadline_seconds: 3600, at_deadline: AT}
"""


def policy(at_deadline: str) -> PromotionPolicy:
    content = {"window_seconds": 60, "deadline_seconds": DEADLINE, "at_deadline": at_deadline}
    return PromotionPolicy.model_validate(content)


def counts(requests: int, errors: int = 0) -> Counts:
    return Counts(requests, errors, requests, reported=True)


def hour(canary: Counts, stable: Counts | None, weight: int = 5) -> list[Window]:
    """All windows until the deadline, the last one at it."""
    return [
        Window(START + 60 * index, START + 60 * (index + 1), weight, canary, stable) for index in range(60)
    ]


def blind(seconds_late: float, *, stable: bool = True) -> list[Window]:
    """An hour's beginning that was seen, and nothing from then on."""
    seen = hour(counts(1), counts(19) if stable else None)[:10]
    end = START + DEADLINE + seconds_late
    return [*seen, unobserved(seen[-1].end, end, 5, "Prometheus is away", stable=stable)]


@pytest.mark.parametrize("at_deadline", POLICIES)
@pytest.mark.parametrize("stable", [True, False], ids=["canary", "only release"])
@pytest.mark.parametrize("late", [0.0, 60.0, BLIND_SECONDS - 1])
def test_what_cannot_be_seen_past_the_deadline_moves_nothing(
    at_deadline: str, stable: bool, late: float
) -> None:
    verdict = judge(policy(at_deadline), blind(late, stable=stable))
    assert (verdict.kind, verdict.outcome, verdict.expired) == ("unobserved", "wait", True)
    assert "Prometheus is away" in verdict.sentence
    assert "the deadline of 60 min is over" in verdict.sentence


@pytest.mark.parametrize("at_deadline", POLICIES)
@pytest.mark.parametrize("stable", [True, False], ids=["canary", "only release"])
def test_after_a_blind_day_the_promotion_ends_and_the_traffic_stays(at_deadline: str, stable: bool) -> None:
    verdict = judge(policy(at_deadline), blind(BLIND_SECONDS, stable=stable))
    assert (verdict.kind, verdict.outcome) == ("unobserved", "keep")


def test_the_first_window_that_is_seen_again_decides() -> None:
    away = blind(1200)
    covered = away[9].end, away[-1].end + 60
    silent = Window(*covered, 5, counts(0), counts(0))
    assert judge(policy("rollback"), [*away, silent]).outcome == "rollback"
    healthy = Window(*covered, 5, counts(3000), counts(57_000))
    assert judge(policy("rollback"), [*away, healthy]).outcome == "advance"
    sick = Window(*covered, 5, counts(3000, 3000), counts(57_000))
    last = judge(policy("keep"), [*away, sick])
    assert (last.kind, last.outcome) in (("reject", "rollback"), ("hold", "keep"))


@pytest.mark.parametrize(("requests", "said"), [(0, "no request has reached"), (3, "3 of 180 requests")])
@pytest.mark.parametrize("at_deadline", ["rollback", "keep"])
def test_the_only_release_is_not_taken_out_for_want_of_evidence(
    requests: int, said: str, at_deadline: str
) -> None:
    """Nobody called it, or 0.05 requests a second did and some failed: too few to prove anything."""
    seen = hour(counts(requests), None, weight=100)
    if requests:
        seen = [
            *hour(counts(3), None, weight=100)[:-1],
            Window(seen[-1].start, seen[-1].end, 100, counts(3, 3), None),
        ]
    verdict = judge(policy(at_deadline), seen)
    assert (verdict.kind, verdict.outcome, verdict.expired) == ("hold", "keep", True)
    assert said in verdict.sentence
    assert "stays" in verdict.sentence


def test_the_only_release_that_fails_is_still_rejected() -> None:
    verdict = judge(policy("rollback"), hour(counts(20, 20), None, weight=100))
    assert (verdict.kind, verdict.outcome) == ("reject", "rollback")


@pytest.mark.parametrize("requests", [0, 3])
def test_a_canary_without_evidence_goes_back_and_is_not_rejected(requests: int) -> None:
    verdict = judge(policy("rollback"), hour(counts(0), counts(requests)))
    assert (verdict.kind, verdict.outcome) == ("hold", "rollback")
    assert verdict.sentence.endswith("; the policy takes the traffic back")


def stored(windows: list[Window], last: Verdict, at_deadline: str) -> list[StoredWindow]:
    """As a promotion leaves them: every verdict is today's, but the last one."""
    verdicts = [judge(policy(at_deadline), windows[: number + 1]) for number in range(len(windows) - 1)]
    return [
        StoredWindow(window.to_json(), verdict.to_json(), False)
        for window, verdict in zip(windows, [*verdicts, last], strict=True)
    ]


@pytest.mark.parametrize("at_deadline", POLICIES)
def test_a_deadline_that_an_earlier_version_decided_replays_identically(at_deadline: str) -> None:
    """What it made of an unseen window and of an only release, in its own words."""
    ends = {
        "rollback": ("rollback", "; the policy takes the traffic back"),
        "keep": ("keep", "; the traffic stays as it is"),
        "promote_unproven": ("keep", "; the traffic stays as it is"),
    }
    outcome, words = ends[at_deadline]
    spec = SPEC.replace("AT", at_deadline)
    why = "not decided within 60 min: nothing can be seen, weights stay: Prometheus is away"
    unseen = Verdict("unobserved", "time", why + words, expired=True, outcome=outcome)  # type: ignore[arg-type]
    assert replay_verdicts(spec, stored(blind(0), unseen, at_deadline)) == 0
    alone = hour(counts(0), None, weight=100)
    before = judge(policy(at_deadline), alone[:-1])
    silent = Verdict(
        **{
            **before.to_json(),
            "interval": before.interval,
            "sentence": "not decided within 60 min: no request has reached the release yet" + words,
            "expired": True,
            "outcome": outcome,
        }
    )
    assert replay_verdicts(spec, stored(alone, silent, at_deadline)) == 0
    changed = Verdict(**{**silent.to_json(), "interval": silent.interval, "canary_total": 7})
    assert replay_verdicts(spec, stored(alone, changed, at_deadline)) == 1


@pytest.mark.parametrize("at_deadline", POLICIES)
def test_a_deadline_of_today_replays_identically(at_deadline: str) -> None:
    spec = SPEC.replace("AT", at_deadline)
    for windows in (blind(0), blind(BLIND_SECONDS), hour(counts(0), None, 100), hour(counts(3), counts(3))):
        last = judge(policy(at_deadline), windows)
        assert replay_verdicts(spec, stored(windows, last, at_deadline)) == 0
