"""A promotion that a person has asked to hurry: agreed once, told everywhere, and replayed as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from flows.domain.judge.asked import Metric
from flows.domain.judge.counters import Series, Snapshot
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.promotion import Promotion
from flows.domain.spec import ModelSpec, parse_spec
from flows.promote import promote
from flows.steps import hotfix
from flows.steps.replay import replay_verdicts
from flows.steps.report import decision_report
from flows.steps.watch import announce, watch
from flows.wiring import ControlPlane
from tests.flows.conftest import SPEC, Story

START = 1_700_000_000.0
RPS = 100


class World:
    """A clock whose sleeps pass at once, and a Prometheus: the stable fails one request in ten."""

    def __init__(self) -> None:
        self.now = START
        self.canary = 5
        self.counted: dict[Series, float] = {}

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        for version, share, failed in ((1, 100 - self.canary, 0.1), (2, self.canary, 0.0)):
            requests = int(RPS * seconds * share / 100)
            errors = int(requests * failed)
            self._add("requests", version, "5", errors)
            self._add("requests", version, "2", requests - errors)
            self._add("latency", version, "0.1", requests)
            self._add("latency", version, "inf", requests)
            self._add("served", version, "2", requests)

    def _add(self, kind: str, version: int, label: str, amount: int) -> None:
        pod = f"server-{version}" if kind == "served" else "gateway"
        series = Series(kind, f"flights-v{version}", label, pod)
        self.counted[series] = self.counted.get(series, 0) + amount

    def snapshot(self, _names: list[str], earlier: Snapshot | None, _metrics: Sequence[Metric]) -> Snapshot:
        return Snapshot(self.now, dict(self.counted), {"gateway": self.now}).after(earlier)

    def recent(self, _model: str) -> tuple[float, float]:
        return RPS, 0.1


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def plane(plane: ControlPlane, world: World) -> ControlPlane:
    counters: Any = world
    return replace(plane, clock=world, counters=counters)


@pytest.fixture
def promotion(story: Story) -> Promotion:
    story.register(1, 2)
    story.promoted(1)
    return story.begin(2, 5)


def spec() -> ModelSpec:
    return parse_spec(SPEC, "model.yaml")


def watched(plane: ControlPlane, world: World, promotion: Promotion) -> tuple[float, Verdict]:
    """Seconds at the step, as the flow watches it, and what let it pass."""
    began = world.now
    policy = hotfix.hurried(plane, promotion, spec()).promotion
    verdict = watch(plane, promotion, policy, 5, lambda _window, _verdict: None)
    return world.now - began, verdict


def test_a_hotfix_takes_a_fifth_of_the_time_and_tells_who_and_why(
    plane: ControlPlane, world: World, promotion: Promotion
) -> None:
    hotfix.ask(plane, promotion, spec().promotion, "ada", "v1 cannot read the new rows")
    told: list[str] = []
    announce(plane, promotion, hotfix.hurried(plane, promotion, spec()).promotion, told.append)
    assert told[0].startswith(
        "hotfix, by ada: v1 cannot read the new rows; 60 s at each step rather than 5 min"
    )
    assert "12 min of watching before 100 % are skipped" in told[0]
    seconds, verdict = watched(plane, world, promotion)
    assert seconds == 60
    assert (verdict.canary_bad, verdict.stable_bad > 0) == (0, True)
    events = plane.registry.events("flights", promotion)
    (asked,) = [event for event in events if event.kind == "hotfix"]
    assert (asked.detail["who"], asked.detail["reason"]) == ("ada", "v1 cannot read the new rows")
    (planned,) = [event for event in events if event.kind == "planned"]
    assert "by ada" in planned.detail["sentence"]
    stored = plane.registry.windows(promotion)
    assert replay_verdicts(SPEC, stored, events) == 0
    assert replay_verdicts(SPEC, stored) > 0, "by the spec's own pace it would have waited"
    windows = [Window.from_json(one.content) for one in stored]
    verdicts = [Verdict.from_json(one.verdict) for one in stored]
    shown = spoken(spec().promotion, windows, verdicts[-1])
    report = decision_report(promotion, events, windows, verdicts, shown)
    assert "A hotfix, by ada: v1 cannot read the new rows; 60 s at each step" in report


def test_without_being_asked_a_canary_that_rescues_the_stable_takes_a_third(
    plane: ControlPlane, world: World, promotion: Promotion
) -> None:
    seconds, verdict = watched(plane, world, promotion)
    assert seconds == 100
    assert "proven to be better" in verdict.sentence
    stored = plane.registry.windows(promotion)
    assert replay_verdicts(SPEC, stored, plane.registry.events("flights", promotion)) == 0


def test_a_promotion_keeps_the_pace_that_it_began_with(
    plane: ControlPlane, world: World, promotion: Promotion
) -> None:
    """What was judged by one policy is not judged by another half-way; nor is a hotfix asked for twice."""
    watched(plane, world, promotion)
    hotfix.ask(plane, promotion, spec().promotion, "ada", "late")
    assert hotfix.agreed(plane.registry.events("flights", promotion)) is None


def test_a_hotfix_that_is_taken_up_again_keeps_its_first_reason(
    plane: ControlPlane, promotion: Promotion
) -> None:
    for reason in ("first", "again"):
        hotfix.ask(plane, promotion, spec().promotion, "ada", reason)
    events = plane.registry.events("flights", promotion)
    assert [event.detail["reason"] for event in events if event.kind == "hotfix"] == ["first"]


def test_a_hotfix_is_never_shorter_than_a_window_nor_longer_than_usual() -> None:
    assert hotfix.dwell_of(PromotionPolicy(dwell_seconds=20, window_seconds=15, deadline_seconds=600)) == 15
    assert hotfix.dwell_of(PromotionPolicy(dwell_seconds=0)) == 0


def test_the_flow_takes_what_the_command_line_sends() -> None:
    assert {"hotfix_by", "hotfix_reason"} <= promote.parameters.properties.keys()
    assert promote.parameters.required == ["model", "version"]
