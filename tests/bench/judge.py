"""The judge's acceptance table, by simulated counters through the real judge code: `make bench-judge`.

    python -m tests.bench.judge [--runs N] [--quick] [--plot FILE] [--seed N]
    python -m tests.bench.judge --quick --runs 20     a first look, in minutes

Every number is counted, not computed. Exit code 1 when a line of the acceptance list is not met.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.judge_bursts import REJECTED, Cell, cell, found, limits, regimes
from tests.bench.judge_promises import promises
from tests.bench.judge_runs import held, ramp
from tests.bench.rivals import MINUTES, Outcome, argo, argo_example, flagger, kayenta
from tests.bench.situations import Situation, cold_caches, situations

Array = NDArray[np.float64]
CELLS = [(base, rps) for base in (0.001, 0.005, 0.01) for rps in (1, 10, 100)]
FALSE_ROLLBACKS = 0.01
CERTIFIED_MINUTES = 20.0

SEEN = ("ours", "independent", "Argo", "example", "Flagger", "Kayenta")
WHO = ("ours", "Argo", "example", "Flagger", "Kayenta")
HELD = ("ours", "Argo", "Flagger")
LEGEND = """\
ours     this judge, the default policy: 5, 25, 50 % for at least 5 minutes each
Argo     Argo Rollouts on the same ramp: at least 99 % a minute, failureLimit 3
example  Argo Rollouts as its documentation's example has it: at least 95 % in 5 minutes, failureLimit 3
Flagger  its tutorials' canary: at least 99 % a minute, threshold 5, 10 % more each passing minute, to 50 %
Kayenta  Mann-Whitney over the hour's minutes, canary and baseline at 10 % each
independent  this judge with pause_seconds: 0, which takes each request for independent of the others
held     the canary stays at 10 % for the hour (Flagger: iterations 60), and is looked at all the time"""


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
    Harm("+5 points on 0.5 %, 10 rps", 10, 0.005, 0.055, 7),
    Harm("2x of 0.5 %, 100 rps", 100, 0.005, 0.010, 10),
    Harm("5x of 0.5 %, 1 rps", 1, 0.005, 0.025, None),
    Harm("2x of 0.5 %, 10 rps", 10, 0.005, 0.010, None),
]


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of the runs, and median minutes over all runs (never: infinite)."""

    name: str
    rolled_back: dict[str, float]
    promoted: dict[str, float]
    minutes: dict[str, float]
    """To the certificate of a healthy canary, to the rollback of a sick one."""
    held: dict[str, float]
    """Rolled back when kept at 10 %; of healthy canaries only."""
    target: str
    met: bool


def healthy(rng: np.random.Generator, runs: int, base: float, rps: float) -> Row:
    outcomes = _outcomes(rng, runs, rps, base, base)
    steady = np.full(MINUTES, 10.0)
    kept = {
        "ours": _share(held(rng, runs, rps, base, base)),
        "Argo": _share(argo(rng, runs, rps, base, steady).rejected),
        "Flagger": _share(flagger(rng, runs, rps, base, iterations=MINUTES).rejected),
    }
    minutes = {who: _median(one.promoted) for who, one in outcomes.items()}
    rolled_back = {who: _share(one.rejected) for who, one in outcomes.items()}
    worst = max(rolled_back["ours"], kept["ours"])
    target, met = f"≤ {FALSE_ROLLBACKS:.0%} rolled back", worst <= FALSE_ROLLBACKS
    if (base, rps) == (0.005, 10):
        target = f"{target}, certified ≤ {CERTIFIED_MINUTES:g} min"
        met = met and minutes["ours"] <= CERTIFIED_MINUTES
    name = f"healthy, {100 * base:g} %, {rps:g} rps"
    return Row(name, rolled_back, _promoted(outcomes), minutes, kept, target, met)


def sick(rng: np.random.Generator, runs: int, harm: Harm) -> Row:
    outcomes = _outcomes(rng, runs, harm.rps, harm.canary, harm.base)
    minutes = {who: _median(one.rejected) for who, one in outcomes.items()}
    target, met = "nothing promised", True
    if harm.minutes is not None:
        target, met = f"found ≤ {harm.minutes:g} min", minutes["ours"] <= harm.minutes
    rolled_back = {who: _share(one.rejected) for who, one in outcomes.items()}
    return Row(harm.name, rolled_back, _promoted(outcomes), minutes, {}, target, met)


def _outcomes(
    rng: np.random.Generator, runs: int, rps: float, canary: float, base: float
) -> dict[str, Outcome]:
    return {
        "ours": ramp(rng, runs, rps, canary, base),
        "Argo": argo(rng, runs, rps, canary, np.repeat([5.0, 25.0, 50.0], 5)),
        "example": argo_example(rng, runs, rps, canary),
        "Flagger": flagger(rng, runs, rps, canary),
        "Kayenta": kayenta(rng, runs, rps, canary, base),
    }


def _promoted(outcomes: dict[str, Outcome]) -> dict[str, float]:
    return {who: _share(one.promoted) for who, one in outcomes.items()}


def _share(minutes: Array) -> float:
    return float(np.mean(~np.isnan(minutes)))


