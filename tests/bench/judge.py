"""The judge's acceptance table, by simulated counters through the real judge code: `make bench-judge`.

    python -m tests.bench.judge [--runs N] [--plot FILE] [--seed N]

Every number is counted, not computed: requests are Poisson, errors Bernoulli, the ramp is the default
policy's and is walked by the judge's own `path` and `passed` (the same arrays that `judge` looks at the last
column of; a test holds them to agree). Exit code 1 when a line of the acceptance list is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.domain.paths import (
    Tally,
    certified,
    combined,
    last_proving_step,
    passed,
    path,
    rejection,
)
from flows.domain.policy import PromotionPolicy
from tests.bench.rivals import MINUTES, Outcome, argo, flagger, kayenta
from tests.bench.situations import situations

Array = NDArray[np.float64]
POLICY = PromotionPolicy()
CELLS = [(base, rps) for base in (0.001, 0.005, 0.01) for rps in (1, 10, 100)]
FALSE_ROLLBACKS = 0.01


@dataclass(frozen=True)
class Harm:
    """A canary that is worse, and how soon that must be found (median minutes)."""

    name: str
    rps: float
    base: float
    canary: float
    minutes: float | None
    """None: shown, with nothing promised."""


HARMS = [
    Harm("5x of 0.5 %, 10 rps", 10, 0.005, 0.025, 10),
    Harm("+5 points on 0.5 %, 10 rps", 10, 0.005, 0.055, 4),
    Harm("2x of 0.5 %, 100 rps", 100, 0.005, 0.010, 10),
    Harm("5x of 0.5 %, 1 rps", 1, 0.005, 0.025, None),
    Harm("2x of 0.5 %, 10 rps", 10, 0.005, 0.010, None),
]


def ramp(
    rng: np.random.Generator, runs: int, rps: float, canary: float, base: float, minutes: float = MINUTES
) -> Outcome:
    """Runs of the default ramp; all runs of a step at once, each with its own moment of leaving it."""
    windows = int(minutes * 60 / POLICY.window_seconds)
    weight = np.full((runs, windows), float(POLICY.steps[0]))
    total = rng.poisson(rps * POLICY.window_seconds, (runs, windows)).astype(np.float64)
    requests, bad_c, bad_s = _traffic(rng, total, weight, canary, base)
    rejected, through = np.full(runs, np.nan), np.full(runs, np.nan)
    column = np.arange(windows)
    for step, following in zip(POLICY.steps[:-1], POLICY.steps[1:], strict=True):
        counted = tallied(requests, bad_c, total - requests, bad_s, weight)
        followed = path(counted)
        evidence = combined(POLICY, {"errors": followed.errors})
        last = step == last_proving_step(POLICY)
        proven = certified(POLICY, counted) if last else np.ones_like(weight, dtype=bool)
        may = passed(POLICY, counted, followed, evidence, proven) & (weight == step)
        reject = _first(evidence >= rejection(POLICY))
        leave = np.where(np.isnan(through), _first(may), np.inf)
        if not last:
            # From the window after the one that passes on: new weight, new requests. The past stays.
            new = column >= np.where(np.isnan(leave), np.inf, leave)[:, None]
            weight = np.where(new, float(following), weight)
            fresh = _traffic(rng, total, weight, canary, base)
            requests, bad_c, bad_s = (
                np.where(new, now, was) for now, was in zip(fresh, (requests, bad_c, bad_s), strict=True)
            )
            continue
        first = ~np.isnan(reject) & ~(leave < reject)
        rejected[first] = reject[first]
        through = np.where(first, np.nan, leave)
    return Outcome(rejected * POLICY.window_seconds / 60, through * POLICY.window_seconds / 60)


def held(rng: np.random.Generator, runs: int, rps: float, canary: float, base: float) -> Array:
    """Minute of the rejection when the canary stays at 10 % for the hour and is looked at all the time."""
    windows = int(MINUTES * 60 / POLICY.window_seconds)
    weight = np.full((runs, windows), 10.0)
    total = rng.poisson(rps * POLICY.window_seconds, (runs, windows)).astype(np.float64)
    requests, bad_c, bad_s = _traffic(rng, total, weight, canary, base)
    followed = path(tallied(requests, bad_c, total - requests, bad_s, weight))
    minute = _first(combined(POLICY, {"errors": followed.errors}) >= rejection(POLICY))
    return minute * POLICY.window_seconds / 60


def tallied(requests: Array, bad_c: Array, stable: Array, bad_s: Array, weight: Array) -> Tally:
    none = np.zeros((*requests.shape, 0))
    seconds = np.full_like(requests, POLICY.window_seconds)
    return Tally(seconds, weight, requests, bad_c, stable, bad_s, requests, stable, none, none)


def _traffic(
    rng: np.random.Generator, total: Array, weight: Array, canary: float, base: float
) -> tuple[Array, Array, Array]:
    requests = rng.binomial(total.astype(int), weight / 100)
    bad_c = rng.binomial(requests, canary)
    bad_s = rng.binomial(total.astype(int) - requests, base)
    return requests.astype(np.float64), bad_c.astype(np.float64), bad_s.astype(np.float64)


def _first(events: NDArray[np.bool_]) -> Array:
    """One-based index of the first event of each run; NaN without one."""
    return np.where(events.any(axis=-1), events.argmax(axis=-1) + 1.0, np.nan)


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of the runs, and median minutes."""

    name: str
    rolled_back: dict[str, float]
    minutes: dict[str, float]
    promoted: dict[str, float]
    target: str
    met: bool


