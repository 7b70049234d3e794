"""How often the drift check cries wolf, what it finds, and how fast, beside Evidently's default preset.

    python -m tests.bench.drift [--trials N] [--rates | --speed | --real | --controls]

Both see the same rows against the same reference of 10 000 rows and 20 columns (19 numbers, one category).
Ours judges the rows as two windows, as its policy wants. Evidently's verdicts come from its own statistics
with the thresholds of `DataDriftPreset`; three whole reports are drawn to prove that these agree.

Detection is counted as an alert; for Evidently both its dataset verdict (half of the columns) and the mark on
the changed column are shown, and how often it marks any column when nothing has changed.
Then the same million rows by both, and ten million by ours (`--speed`: only that; `--rates`: not that).
First, and alone with `--controls`: real columns of every kind in which nothing changes. At most 1 % of the
checks of a kind may alert; otherwise the exit code is 1.
`--real`: instead, flights and a census of which the harm is known.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from flows.domain.drift.check import check
from flows.domain.drift.profile import Profile, make_profile
from tests.bench.drift_controls import controls
from tests.bench.drift_data import COLUMNS, NUMBERS, POLICY, SIGNATURE, Make, lognormal, normal, wandering
from tests.bench.drift_real import real
from tests.bench.drift_speed import speed

SIZES = (200, 1_000, 10_000)
REFERENCE = 10_000

Change = Callable[[pd.DataFrame], pd.DataFrame]


def shifted(by: float, columns: int) -> Change:
    names = NUMBERS[2 : 2 + columns]
    return lambda frame: frame.assign(**{name: frame[name] + by for name in names})


def rotated(frame: pd.DataFrame) -> pd.DataFrame:
    """x0 and x1 turned by a right angle: each alone looks as before."""
    return frame.assign(x0=-frame["x1"], x1=frame["x0"])


def swapped(frame: pd.DataFrame) -> pd.DataFrame:
    """The two most frequent categories change places (40 and 30 % become 30 and 40 %)."""
    return frame.assign(kind=frame["kind"].replace({"a": "b", "b": "a"}))


UNCHANGED: dict[str, Make] = {"normal": normal, "lognormal": lognormal, "AR(1) 0.9": wandering}
CHANGES: dict[str, tuple[Change, list[str]]] = {
    "0.1 sd in 1 column": (shifted(0.1, 1), ["x2"]),
    "0.25 sd in 1 column": (shifted(0.25, 1), ["x2"]),
    "0.5 sd in 1 column": (shifted(0.5, 1), ["x2"]),
    "0.1 sd in 10 columns": (shifted(0.1, 10), NUMBERS[2:12]),
    "0.25 sd in 10 columns": (shifted(0.25, 10), NUMBERS[2:12]),
    "rotation of 2 columns": (rotated, ["x0", "x1"]),
    "category swap": (swapped, ["kind"]),
}


def evidently_columns(reference: pd.DataFrame, current: pd.DataFrame) -> set[str]:
    """Columns that Evidently's preset marks, by its own functions: Wasserstein and Jensen-Shannon at 0.1."""
    from evidently.legacy.calculations.stattests import jensenshannon_stat_test, wasserstein_stat_test
    from evidently.legacy.core import ColumnType

    found = set()
    for name in COLUMNS:
        numeric = name != "kind"
        test = wasserstein_stat_test if numeric else jensenshannon_stat_test
        kind = ColumnType.Numerical if numeric else ColumnType.Categorical
        if test.func(reference[name], current[name], kind, 0.1)[1]:
            found.add(name)
    return found


def evidently_report(reference: pd.DataFrame, current: pd.DataFrame) -> set[str]:
    """The same from a whole report."""
    from flows.adapters.evidently import draw

    return set(draw(reference, current, NUMBERS, ["kind"]).drifted)


