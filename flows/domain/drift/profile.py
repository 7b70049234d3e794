"""The reference of a release: what its training data looked like, as counts.

Made once, at registration, stored in the bundle as `reference.json` and thereby under the release's sha256.
A drift check reads only this; the training set can be deleted. No row of it is in here: counts of bins a
window, and (unless `reference_rows: 0`) some shuffled rows as bin numbers for the multivariate check.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.domain.drift.binning import (
    BELOW,
    FIRST_CATEGORY,
    MOST_CATEGORIES,
    NULL,
    UNSEEN,
    Bins,
    CategoryBins,
    Codes,
    Flags,
    Floats,
    Ints,
    NumericBins,
    distinct,
)
from flows.domain.drift.frames import (
    OUTCOME,
    TIME,
    Compared,
    Kind,
    Part,
    Role,
    compared_columns,
    expand,
    prediction_column,
    training_frame,
)
from flows.domain.drift.learning import LEAST_NAMED, learn_categories, learn_numbers, rises
from flows.domain.drift.multivariate import ReferenceRows, reference_rows
from flows.domain.drift.performance import PerformanceProfile, performance_profile
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.text import PARTS
from flows.domain.errors import ArtifactCorrupt, SpecInvalid
from flows.domain.signature import Signature

FORMAT = 1
FINEST_BLOCKS = 256
LEAST_BLOCK_ROWS = 20
LEFT_OUT_BLOCKS = 64
"""In row order so many consecutive parts are left out in turn: values that come in a row leave together."""
LEAST_TEXTS = 100
MOSTLY = 0.5
"""A category of which so many rows hold a value that comes once is read as text. One of which not as many
hold a value that is frequent enough for a name is read as text, too."""
HARDLY = 0.05
"""Where so few rows hold a value with a name, and no value counts as new, a category tells nothing."""
WHOLE_WINDOW = 0.8
"""A reference window counts as whole when the data covers this share of it."""
CELLS = {"none": 1, "hour": 24, "weekday": 7, "hour_of_week": 168}


class Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnProfile(Stored):
    name: str
    source: str
    role: Role
    kind: Kind
    part: Part = ""
    bounds: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()
    complete: bool = True
    counts: list[list[int]]
    """Rows by reference window and bin, each coded as if its own window had not been there (`left_out`)."""
    left_out: bool = False
    """False in references of before: there, no row of the reference itself is ever new to it."""
    rising: bool = False
    """Numbers that rise or fall with time and never come back, such as a clock's or a counter's."""
    cells: list[list[int]] = Field(default_factory=list)
    """Rows by season cell and bin; empty without a season."""
    mean: float = 0.0
    sd: float = 0.0
    window_cells: list[list[int]] = Field(default_factory=list)
    """Rows by reference window and season cell, where they are not those of the other columns."""
    effects: list[float] = Field(default_factory=list)
    """What being in a bin adds to the model's prediction, other columns apart; empty when not known."""

    @cached_property
    def by_window(self) -> Floats:
        """`counts` as an array, shape (windows, bins)."""
        return np.asarray(self.counts, dtype=np.float64).reshape(len(self.counts), self.bins.size)

    @cached_property
    def total(self) -> Floats:
        """Rows by bin, shape (bins,)."""
        return np.asarray(self.by_window.sum(axis=0))

    @property
    def compared(self) -> Compared:
        return Compared(self.name, self.source, self.role, self.kind, self.part)

    @property
    def bins(self) -> Bins:
        if self.kind == "numeric":
            return NumericBins(self.bounds)
        # An old reference does not know how many values of a tail are new every day: none counts as new.
        return CategoryBins(self.categories, self.rare, self.complete and (self.left_out or not self.rare))

    @cached_property
    def new(self) -> Flags:
        """Which bins hold what the reference never had, shape (bins,)."""
        places = np.arange(self.bins.size)
        ends = [BELOW, self.bins.size - 1] if self.kind == "numeric" else [UNSEEN]
        return np.asarray(np.isin(places, ends) | (self.total == 0))

    @cached_property
    def mute(self) -> str:
        """Why no value of this column could ever stand out; empty when one could."""
        known = self.total.sum() - self.total[NULL]
        if known == 0:
            return "the reference holds no value that can be read" if self.total.sum() else ""
        if self.rising:
            return "it rises or falls with time, as a clock does: each window differs from all others"
        if (
            self.kind == "categorical"
            and not self.complete
            and self.total[FIRST_CATEGORY:].sum() < HARDLY * known
        ):
            return "nearly every value is new, and it is not read as text; register again, or ignore it"
        return ""


