"""The situations of the failure matrix, each played through snapshots, windows and the judge a few times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from flows.domain.judge import judge
from flows.domain.policy import PromotionPolicy
from flows.domain.verdict import Verdict
from flows.domain.windows import Window
from tests.bench.simulated import Arm, Promotion, Traffic

QUICK = PromotionPolicy(window_seconds=30)
RUNS = 8


@dataclass(frozen=True)
class Situation:
    name: str
    seen: str
    met: bool


def situations(seed: int) -> Iterator[Situation]:
    """Play all; each says what was seen and whether it is what must be."""
    played: list[Promotion] = []

    def play(name: str, expected: set[str], minutes: float = 60, **changes: object) -> Situation:
        ends: Counter[str] = Counter()
        for run in range(RUNS):
            promotion = _promotion(seed + run, **changes)
            ends[promotion.run(minutes)] += 1
            played.append(promotion)
        seen = ", ".join(f"{count} {end}" for end, count in ends.items())
        last = played[-1].verdicts[-1].metric
        return Situation(name, f"{seen}; last: {last}", set(ends) <= expected)

    yield play("no traffic", {"open"}, rps=0.0)
    yield play(
        "no traffic, past the deadline, unproven allowed", {"keep"}, 190, rps=0.0, at="promote_unproven"
    )
    yield play("no canary traffic: the mesh ignores the weight", {"open"}, mesh=False)
    yield play("canary crash-loops: only the gateway sees it", {"rollback"}, canary=Arm(up=False))
    yield play("both fail alike, 20 % (shared incident)", {"open"}, both=Arm(error_rate=0.2))
    yield play("ten times slower", {"rollback"}, canary=Arm(median_seconds=0.2))
    yield play("one NaN in 1 000 outputs", {"rollback"}, canary=Arm(invalid_rate=0.001))
    yield play("always the same prediction", {"rollback"}, canary=Arm(bins=(0.0, 0.0, 0.0, 0.0, 1.0)))
    yield play("6 requests a minute, healthy", {"open"}, rps=0.1)
    yield from _outages(seed, (1, 5, 30))
    yield _replayed(played)


def _promotion(seed: int, **changes: object) -> Promotion:
    rng = np.random.default_rng(seed)
    both, canary = changes.get("both"), changes.get("canary", changes.get("both", Arm()))
    rps = changes.get("rps", 10.0)
    assert isinstance(canary, Arm)
    assert isinstance(rps, float)
    traffic = Traffic(rng, rps, canary, both if isinstance(both, Arm) else Arm())
    policy = QUICK
    if changes.get("at"):
        policy = QUICK.model_copy(update={"at_deadline": changes["at"]})
    return Promotion(policy, traffic, mesh=bool(changes.get("mesh", True)))


def _outages(seed: int, lengths: tuple[float, ...]) -> Iterator[Situation]:
    """The same counters with and without Prometheus: the promotion ends the same way."""
    ends: dict[float, list[str]] = {minutes: [] for minutes in (0.0, *lengths)}
    for minutes, found in ends.items():
        for run in range(RUNS):
            for arm in (Arm(), Arm(error_rate=0.02)):
                traffic = Traffic(np.random.default_rng(seed + run), 10.0, replace(arm), Arm())
                blind = ((120.0, 120.0 + 60 * minutes),) if minutes else ()
                found.append(Promotion(QUICK, traffic, blind=blind).run(90))
    for minutes in lengths:
        same = sum(one == other for one, other in zip(ends[0.0], ends[minutes], strict=True))
        name = f"Prometheus away for {minutes:g} min"
        yield Situation(name, f"{same} of {2 * RUNS} end as without", same == 2 * RUNS)


def _replayed(played: list[Promotion]) -> Situation:
    """Stored windows, through JSON, give the stored verdicts."""
    total = wrong = 0
    for promotion in played[::3]:
        windows = [Window.from_json(window.to_json()) for window in promotion.windows]
        for count in range(1, len(windows) + 1, 7):
            stored = Verdict.from_json(promotion.verdicts[count - 1].to_json())
            wrong += judge(promotion.policy, windows[:count]) != stored
            total += 1
    return Situation("stored decisions replayed", f"{total - wrong} of {total} identical", wrong == 0)