def references(make: Make, count: int) -> Iterator[tuple[int, pd.DataFrame, Profile]]:
    for number in range(count):
        frame = make(np.random.default_rng(10_000 + number), REFERENCE)
        yield number, frame, make_profile(frame, SIGNATURE, POLICY, model="bench")


def false_alarms(console: Console, trials: int) -> None:
    table = Table(title=f"Nothing changed: false alarms, 20 columns, {trials} checks each")
    for heading in ("data", "rows", "ours", "Evidently: dataset", "Evidently: any column"):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    for kind, make in UNCHANGED.items():
        ours, dataset, anything = (dict.fromkeys(SIZES, 0) for _ in range(3))
        done = dict.fromkeys(SIZES, 0)
        groups = 10
        for number, reference, profile in references(make, groups):
            for size in SIZES:
                for trial in range(trials // groups):
                    current = make(np.random.default_rng([number, size, trial]), size)
                    ours[size] += check(profile, current, POLICY).alerts
                    marked = evidently_columns(reference, current)
                    dataset[size] += len(marked) >= len(COLUMNS) / 2
                    anything[size] += bool(marked)
                    done[size] += 1
        for size in SIZES:
            shares = (ours[size], dataset[size], anything[size])
            table.add_row(kind, f"{size:,}", *(f"{100 * share / done[size]:.1f} %" for share in shares))
    console.print(table)


def detections(console: Console, trials: int) -> None:
    table = Table(title=f"Something changed: detections, {trials} checks each")
    headings = (
        "change",
        "rows",
        "ours",
        "ours, right columns",
        "Evidently: dataset",
        "Evidently: the column",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "change" else "right")
    made = list(references(normal, 5))
    for name, (change, columns) in CHANGES.items():
        for size in SIZES:
            ours = right = dataset = marks = 0
            for trial in range(trials):
                _, reference, profile = made[trial % len(made)]
                current = change(normal(np.random.default_rng(777 * size + trial), size))
                result = check(profile, current, POLICY)
                drifted = {column.column for column in result.columns if column.drifted}
                told = result.multivariate.told_by[:1] if result.multivariate else ()
                ours += result.alerts
                right += bool(drifted & set(columns)) or told in (("x0 * x1",), ("x1 * x0",))
                marked = evidently_columns(reference, current)
                dataset += len(marked) >= len(COLUMNS) / 2
                marks += bool(marked & set(columns))
            counts = (ours, right, dataset, marks)
            table.add_row(name, f"{size:,}", *(f"{100 * count / trials:.0f} %" for count in counts))
    console.print(table)


def agreement(console: Console) -> None:
    """Prove that the statistics used above are what a whole report of the preset says."""
    _, reference, _ = next(references(normal, 1))
    for name, size in (("0.25 sd in 1 column", 1_000), ("category swap", 200), ("0.1 sd in 10 columns", 200)):
        current = CHANGES[name][0](normal(np.random.default_rng(size), size))
        ours, theirs = evidently_columns(reference, current), evidently_report(reference, current)
        assert ours == theirs, f"the report marks {sorted(theirs)}, its functions {sorted(ours)}"
    console.print("Evidently: three whole reports mark the same columns as its functions do\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200, help="checks for each rate of false alarms")
    parser.add_argument("--rates", action="store_true", help="only: false alarms and detections")
    parser.add_argument("--speed", action="store_true", help="only: time and memory (minutes)")
    parser.add_argument("--real", action="store_true", help="only: real data (fetches 23 MB)")
    parser.add_argument("--controls", action="store_true", help="only: real columns without a change")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(width=120)
    start = time.monotonic()
    kept = True
    if not (chosen.speed or chosen.rates or chosen.real):
        kept = controls(console, chosen.trials)
    if chosen.real:
        real(console)
    elif not chosen.controls:
        if not chosen.speed:
            agreement(console)
            false_alarms(console, chosen.trials)
            detections(console, max(chosen.trials // 5, 10))
        if not chosen.rates:
            speed(console)
    console.print(f"{time.monotonic() - start:.0f} s")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