class Profile(Stored):
    format: Literal[1] = 1
    model: str
    rows: int
    prediction: str | None
    anchor: float | None
    """Unix seconds at which windows start; None when the reference is cut by row order."""
    window_seconds: float
    season: Literal["none", "hour", "weekday", "hour_of_week"]
    timezone: str
    sizes: list[int]
    """Rows of each reference window (or of each of the finest blocks, in row order)."""
    dropped: int
    """Rows in partial windows, which are not used."""
    starts: list[float] = Field(default_factory=list)
    """Unix seconds at which each reference window starts; empty in row order."""
    window_cells: list[list[int]] = Field(default_factory=list)
    """Rows by reference window and season cell."""
    columns: list[ColumnProfile]
    missing: list[str] = Field(default_factory=list)
    """Columns of the signature that the training frame lacked: they are not compared."""
    sample: ReferenceRows | None = None
    performance: PerformanceProfile | None = None

    @property
    def in_time(self) -> bool:
        return self.anchor is not None

    @cached_property
    def prediction_sd(self) -> float | None:
        """Standard deviation of the reference's predictions; None when there are none, or no numbers."""
        for column in self.columns:
            if column.name == self.prediction and column.kind == "numeric" and column.sd > 0:
                return column.sd
        return None

    def to_json(self) -> str:
        return self.model_dump_json(exclude_defaults=True) + "\n"


def parse_profile(text: str, source: str) -> Profile:
    """Read a `reference.json`; ArtifactCorrupt with the first problem when it is none."""
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"]) or "top level"
        raise ArtifactCorrupt(
            f"{source} is no drift reference ({place}: {detail['msg']}); register the model again"
        ) from error


def make_profile(
    frame: pd.DataFrame,
    signature: Signature,
    policy: DriftPolicy,
    *,
    model: str,
    outcome: str = "outcome",
    holdout: pd.DataFrame | None = None,
) -> Profile:
    """Make the reference from the training data.

    `frame`: one row an example, inputs under their names, in the order in which they happened when there is
    no `time_column`. Predictions (under the outputs' names) and outcomes (in column `outcome`) are optional;
    they bring prediction drift, the ranking by effect, and performance.
    `holdout`: such a frame with predictions that the model made without having learned the rows. A model is
    surer and better on its own training rows, so then what predictions look like and how good they are is
    taken from here. It may be `frame` itself when its predictions are out of fold.

    SpecInvalid when the frame is empty, none of the signature's inputs is in it, its times are no times, or
    the holdout has no predictions.
    """
    if frame.empty:
        raise SpecInvalid("the training data has no rows; a reference needs some")
    wanted = compared_columns(signature, policy)
    ready = expand(training_frame(frame, signature, policy, outcome), wanted)
    if not any(column.name in ready for column in wanted if column.role == "input"):
        raise SpecInvalid("the training data has none of the signature's inputs as columns; name them alike")
    if policy.time_column is not None and TIME not in ready:
        raise SpecInvalid(f"the training data lacks drift.time_column {policy.time_column!r}")
    times = ready[TIME].to_numpy() if TIME in ready else None
    if times is not None and np.isnan(times).all():
        raise SpecInvalid(
            f"drift.time_column {policy.time_column!r} holds no times (ISO 8601 or Unix seconds)"
        )
    window_of, starts, anchor = _windows(times, len(ready), policy)
    season = season_cells(times, policy.season, policy.timezone) if times is not None else None
    kept = window_of >= 0
    windows = int(window_of.max()) + 1 if kept.any() else 0
    held_out = ready if holdout is None else _held_out(holdout, wanted, signature, policy, outcome)
    wanted = _with_texts(wanted, ready, held_out, policy)
    ready, held_out = expand(ready, wanted), expand(held_out, wanted)
    columns, coded = [], {}
    for column in wanted:
        if column.role == "output" and holdout is not None:
            if column.name in held_out:
                columns.append(_output(column, held_out, policy))
        elif column.name in ready:
            made, codes = _column(column, ready, window_of, windows, season, policy)
            columns.append(made)
            coded[column.name] = codes
    texts = {column.source for column in columns if column.part in PARTS}
    columns = [column for column in columns if column.part or not column.mute or column.name not in texts]
    if not columns:
        raise SpecInvalid("the training data has none of the columns that the signature names")
    score = prediction_column(signature, policy)
    if score is not None and score in held_out:
        if holdout is not None:
            both = [column for column in columns if column.role == "input" and column.name in held_out]
            _add_effects(both, {c.name: c.bins.code(held_out[c.name]).codes for c in both}, held_out[score])
            columns = [next((b for b in both if b.name == c.name), c) for c in columns]
        else:
            _add_effects(columns, coded, held_out[score])
    performance = None
    if score is not None and score in held_out and OUTCOME in held_out:
        performance = performance_profile(held_out, score, anchor, policy, held_out=holdout is not None)
    inputs = [column for column in columns if column.role == "input" and not column.mute]
    sample = reference_rows(
        {column.name: coded[column.name] for column in inputs},
        {column.name: column.bins for column in inputs},
        window_of,
        policy.reference_rows,
    )
    return Profile(
        model=model,
        rows=int(kept.sum()),
        prediction=score,
        anchor=anchor,
        window_seconds=policy.window_seconds,
        season=policy.season,
        timezone=policy.timezone,
        sizes=_counts(window_of[kept], windows),
        dropped=int((~kept).sum()),
        starts=starts,
        window_cells=_cell_counts(window_of, season, windows, policy.season),
        columns=columns,
        missing=[column.name for column in wanted if column.name not in ready and column.role == "input"],
        sample=sample,
        performance=performance,
    )


