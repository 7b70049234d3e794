"""The drift check on real data of which the harm is known, beside Evidently's default preset.

Flights of 2013 with January and February as reference: no week of the reference may alarm, the seasons are
there from April on, and outcomes show when the model is worse. Then a control without harm: the census of
Massachusetts that NannyML brings along, 2015 as reference, whose model stays as good as it was until 2018.
A survey has no order in time within its year, so each year is shuffled.

The reference weeks hold rows that the model has learned (three quarters), hence their high AUC; the later
months hold none. `python -m tests.bench.drift --real` prints both tables; pip fetches NannyML's wheel
(23 MB), of which only the data is read.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from flows.domain.drift.check import check
from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import make_profile
from flows.domain.signature import Column, Signature
from tests.domain.drift import test_flights as flights

NANNYML = "nannyml==0.13.1"
CENSUS = "nannyml/datasets/data/employment_MA_"
NO_INPUTS = {"id", "year", "prediction", "predicted_probability", "employed"}
WINDOWS = (500, 2_500, 10_000)
MOST_CHECKS = 20


def evidently_says(
    reference: pd.DataFrame, current: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]
) -> str:
    """How many columns its default statistics mark, and whether that is dataset drift."""
    from evidently.legacy.calculations.stattests import jensenshannon_stat_test, wasserstein_stat_test
    from evidently.legacy.core import ColumnType

    marked = 0
    for name in numeric:
        before, after = reference[name].dropna(), current[name].dropna()
        marked += bool(wasserstein_stat_test.func(before, after, ColumnType.Numerical, 0.1)[1])
    for name in categorical:
        before, after = reference[name].dropna().astype(str), current[name].dropna().astype(str)
        marked += bool(jensenshannon_stat_test.func(before, after, ColumnType.Categorical, 0.1)[1])
    everything = len(numeric) + len(categorical)
    return f"{marked} of {everything}: {'drift' if marked >= everything / 2 else 'no drift'}"


def drifted(result: DriftResult) -> str:
    names = [column.column.removeprefix("prediction.") for column in result.columns if column.drifted]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def of_flights(console: Console) -> None:
    policy, reference = flights.policy(), flights.rows(1, 2)
    columns = flights.profile().columns
    numeric = [column.name for column in columns if column.kind == "numeric"]
    categorical = [column.name for column in columns if column.kind == "categorical"]
    table = Table(title="Flights of 2013; reference: January and February")
    for heading in ("rows of", "ours", "drifted columns", "AUC", "performance", "Evidently: columns"):
        table.add_column(heading)
    # The ninth week has three days: it is part of no profile, and is not judged.
    weeks = [*flights.profile().starts, flights.profile().starts[-1] + flights.WEEK]
    for number, start in enumerate(weeks, start=1):
        inside = (reference["@time"] >= start) & (reference["@time"] < start + flights.WEEK)
        others = make_profile(reference[~inside], flights.spec().signature, policy, model="flights")
        week = reference[inside]
        once = flights.policy(persistence=1, memory=1)
        said = evidently_says(reference[~inside], week, numeric, categorical)
        _add(table, f"reference week {number}", check(others, week, once), said)
    for month in range(3, 13):
        rows = flights.rows(month)
        said = evidently_says(reference, rows, numeric, categorical)
        _add(table, f"2013-{month:02}", flights.month(month), said)
    console.print(table)


def _add(table: Table, name: str, result: DriftResult, said: str) -> None:
    performance = result.performance
    auc = f"{performance.quality:.3f}" if performance is not None and performance.quality else "-"
    state = performance.state.replace("_", " ") if performance is not None else "-"
    table.add_row(name, result.outcome.value, drifted(result), auc, state, said)


def nannyml(folder: Path) -> zipfile.ZipFile:
    """NannyML's wheel, fetched into `folder`: only its data is read. Installed, it brings LightGBM, XGBoost
    and Google's cloud libraries along."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), NANNYML]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("nannyml-*.whl")
    return zipfile.ZipFile(wheel)


def census(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reference (2015) and what came after (2016 to 2018), with the model's answers and the outcomes."""
    parts = {}
    with nannyml(folder) as archive:
        for part in ("reference", "analysis", "analysis_target"):
            with archive.open(f"{CENSUS}{part}.pq") as file:
                parts[part] = pd.read_parquet(file)
    return parts["reference"], parts["analysis"].merge(parts["analysis_target"], on="id")


def of_the_census(console: Console) -> None:
    with tempfile.TemporaryDirectory(prefix="modelserve-bench-") as name:
        before, after = census(Path(name))
    inputs = [str(column) for column in after.columns if column not in NO_INPUTS]
    signature = Signature(
        inputs=tuple(Column(name=c, type="number" if c == "AGEP" else "string") for c in inputs),
        outputs=(Column(name="p", type="number"),),
    )

    def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.sample(frac=1, random_state=1)
        answers = {
            "prediction.p": frame["predicted_probability"],
            "@outcome": frame["employed"].astype(float),
        }
        return frame[inputs].assign(**answers)

    policy = DriftPolicy()
    reference = shuffled(before)
    profile = make_profile(reference, signature, policy, model="census", holdout=reference)
    title = "Census of Massachusetts, a control without harm; reference: 2015"
    table = Table(title=f"{title} (AUC {roc_auc_score(before.employed, before.predicted_probability):.3f})")
    for heading in ("year", "AUC", "rows a check", "checks", "alerts", "noticed", "columns noticed"):
        table.add_column(heading)
    for year in sorted(after["year"].unique()):
        rows = after[after["year"] == year]
        auc = roc_auc_score(rows["employed"], rows["predicted_probability"])
        live = shuffled(rows)
        for window in WINDOWS:
            results = [
                check(profile, live.iloc[start : start + 2 * window], policy, window_rows=window)
                for start in range(0, min(len(live), 2 * window * MOST_CHECKS) - 2 * window + 1, 2 * window)
            ]
            noticed = [result for result in results if result.outcome is Outcome.NOTICED]
            names = Counter(c.column for result in noticed for c in result.columns if c.drifted)
            table.add_row(
                str(year),
                f"{auc:.3f}",
                f"{2 * window:,}",
                str(len(results)),
                str(sum(result.alerts for result in results)),
                str(len(noticed)),
                ", ".join(f"{name} {count}" for name, count in names.most_common(3)),
            )
    console.print(table)


def real(console: Console) -> None:
    of_flights(console)
    of_the_census(console)
