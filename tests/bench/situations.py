"""The situations of the failure matrix, each played through snapshots, windows and the judge a few times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Window
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

    for rate in (0.1, 0.3):
        for rps in (10.0, 100.0, 1000.0):
            arms = {"stable": Arm(error_rate=rate), "canary": Arm(error_rate=0.001)}
            name = f"hotfix: stable fails {rate:.0%}, canary 0.1 %, {rps:g} rps"
            yield play(name, {"promoted"}, 20, rps=rps, **arms)
            yield play("  the same, and the canary as the stable", {"open"}, 20, rps=rps, both=Arm(rate))
    yield play("no traffic", {"open"}, rps=0.0)
    yield play(
        "no traffic, past the deadline, unproven allowed", {"keep"}, 190, rps=0.0, at="promote_unproven"
    )
    yield play("no canary traffic: the mesh ignores the weight", {"open"}, mesh=False)
    yield play("6 requests a minute, healthy", {"open"}, rps=0.1)
    yield _one_error()
    yield play("canary crash-loops: only the gateway sees it", {"rollback"}, canary=Arm(up=False))
    yield play("both fail alike, 20 % (shared incident)", {"open"}, both=Arm(error_rate=0.2))
    yield _incident(seed)
    yield play(
        "twice the errors under the SLO: 0.8 % on 0.4 %",
        {"rollback"},
        rps=200.0,
        canary=Arm(error_rate=0.008),
        stable=Arm(error_rate=0.004),
    )
    yield play("ten times slower", {"rollback"}, canary=Arm(median_seconds=0.2))
    yield play("one NaN in 30 answers: status 500", {"rollback"}, canary=Arm(error_rate=1 / 30))
    yield play("always the same prediction", {"rollback"}, canary=Arm(bins=(0.0, 0.0, 0.0, 0.0, 1.0)))
    yield _foreign(seed)
    yield _restarted(seed)
    yield from _outages(seed, (1, 5, 30))
    yield _replayed(played)


WARM = Arm(error_rate=0.001, median_seconds=0.1, hits=0.6)
"""A model that takes 100 ms, and a cache that knows 60 % of what is asked."""


def cold_caches(seed: int, runs: int) -> Iterator[Situation]:
    """The stable's cache is warm, the canary's cold: that is no slow release, and hides none."""
    for hits in (0.0, 0.3):
        ends = Counter(_beside_warm(seed + run, replace(WARM, hits=hits)) for run in range(runs))
        name = f"cold cache: 60 % of the stable's are hits, {hits:.0%} of the canary's"
        seen = f"{ends['rollback']} of {runs} rejected, {ends['promoted']} promoted"
        yield Situation(name, seen, ends["rollback"] <= 0.01 * runs)
    for name, sick in (
        ("its model takes 4 times as long", replace(WARM, hits=0.0, median_seconds=0.4)),
        ("its hits take 0.2 s", replace(WARM, hit_seconds=0.2)),
        ("its proxy makes all wait for 0.3 s", replace(WARM, hits=0.0, queue_seconds=0.3)),
    ):
        ends = Counter(_beside_warm(seed + run, sick) for run in range(RUNS))
        seen = f"{ends['rollback']} of {RUNS} rejected"
        yield Situation(f"  a cold canary, and {name}", seen, ends["rollback"] == RUNS)


def _beside_warm(seed: int, canary: Arm) -> str:
    traffic = Traffic(np.random.default_rng(seed), 20.0, replace(canary), replace(WARM))
    return Promotion(QUICK, traffic).run(40)


def _promotion(seed: int, **changes: object) -> Promotion:
    rng = np.random.default_rng(seed)
    both, canary = changes.get("both"), changes.get("canary", changes.get("both", Arm()))
    rps = changes.get("rps", 10.0)
    assert isinstance(canary, Arm)
    assert isinstance(rps, float)
    stable = changes.get("stable", both if both is not None else Arm())
    assert isinstance(stable, Arm)
    traffic = Traffic(rng, rps, canary, stable)
    policy = QUICK
    if changes.get("at"):
        policy = QUICK.model_copy(update={"at_deadline": changes["at"]})
    return Promotion(policy, traffic, mesh=bool(changes.get("mesh", True)))


def _one_error() -> Situation:
    """The only request of the canary in a quarter of an hour has failed."""
    quiet = [
        Window(30.0 * i, 30.0 * i + 30, 5, Counts(int(i == 29), int(i == 29), int(i == 29)), Counts(3, 0, 3))
        for i in range(30)
    ]
    verdict = judge(QUICK, quiet)
    met = verdict.kind == "hold" and verdict.evidence < 10
    return Situation(
        "6 requests a minute, one error", f"{verdict.kind}, evidence {verdict.evidence:.2f} of 100", met
    )


def _incident(seed: int) -> Situation:
    """Both releases fail alike from the fourth minute on, for twenty minutes, and then recover."""
    seen: Counter[str] = Counter()
    for run in range(RUNS):
        promotion = _promotion(seed + run)
        promotion.run(4)
        for rate, minutes in ((0.1, 20), (0.005, 60)):
            promotion.traffic.canary.error_rate = rate
            assert promotion.traffic.stable is not None
            promotion.traffic.stable.error_rate = rate
            verdicts = [promotion.step() for _ in range(2 * minutes)]
            seen[verdicts[2 * minutes - 1 if rate > 0.01 else 20].metric] += 1
            seen["rejected"] += any(verdict.kind == "reject" for verdict in verdicts)
    text = f"{seen['incident']} of {RUNS} frozen, then freed; {seen['rejected']} rejected"
    return Situation(
        "an incident of both in the middle of a step", text, (seen["incident"], seen["rejected"]) == (RUNS, 0)
    )


def _foreign(seed: int) -> Situation:
    """Somebody sends 25 % where 5 % were set: by that, a healthy canary fails five times as often."""
    rejected = 0
    for run in range(RUNS):
        promotion = _promotion(seed + run, both=Arm(error_rate=0.02))
        promotion.run(1)
        promotion.traffic.applied = 25
        rejected += any(promotion.step().kind == "reject" for _ in range(60))
    return Situation(
        "somebody else sends 25 % instead of 5 %, healthy", f"{rejected} of {RUNS} rejected", rejected == 0
    )


def _restarted(seed: int) -> Situation:
    """A gateway is restarted every third minute: its counters begin again, between two looks at them."""
    ends: Counter[str] = Counter()
    for run in range(RUNS):
        promotion = _promotion(seed + run)
        promotion.restart_every = 6
        ends[promotion.run(60)] += 1
    text = ", ".join(f"{count} {end}" for end, count in ends.items())
    return Situation("a gateway that restarts every third minute, healthy", text, set(ends) == {"promoted"})


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