def _with_texts(
    wanted: tuple[Compared, ...], inputs: pd.DataFrame, outputs: pd.DataFrame, policy: DriftPolicy
) -> tuple[Compared, ...]:
    """The same columns, those with values that hardly come twice read as text, too, or instead."""
    found: list[Compared] = []
    for column in wanted:
        frame = inputs if column.role == "input" else outputs
        if column.kind == "numeric" or column.name not in frame:
            found.append(column)
            continue
        positions, _ = distinct(frame[column.name])
        sizes = np.bincount(positions[positions >= 0])
        rows = max(int(sizes.sum()), LEAST_TEXTS)
        frequent = np.sort(sizes[sizes >= LEAST_NAMED])[::-1][:MOST_CATEGORIES].sum()
        once = (sizes == 1).sum() >= MOSTLY * rows
        text = column.source not in policy.categorical and rows == sizes.sum() and frequent < MOSTLY * rows
        found += [] if text and once else [column]
        found += column.texts() if text else []
    return tuple(found)


def _held_out(
    frame: pd.DataFrame,
    wanted: tuple[Compared, ...],
    signature: Signature,
    policy: DriftPolicy,
    outcome: str,
) -> pd.DataFrame:
    """The holdout in the shape in which rows are compared. SpecInvalid when it has no predictions."""
    ready = expand(training_frame(frame, signature, policy, outcome), wanted)
    if ready.empty or not any(column.name in ready for column in wanted if column.role == "output"):
        names = ", ".join(repr(column.name) for column in signature.outputs)
        raise SpecInvalid(f"the holdout has no predictions; add the model's answers as columns: {names}")
    if policy.time_column is not None and (TIME not in ready or ready[TIME].isna().all()):
        raise SpecInvalid(f"the holdout lacks drift.time_column {policy.time_column!r}")
    return ready


def _output(column: Compared, frame: pd.DataFrame, policy: DriftPolicy) -> ColumnProfile:
    """An output's profile on the holdout, which has windows of its own."""
    times = frame[TIME].to_numpy() if TIME in frame else None
    window_of, _, _ = _windows(times, len(frame), policy)
    season = season_cells(times, policy.season, policy.timezone) if times is not None else None
    windows = int(window_of.max(initial=-1)) + 1
    made, _ = _column(column, frame, window_of, windows, season, policy)
    cells = _cell_counts(window_of, season, windows, policy.season)
    return made.model_copy(update={"window_cells": cells})


def day_start(moment: float, timezone: str) -> float:
    """Unix seconds of the midnight before `moment`, in the zone."""
    local = pd.Timestamp(moment, unit="s", tz="UTC").tz_convert(ZoneInfo(timezone))
    return float(local.normalize().timestamp())


def season_cells(times: Floats, season: str, timezone: str) -> Ints:
    """Number of the hour, weekday (Monday is 0) or hour of the week of each time; 0 for no time."""
    if season == "none":
        return np.zeros(len(times), dtype=np.int64)
    moments = pd.to_datetime(pd.Series(times), unit="s", utc=True).dt.tz_convert(ZoneInfo(timezone))
    hour = moments.dt.hour.fillna(0).to_numpy(dtype=np.int64)
    weekday = moments.dt.weekday.fillna(0).to_numpy(dtype=np.int64)
    return {"hour": hour, "weekday": weekday, "hour_of_week": weekday * 24 + hour}[season].astype(np.int64)