def rows(seed: int, runs: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    table = []
    for base, rps in CELLS:
        ours = _outcomes(rng, runs, rps, base, base)
        watched = float(np.mean(~np.isnan(held(rng, runs, rps, base, base))))
        shares = {"held at 10 %": watched} | _shares(ours)
        worst = max(shares["ours"], watched)
        target, met = "rolled back ≤ 1 %", worst <= FALSE_ROLLBACKS
        if (base, rps) == (0.005, 10):
            certificate = _median(ours["ours"].promoted)
            target, met = f"{target}, certified ≤ 20 min", met and certificate <= 20
        table.append(_row(f"healthy, {100 * base:g} %, {rps:g} rps", ours, shares, target, met))
    for harm in HARMS:
        ours = _outcomes(rng, runs, harm.rps, harm.canary, harm.base)
        # Runs that were never rejected count as later than any: the median is over all runs.
        found = np.nan_to_num(ours["ours"].rejected, nan=np.inf)
        target, met = "nothing promised", True
        if harm.minutes is not None:
            target, met = f"found ≤ {harm.minutes:g} min", bool(np.median(found) <= harm.minutes)
        table.append(_row(harm.name, ours, _shares(ours), target, met))
    return table


def _outcomes(
    rng: np.random.Generator, runs: int, rps: float, canary: float, base: float
) -> dict[str, Outcome]:
    minutes = np.repeat([5.0, 25.0, 50.0], 5)
    return {
        "ours": ramp(rng, runs, rps, canary, base),
        "Argo": argo(rng, runs, rps, canary, minutes),
        "Flagger": flagger(rng, runs, rps, canary),
        "Kayenta": kayenta(rng, runs, rps, canary, base),
    }


def _row(name: str, outcomes: dict[str, Outcome], shares: dict[str, float], target: str, met: bool) -> Row:
    healthy = name.startswith("healthy")
    times = {
        who: _median(one.promoted if healthy else np.nan_to_num(one.rejected, nan=np.inf))
        for who, one in outcomes.items()
    }
    promoted = {who: float(np.mean(~np.isnan(one.promoted))) for who, one in outcomes.items()}
    return Row(name, shares, times, promoted, target, met)


def _shares(outcomes: dict[str, Outcome]) -> dict[str, float]:
    return {who: float(np.mean(~np.isnan(one.rejected))) for who, one in outcomes.items()}


def _median(minutes: Array) -> float:
    found = minutes[~np.isnan(minutes)]
    return float(np.median(found)) if len(found) else float("inf")


def show(table: list[Row]) -> None:
    who = ["ours", "Argo", "Flagger", "Kayenta"]
    print(f"\n{'':28}{'rolled back':^40}{'promoted':^40}{'minutes':^8}")
    heads = ["ours", "held", "Argo", "Flagger", "Kayenta"]
    print(
        f"{'canary':28}"
        + "".join(f"{head:>8}" for head in heads)
        + "   "
        + "".join(f"{one:>8}" for one in who)
    )
    for row in table:
        rolled = [row.rolled_back.get("held at 10 %" if head == "held" else head) for head in heads]
        print(
            f"{row.name:28}"
            + "".join(f"{'':>8}" if one is None else f"{100 * one:7.1f}%" for one in rolled)
            + "   "
            + "".join(f"{100 * row.promoted[one]:7.1f}%" for one in who)
            + f"{row.minutes['ours']:10.1f}"
            + f"   {row.target}: {'met' if row.met else 'MISSED'}"
        )
    print("\nmedian minutes: of a healthy canary to its certificate, of a sick one to its rejection (ours).")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.judge", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated promotions a line")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--plot", type=Path, help="write the README's plot to this file")
    chosen = parser.parse_args()
    began = time.monotonic()
    table = rows(chosen.seed, chosen.runs)
    print(f"{chosen.runs} promotions a line, 60 minutes, the default policy, seed {chosen.seed}")
    show(table)
    print()
    met = all(row.met for row in table)
    for situation in situations(chosen.seed):
        print(f"{situation.name:49} {situation.seen:32} {'met' if situation.met else 'MISSED'}")
        met = met and situation.met
    if chosen.plot:
        from tests.bench.judge_plot import draw

        draw(table, chosen.plot)
        print(f"plot: {chosen.plot}")
    print(f"\n{'every line is met' if met else 'NOT every line is met'}; {time.monotonic() - began:.0f} s")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