def _median(minutes: Array) -> float:
    """Over all runs: those without count as later than any."""
    return float(np.median(np.nan_to_num(minutes, nan=np.inf)))


def show(title: str, table: Sequence[Row], columns: Sequence[tuple[str, Sequence[str], str]]) -> None:
    """`columns`: a field of the rows, whose keys to show, and a heading."""
    widths = [max(len(who), 7) for _, whos, _ in columns for who in whos]
    cells = [
        [_text(field, getattr(row, field)[who]) for field, whos, _ in columns for who in whos]
        for row in table
    ]
    above = [f"{heading:^{sum(max(len(who), 7) + 1 for who in whos)}}" for _, whos, heading in columns]
    print(f"\n{title:28}" + " |".join(above))
    ends = set(np.cumsum([len(whos) for _, whos, _ in columns])[:-1].tolist())

    def line(texts: Sequence[str]) -> str:
        return "".join(
            (" |" if index in ends else "") + f" {text:>{width}}"
            for index, (text, width) in enumerate(zip(texts, widths, strict=True))
        )

    print(" " * 28 + line([who for _, whos, _ in columns for who in whos]))
    for row, texts in zip(table, cells, strict=True):
        print(f"{row.name:28}{line(texts)} | {row.target}: {'met' if row.met else 'MISSED'}")


def _text(field: str, value: float) -> str:
    if field == "minutes":
        return f"{value:.1f}" if np.isfinite(value) else "never"
    return f"{100 * value:.1f}%"


def show_bursts(cells: Sequence[Cell]) -> None:
    """Requests share a fate; nothing is wrong with the canary."""
    widths = [max(len(who), 7) for who in SEEN]
    heading = f"healthy, rejected (at most {REJECTED:.0%})"
    print(
        f"\n{heading:46}"
        + "".join(f" {who:>{w}}" for who, w in zip(SEEN, widths, strict=True))
        + " | through"
    )
    for one in cells:
        texts = [f"{100 * one.rejected[who]:.1f}%" if who in one.rejected else "" for who in SEEN]
        line = "".join(f" {text:>{width}}" for text, width in zip(texts, widths, strict=True))
        print(f"{one.name:46}{line} | {one.promoted:6.0%}  {'met' if one.met else 'MISSED'}")


def said(lines: Sequence[Situation]) -> None:
    for one in lines:
        shown = one.seen.endswith("(nothing promised)")
        print(f"{one.name:54} {one.seen:46} {'shown' if shown else 'met' if one.met else 'MISSED'}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.judge",
        description=__doc__.splitlines()[0],
        epilog="A first look, in minutes: python -m tests.bench.judge --quick --runs 20. With so few runs a "
        "line may be missed by chance. The README's figures and plot are of all regimes and 600 runs.",
    )
    parser.add_argument("--runs", type=int, default=600, help="simulated promotions a line (default: 600)")
    parser.add_argument("--quick", action="store_true", help="fewer regimes, and at most 200 runs")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--plot", type=Path, help="write the README's plot to this file")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.runs = min(chosen.runs, 200)
    began = time.monotonic()
    rng = np.random.default_rng(chosen.seed)
    print(
        f"{chosen.runs} simulated promotions a line, {MINUTES} minutes each, seed {chosen.seed}\n\n{LEGEND}"
    )
    good = [healthy(rng, chosen.runs, base, rps) for base, rps in CELLS]
    show(
        "nothing is wrong",
        good,
        [
            ("rolled_back", WHO, "rolled back in the ramp"),
            ("held", HELD, "rolled back, held"),
            ("promoted", ("ours",), "certified"),
            ("minutes", ("ours",), "minutes"),
        ],
    )
    bad = [sick(rng, chosen.runs, harm) for harm in HARMS]
    show(
        "the canary is worse",
        bad,
        [
            ("rolled_back", WHO, "rolled back"),
            ("promoted", WHO, "promoted"),
            ("minutes", ("ours", "Argo", "Flagger"), "minutes to the rollback"),
        ],
    )
    fated = [cell(rng, chosen.runs, regime) for regime in regimes(chosen.quick)]
    show_bursts(fated)
    print("\nminutes are medians over all promotions, those included that never got there.\n")
    parts: list[Callable[[], Sequence[Situation]]] = [
        lambda: list(found(rng, min(chosen.runs, 200))),
        lambda: list(limits(rng, min(chosen.runs, 200))),
        lambda: promises(rng, chosen.runs),
        lambda: list(cold_caches(chosen.seed, chosen.runs)),
        lambda: list(situations(chosen.seed)),
    ]
    played = []
    for part in parts:
        lines = part()
        said(lines)
        print()
        played += lines
    if chosen.plot:
        from tests.bench.judge_plot import draw

        draw(good, bad, fated, chosen.plot)
        print(f"plot: {chosen.plot}")
    missed = [one.name for one in (*good, *bad, *fated, *played) if not one.met]
    total = len(good) + len(bad) + len(fated) + len(played)
    print(f"{total - len(missed)} of {total} lines met in {time.monotonic() - began:.0f} s")
    for name in missed:
        print(f"MISSED: {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