def _windows(times: Floats | None, rows: int, policy: DriftPolicy) -> tuple[Ints, list[float], float | None]:
    """Reference window of each row (-1: in none), the windows' starts, and the anchor."""
    if times is None:
        blocks = int(np.clip(rows // LEAST_BLOCK_ROWS, 1, FINEST_BLOCKS))
        return np.arange(rows, dtype=np.int64) * blocks // rows, [], None
    length = policy.window_seconds
    first, last = float(np.nanmin(times)), float(np.nanmax(times))
    anchor = day_start(first, policy.timezone) if length >= 3600 else first // length * length
    with np.errstate(invalid="ignore"):
        raw = np.where(np.isnan(times), -1, np.floor((times - anchor) / length)).astype(np.int64)
    # Only the windows that have rows: one row with a wrong year must not cost a century of empty ones.
    numbers, place, sizes = np.unique(raw, return_inverse=True, return_counts=True)
    timed = numbers >= 0
    usual = float(np.median(sizes[timed]))
    starts = anchor + length * numbers
    covered = (np.minimum(starts + length, last + 1) - np.maximum(starts, first)) / length
    whole = timed & (covered >= WHOLE_WINDOW) & (sizes >= usual / 2) & (sizes >= policy.min_rows)
    window_of: Ints = np.where(whole, np.cumsum(whole) - 1, -1)[place].astype(np.int64)
    return window_of, [float(start) for start in starts[whole]], anchor


def _column(
    column: Compared,
    frame: pd.DataFrame,
    window_of: Ints,
    windows: int,
    season: Ints | None,
    policy: DriftPolicy,
) -> tuple[ColumnProfile, Codes]:
    values = frame[column.name]
    # Rows of partial windows are known to the bins, too: together they are one more group.
    group = window_of + 1 if TIME in frame else window_of * LEFT_OUT_BLOCKS // max(windows, LEFT_OUT_BLOCKS)
    bins: Bins
    if column.kind == "numeric":
        bins, coded, counted = learn_numbers(values, group)
    else:
        bins, coded, counted = learn_categories(values, group)
    kept = window_of >= 0
    counted = counted & kept
    flat = np.bincount(window_of[counted] * bins.size + coded.codes[counted], minlength=windows * bins.size)
    cells: list[list[int]] = []
    if season is not None and policy.season != "none":
        count = CELLS[policy.season]
        by_cell = np.bincount(season[counted] * bins.size + coded.codes[counted], minlength=count * bins.size)
        cells = by_cell.reshape(count, bins.size).tolist()
    finite = coded.values[np.isfinite(coded.values)] if coded.values is not None else np.empty(0)
    return (
        ColumnProfile(
            name=column.name,
            source=column.source,
            role=column.role,
            kind=column.kind,
            part=column.part,
            bounds=bins.bounds if isinstance(bins, NumericBins) else (),
            categories=bins.categories if isinstance(bins, CategoryBins) else (),
            rare=bins.rare if isinstance(bins, CategoryBins) else (),
            complete=bins.complete if isinstance(bins, CategoryBins) else True,
            counts=flat.reshape(windows, bins.size).tolist(),
            left_out=True,
            rising=rises(coded.values[kept] if coded.values is not None else None, group[kept]),
            cells=cells,
            mean=float(finite.mean()) if len(finite) else 0.0,
            sd=float(finite.std()) if len(finite) else 0.0,
        ),
        coded.codes,
    )


def _add_effects(columns: list[ColumnProfile], coded: dict[str, Codes], score: pd.Series[Any]) -> None:
    """Fit prediction = mean + one number a bin and column, by backfitting: columns that move together share
    the effect instead of each claiming it all."""
    numeric = score.dtype.kind in "fiub"
    target = score.to_numpy(dtype=np.float64, na_value=np.nan) if numeric else np.full(len(score), np.nan)
    usable = np.isfinite(target)
    if usable.sum() < 100 or target[usable].std() == 0:
        return
    rows = np.flatnonzero(usable)
    if len(rows) > 200_000:
        rows = rows[:: len(rows) // 200_000 + 1]
    places = [place for place, column in enumerate(columns) if column.role == "input"]
    rest = target[rows] - target[rows].mean()
    fitted: dict[int, Floats] = {place: np.zeros(columns[place].bins.size) for place in places}
    for _ in range(8):
        for place in places:
            codes = coded[columns[place].name][rows]
            rest = rest + fitted[place][codes]
            size = columns[place].bins.size
            counts = np.bincount(codes, minlength=size)
            sums = np.bincount(codes, weights=rest, minlength=size)
            effect = sums / (counts + 20)  # shrunk: a bin with a handful of rows has no opinion
            effect -= (effect * counts).sum() / counts.sum()
            fitted[place] = np.where(counts > 0, effect, 0)
            rest = rest - fitted[place][codes]
    for place in places:
        columns[place] = columns[place].model_copy(
            update={"effects": [round(float(e), 9) for e in fitted[place]]}
        )


def _counts(numbers: npt.NDArray[np.int64], size: int) -> list[int]:
    return [int(count) for count in np.bincount(numbers, minlength=size)]


def _cell_counts(window_of: Ints, season: Ints | None, windows: int, name: str) -> list[list[int]]:
    if season is None or name == "none":
        return []
    kept = window_of >= 0
    cells = CELLS[name]
    flat = np.bincount(window_of[kept] * cells + season[kept], minlength=windows * cells)
    counts: list[list[int]] = flat.reshape(windows, cells).tolist()
    return counts
