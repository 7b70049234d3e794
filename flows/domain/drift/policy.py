"""How a model's traffic is checked for drift, and what follows when there is some.

The section `drift:` of `model.yaml`. The defaults suit a tabular model with daily traffic; the two that
teams set most are `time_column` (when the rows say themselves when they happened) and `window`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Consequence = Literal["record", "alert", "freeze", "retrain", "rollback"]

TRAIN = "train/train"
"""The deployment that runs the policy's own `trainer`."""
UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


class DriftPolicy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: str = "0 6 * * *"
    """Cron expression of five fields, read in `timezone`."""
    timezone: str = "UTC"
    """Also the zone of `season` and of the days at which windows start."""

    window: str = "1d"
    """Length of one window: a number and m, h, d or w. The reference is cut into windows of this length."""
    time_column: str | None = None
    """Input with the row's own time (ISO 8601 or Unix seconds). Without one the time of arrival counts,
    and the reference is cut by row order."""
    season: Literal["none", "hour", "weekday", "hour_of_week"] = "none"
    """Compare with the same hour or weekday of the reference; needs `time_column`."""
    lookback: str = "28d"
    """How far back a check without `since` reads."""

    persistence: int = Field(default=2, ge=1, le=20)
    """How many windows in a row must show a change before it is an alert."""
    memory: int = Field(default=4, ge=1, le=60)
    """Up to so many of the newest windows are also judged together: finds slow, small changes."""
    min_rows: int = Field(default=50, ge=20)
    """Windows with fewer rows are not judged."""
    false_alarms: float = Field(default=0.01, gt=0, le=0.2)
    """Accepted probability that one check alerts although nothing changed: all columns and tests together."""
    min_effect: float = Field(default=0.025, ge=0, lt=1)
    """Changes that move less than this share of the rows are no drift, however certain they are."""
    min_influence: float = Field(default=0.1, ge=0)
    """Inputs that drift are an alert when they move the mean prediction by so many of its standard
    deviations, when the predictions drift, when performance falls, or when `min_effect` of the rows hold
    values that the reference never had. Otherwise they are noticed, without an alert. 0: whatever drifts is
    an alert. A reference without predictions cannot tell: then, too, whatever drifts is an alert."""

    prediction: str | None = None
    """Output that outcomes are compared with; default: the only output, else the first number."""
    min_outcomes: int = Field(default=200, ge=50)
    """Performance of a window is not judged on fewer outcomes."""
    max_loss: float = Field(default=0.02, ge=0)
    """Drop of the quality (AUC, accuracy) or relative growth of the error that is still accepted."""

    ignore: tuple[str, ...] = ()
    """Inputs that are not compared, for example hashed fields."""
    categorical: tuple[str, ...] = ()
    """Numeric inputs that are codes, not quantities. Strings of which hardly a value comes twice are read as
    text (length, alphabet, words) unless they are named here."""
    reference_rows: int = Field(default=4000, ge=0, le=50000)
    """Rows of the reference kept as bin numbers, never as values, for the multivariate check; 0: none."""
    report_rows: int = Field(default=20000, ge=100, le=100000)
    """Evidently draws its report on at most so many rows."""

    consequence: Consequence = "alert"
    """What follows when the data drifts."""
    harm: Consequence | None = None
    """What follows when realised performance is harmed; default: the same as `consequence`."""
    training: str | None = None
    """Prefect deployment (`flow/deployment`) started by the consequence `retrain`: `train/train`, which runs
    `trainer`, or one of your own. It is given the model and the reason."""
    trainer: tuple[str, ...] = ()
    """Command that trains the model anew, one word an entry; `{output}` stands for the folder that it fills
    with a release: model.yaml, the trained file, training.parquet, … (see `flows.training.candidate`)."""

    @property
    def window_seconds(self) -> float:
        return seconds(self.window)

    @property
    def lookback_seconds(self) -> float:
        return seconds(self.lookback)

    @field_validator("window", "lookback")
    @classmethod
    def _is_a_duration(cls, text: str) -> str:
        seconds(text)
        return text

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("no such time zone; use a name such as 'Europe/Berlin'") from error
        return name

    @field_validator("schedule")
    @classmethod
    def _schedule_is_cron(cls, text: str) -> str:
        try:
            next(CronSim(text, datetime(2000, 1, 1, tzinfo=UTC)))
        except (CronSimError, StopIteration) as error:
            raise ValueError("no cron expression of five fields, such as '0 6 * * *'") from error
        return text

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.season != "none" and self.time_column is None:
            raise ValueError("season needs time_column: the reference must know when its rows happened")
        if "retrain" in (self.consequence, self.harm) and self.training is None:
            raise ValueError("the consequence 'retrain' needs training: the Prefect deployment to start")
        if self.training == TRAIN and not self.trainer:
            raise ValueError(f"training '{TRAIN}' needs trainer: the command that trains the model")
        return self


def seconds(duration: str) -> float:
    """Seconds of `15m`, `6h`, `7d` or `2w`; ValueError otherwise."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", duration)
    if match is None:
        raise ValueError(f"{duration!r} is no duration; write a number and m, h, d or w, such as '7d'")
    return float(match[1]) * UNIT_SECONDS[match[2]]
