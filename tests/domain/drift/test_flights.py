"""Real flights of 2013: January and February are the reference, what follows is known.

Temperature, dew point and the summer's destinations change from April on. Realised performance is worst in
April, September and October, which the inputs alone do not explain.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from flows.domain.drift.check import check
from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.drift.frames import compared_columns
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import Profile, make_profile
from flows.domain.spec import ModelSpec, parse_spec
from serving.models.flights import data

WEEK = 7 * 86400.0
SPEC_FILE = Path(data.__file__).with_name("model.yaml")


@cache
def spec() -> ModelSpec:
    return parse_spec(SPEC_FILE.read_text(), "model.yaml")


def policy(**changes: object) -> DriftPolicy:
    return spec().drift.model_copy(update={"window": "7d", **changes})


@cache
def flights() -> pd.DataFrame:
    """The year, with the answers of a model that learned three quarters of January and February."""
    with TemporaryDirectory() as folder:
        frame = pd.read_parquet(data.prepared(Path(folder))).rename(columns={"outcome": "@outcome"})
    frame["@time"] = frame["scheduled"].astype(float)
    month = frame["at"].dt.month.to_numpy()
    inputs = pd.DataFrame(
        {c.name: frame[c.name].astype("category").cat.codes if c.kind == "categorical" else frame[c.name]
         for c in compared_columns(spec().signature, policy()) if c.role == "input"}
    )  # fmt: skip
    known = frame["@outcome"].notna().to_numpy()
    held_out = np.random.default_rng(0).random(len(frame)) < 0.25
    learned = (month <= 2) & known & ~held_out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HistGradientBoostingClassifier(max_iter=100, random_state=0)
        model.fit(inputs[learned], frame["@outcome"][learned])
        scores = model.predict_proba(inputs)[:, 1]
    frame = frame.assign(held_out=held_out)
    return frame.assign(**{"prediction.late_probability": scores, "month": month}).drop(columns="at")


def rows(*months: int) -> pd.DataFrame:
    frame = flights()
    return frame[frame["month"].isin(months)].drop(columns=["month", "held_out"])


@cache
def profile() -> Profile:
    frame = flights()
    holdout = frame[frame["held_out"] & (frame["month"] <= 2)]
    return make_profile(rows(1, 2), spec().signature, policy(), model="flights", holdout=holdout)


@cache
def month(number: int) -> DriftResult:
    return check(profile(), rows(number), policy())


@pytest.mark.parametrize("week", range(8))
def test_no_week_of_the_reference_alarms_against_the_others(week: int) -> None:
    frame = rows(1, 2)
    start = profile().starts[week]
    inside = (frame["@time"] >= start) & (frame["@time"] < start + WEEK)
    others = make_profile(frame[~inside], spec().signature, policy(), model="flights")

    result = check(others, frame[inside], policy(persistence=1, memory=1))

    assert result.rows > 5000
    assert result.outcome is Outcome.STABLE, result.sentence


def test_the_reference_itself_does_not_alarm() -> None:
    assert check(profile(), rows(1, 2), policy()).outcome is Outcome.STABLE


@pytest.mark.parametrize("number", range(4, 13))
def test_the_seasons_are_found_from_april_on(number: int) -> None:
    drifted = {column.column for column in month(number).columns if column.drifted}

    assert month(number).alerts
    assert "dest" in drifted, "destinations that winter does not have"
    if number in range(5, 10):
        assert {"temperature", "dew_point"} <= drifted


@pytest.mark.parametrize("number", [4, 9, 10])
def test_the_harm_of_april_september_and_october_is_found(number: int) -> None:
    result = month(number)
    performance = result.performance

    assert result.outcome is Outcome.HARMED
    assert performance is not None
    assert performance.state == ("degraded" if number == 10 else "harmful"), performance.sentence
    assert performance.loss is not None
    assert performance.base_loss is not None
    assert performance.loss > performance.base_loss, "answering the month's share of late flights is better"


def test_march_is_not_harmed() -> None:
    performance = month(3).performance
    assert performance is not None
    assert performance.state == "good", performance.sentence


def test_the_estimate_without_outcomes_does_not_see_the_harm() -> None:
    """Why it is shown with its assumption: the probabilities of April mean something else."""
    blind = check(profile(), rows(4).drop(columns="@outcome"), policy())
    seen = month(4).performance

    assert blind.outcome is Outcome.DRIFTED
    assert blind.performance is not None
    assert blind.performance.estimate is not None
    assert seen is not None
    assert seen.limit is not None
    assert seen.quality is not None
    assert seen.quality < seen.limit < blind.performance.estimate
