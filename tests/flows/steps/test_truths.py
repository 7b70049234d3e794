"""What turned out to be true, from Redis into windows and verdicts: a real Redis and a real registry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from flows.domain.errors import PromotionRejected, PromotionUnproven
from flows.domain.judge.asked import Metric
from flows.domain.judge.counters import Series, Snapshot
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.steps.replay import replay_verdicts
from flows.steps.watch import watch
from flows.wiring import ControlPlane
from tests.flows.conftest import Story

START = 1_700_000_000.0
GOOD, WRONG = 0.9, 0.2
"""The probability that is given to what comes true."""
DELAY = 120.0
"""Seconds from an answer to its truth: two windows."""


def policy(**outcomes: object) -> PromotionPolicy:
    return PromotionPolicy.model_validate(
        {
            "window_seconds": 60,
            "dwell_seconds": 600,
            "steps": [5, 50, 100],
            "deadline_seconds": 7200,
            "require_metrics": False,
            "weights": {"latency": 0},
            "outcomes": {"loss": "log", **outcomes},
        }
    )


class World:
    """A clock whose sleeps pass at once; healthy traffic that is counted, and its answers in Redis."""

    def __init__(self, url: str) -> None:
        self.now = START
        self.url = url
        self.client = redis.Redis.from_url(url)
        self.client.flushall()
        self.random = np.random.default_rng(3)
        self.weight = 5
        self.quality = {"flights-v1": GOOD, "flights-v2": GOOD}
        self.requests = dict.fromkeys(self.quality, 0)
        self.told = dict.fromkeys(self.quality, 0)
        self.coming: list[tuple[float, str, str, int]] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        for name, share in (("flights-v1", 1 - self.weight / 100), ("flights-v2", self.weight / 100)):
            self.requests[name] += int(600 * share)
            self._answer(name, int(60 * share))
        self.now += seconds
        due = [one for one in self.coming if one[0] <= self.now]
        self.coming = [one for one in self.coming if one[0] > self.now]
        for place in self.random.permutation(len(due)):  # people report when they like
            _, name, request, outcome = due[place]
            self._write("outcomes", {"request_id": request, "row": 0, "outcome": outcome})
            self.told[name] += 1

    def _answer(self, name: str, count: int) -> None:
        for number in range(count):
            outcome = int(self.random.random() < 0.5)
            right = self.quality[name]
            said = {"late": right if outcome else 1 - right}
            request = f"{name}-{self.now}-{number}"
            self._write(
                "samples",
                {"release": name, "request_id": request, "row": 0, "at": self.now, "prediction": said},
            )
            self.coming.append((self.now + DELAY, name, request, outcome))

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        self.client.xadd(f"{kind}:flights", {"data": json.dumps(content)})

    def snapshot(self, names: list[str], earlier: Snapshot | None, metrics: Sequence[Metric]) -> Snapshot:
        del metrics, names
        counters = {
            Series("requests", name, "2", "gateway"): float(count) for name, count in self.requests.items()
        }
        return Snapshot(self.now, counters, {"gateway": self.now}).after(earlier)


@pytest.fixture
def world(redis_url: str) -> Iterator[World]:
    world = World(redis_url)
    yield world
    world.client.close()


@pytest.fixture
def plane(plane: ControlPlane, world: World) -> ControlPlane:
    counters: Any = world
    settings = plane.settings.model_copy(update={"redis_url": world.url})
    return replace(plane, clock=world, counters=counters, settings=settings)


@pytest.fixture
def seen() -> list[tuple[Window, Verdict]]:
    return []


def known(windows: Sequence[Window]) -> tuple[int, int]:
    arms = [(one.canary.outcomes or 0, one.stable.outcomes or 0) for one in windows if one.stable is not None]
    return sum(canary for canary, _ in arms), sum(stable for _, stable in arms)


def test_a_canary_that_is_healthy_and_wrong_is_held_to_the_deadline(
    plane: ControlPlane, story: Story, world: World, seen: list[tuple[Window, Verdict]]
) -> None:
    story.register(1, 2)
    story.promoted(1)
    world.quality["flights-v2"] = WRONG
    promotion = story.begin(2, 50)
    world.weight = 50
    asked = policy(required=100)
    with pytest.raises(PromotionUnproven, match="points of log loss were made on the canary") as raised:
        watch(plane, promotion, asked, 50, lambda *one: seen.append(one))
    assert "healthy, and more than 1 points worse: held, not rejected" in str(raised.value)
    assert {verdict.kind for _, verdict in seen} == {"hold"}
    assert seen[-1][1].metric == "outcomes"
    assert sum(one.canary.errors for one, _ in seen) == 0


def test_with_a_weight_of_its_own_the_gate_rejects(
    plane: ControlPlane, story: Story, world: World, seen: list[tuple[Window, Verdict]]
) -> None:
    story.register(1, 2)
    story.promoted(1)
    world.quality["flights-v2"] = WRONG
    promotion = story.begin(2, 50)
    world.weight = 50
    with pytest.raises(PromotionRejected, match="points of log loss were made on the canary"):
        watch(plane, promotion, policy(weight=3), 50, lambda *one: seen.append(one))
    verdict = seen[-1][1]
    assert (verdict.kind, verdict.metric) == ("reject", "outcomes")
    assert (verdict.canary_total, verdict.stable_total) == known([window for window, _ in seen])


def test_a_good_one_goes_on_and_no_outcome_counts_twice_over_steps_and_dead_runs(
    plane: ControlPlane, story: Story, world: World, seen: list[tuple[Window, Verdict]]
) -> None:
    """Truths of the first step arrive in the second one, and while nobody watches."""
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 5)
    asked = policy(required=150)

    def dies(window: Window, verdict: Verdict) -> None:
        seen.append((window, verdict))
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(plane, promotion, asked, 5, dies)
    world.sleep(60)
    assert watch(plane, promotion, asked, 5, lambda *one: seen.append(one)).outcome == "advance"
    world.weight = 50
    assert watch(plane, promotion, asked, 50, lambda *one: seen.append(one)).outcome == "advance"
    stored = plane.registry.windows(promotion)
    windows = [Window.from_json(one.content) for one in stored]
    assert known(windows) == (world.told["flights-v2"], world.told["flights-v1"])
    assert known(windows)[0] >= 150
    assert sum(windows[-1].canary.differences.values()) > 0
    spec = plane.registry.spec("flights", 2) + f"promotion: {json.dumps(asked.model_dump(mode='json'))}\n"
    assert replay_verdicts(spec, stored) == 0


def test_while_redis_is_away_the_canary_is_judged_and_does_not_get_its_certificate(
    plane: ControlPlane, story: Story, tmp_path: Path, seen: list[tuple[Window, Verdict]]
) -> None:
    story.register(1, 2)
    story.promoted(1)
    settings = plane.settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none.sock"})
    promotion = story.begin(2, 50)
    world: Any = plane.clock
    world.weight = 50
    with pytest.raises(PromotionUnproven, match="cannot be read: does Redis answer"):
        watch(replace(plane, settings=settings), promotion, policy(), 50, lambda *one: seen.append(one))
    assert all(window.observed for window, _ in seen)
    assert {window.canary.outcomes for window, _ in seen} == {None}
