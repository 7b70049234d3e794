"""How good the predictions were, once outcomes are known, and how good they may be before that.

Realised performance comes from outcomes joined to predictions. Where they are missing, CBPE (confidence-based
performance estimation) asks the model's own probabilities, calibrated on the reference, how often they ought
to be right. It assumes that a probability still means what it meant in the reference. When the world changes
what inputs lead to (concept drift) it does not notice, so it is shown as an estimate and replaced, row by
row, as outcomes arrive.

Everything is computed from counts by score, so windows of any size add up in bounded memory.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from flows.domain.drift.binning import Floats, numbers
from flows.domain.drift.calibration import LEAST_WINDOWS, critical, spread_in_rows, spread_in_time
from flows.domain.drift.frames import OUTCOME, TIME
from flows.domain.drift.policy import DriftPolicy

Task = Literal["binary", "number", "label"]
State = Literal["good", "doubtful", "degraded", "harmful", "too_few", "no_outcomes", "no_reference"]

SCORE_BINS = 1000
SMALLEST = 1e-6
ROW_WINDOWS = 16
HARM_CONFIDENCE = 2.576
"""Standard errors by which a model must be worse than no model before that is said: 99 %."""
QUALITY: dict[Task, str] = {
    "binary": "AUC",
    "label": "share of right answers",
    "number": "mean absolute error",
}
ASSUMPTION = "estimated from the model's own probabilities; blind to concept drift"


class PerformanceProfile(BaseModel):
    """Performance on the reference, window by window."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task
    rows: int
    in_time: bool
    """Whether the windows are stretches of time rather than runs of rows."""
    quality: float
    """AUC (binary), share of right labels (label) or mean absolute error (number)."""
    qualities: list[float]
    sizes: list[int]
    sampling: float
    """Variance of the quality of one row, so that `sampling / rows` is that of a window."""
    score_bounds: list[float] = []
    outcome_rates: list[float] = []
    """Share of positive outcomes by score, rising: what a score of the reference really meant."""
    held_out: bool = False
    """Whether the model is known not to have learned these rows."""
    largest_error: float = 1.0
    """99 % of the reference's absolute errors are smaller."""


@dataclass(frozen=True)
class Performance:
    """Performance of one or more windows together."""

    state: State
    task: Task
    rows: int
    outcomes: int
    unknown_outcomes: int = 0
    quality: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    limit: float | None = None
    """The quality at which it counts as degraded."""
    loss: float | None = None
    """Mean log loss (binary)."""
    base_loss: float | None = None
    """Log loss of always answering the window's own share of positives: what no model would get."""
    estimate: float | None = None
    """CBPE: outcomes where there are some, expectation elsewhere."""
    sentence: str = ""


MOST_LABELS = 1000


@dataclass
class PerformanceTally:
    """Counts by score of one window; `add` may be called with any number of chunks."""

    task: Task
    rows: int = 0
    scored: Floats = field(default_factory=lambda: np.zeros(SCORE_BINS + 1))
    """Rows by score, with or without outcome."""
    by_outcome: Floats = field(default_factory=lambda: np.zeros((2, SCORE_BINS + 1)))
    losses: Floats = field(default_factory=lambda: np.zeros((2, 3)))
    """By outcome: rows, sum of the losses, sum of their squares."""
    truth: Floats = field(default_factory=lambda: np.zeros(2))
    """Sum of the outcomes and of their squares (number)."""
    labels: Counter[str] = field(default_factory=Counter)
    """Outcomes by label (label), of the first `MOST_LABELS`."""

    def add(self, prediction: pd.Series[Any], outcome: pd.Series[Any] | None) -> Floats:
        """Count a chunk; returns the absolute error of each row (NaN without outcome)."""
        self.rows += len(prediction)
        if self.task == "label":
            return self._add_labels(prediction, outcome)
        scores, _ = numbers(prediction)
        places = _places(scores) if self.task == "binary" else None
        if places is not None:
            self.scored += np.bincount(places[places >= 0], minlength=SCORE_BINS + 1)
        if outcome is None:
            return np.full(len(prediction), np.nan)
        truth = numbers(outcome)[0]
        error = np.abs(scores - truth)
        known = np.isfinite(error)
        if places is None:
            self._count(np.zeros(int(known.sum()), dtype=np.int64), error[known])
            self.truth += [truth[known].sum(), (truth[known] ** 2).sum()]
            return error
        known &= (truth == 0) | (truth == 1)
        label = truth[known].astype(np.int64)
        flat = np.bincount(label * (SCORE_BINS + 1) + places[known], minlength=2 * (SCORE_BINS + 1))
        self.by_outcome += flat.reshape(2, -1)
        probable = np.clip(np.where(label == 1, scores[known], 1 - scores[known]), SMALLEST, 1)
        self._count(label, -np.log(probable))
        return np.where(known, error, np.nan)

    def _add_labels(self, prediction: pd.Series[Any], outcome: pd.Series[Any] | None) -> Floats:
        if outcome is None:
            return np.full(len(prediction), np.nan)
        known = (outcome.notna() & prediction.notna()).to_numpy()
        wrong = np.full(len(prediction), np.nan)
        wrong[known] = [
            float(str(said) != str(true))
            for said, true in zip(prediction[known], outcome[known], strict=True)
        ]
        self._count(np.zeros(int(known.sum()), dtype=np.int64), wrong[known])
        for label, count in Counter(map(str, outcome[known])).items():
            if label in self.labels or len(self.labels) < MOST_LABELS:
                self.labels[label] += count
        return wrong

    def _count(self, label: Any, loss: Floats) -> None:
        for column, weights in enumerate((np.ones_like(loss), loss, loss**2)):
            self.losses[:, column] += np.bincount(label, weights=weights, minlength=2)

    def join(self, other: PerformanceTally) -> PerformanceTally:
        return PerformanceTally(
            self.task,
            self.rows + other.rows,
            self.scored + other.scored,
            self.by_outcome + other.by_outcome,
            self.losses + other.losses,
            self.truth + other.truth,
            self.labels + other.labels,
        )

    @property
    def outcomes(self) -> int:
        return int(self.losses[:, 0].sum())

    def quality(self) -> tuple[float, float]:
        """The quality and its sampling variance; NaN when it is not defined."""
        if self.task == "binary":
            return area_under_curve(self.by_outcome)
        count, total, squares = self.losses.sum(axis=0)
        if count < 2:
            return math.nan, math.nan
        mean = total / count
        variance = max(squares / count - mean**2, 0) / count
        return (1 - mean if self.task == "label" else mean), variance

    def worse_than_none(self) -> str:
        """By how much a constant answer is better; empty when none is. A sign, no proof: see `harmful`."""
        count, _, squares = self.losses.sum(axis=0)
        if self.task == "binary":
            loss, base, _ = self.loss()
            return f"log loss {loss:.4f}, the base rate alone has {base:.4f}" if loss > base else ""
        if self.task == "label":
            (label, most), right = self.labels.most_common(1)[0], self.quality()[0]
            text = f"{right:.4g} are right, always answering the commonest label {label!r} {most / count:.4g}"
            return text if right < most / count else ""
        error = math.sqrt(squares / count)
        spread = math.sqrt(max(self.truth[1] / count - (self.truth[0] / count) ** 2, 0))
        text = f"root mean square error {error:.4g}, always answering the mean has {spread:.4g}"
        return text if error > spread else ""

    def loss(self) -> tuple[float, float, float]:
        """Mean log loss, that of the base rate, and the standard error of their difference."""
        count = self.losses[:, 0]
        total = count.sum()
        rates = np.clip(count / total, SMALLEST, 1)
        base = -np.log(rates)
        means = self.losses[:, 1] / np.maximum(count, 1)
        difference = means - base
        mean = float((rates * difference).sum())
        within = self.losses[:, 2] / np.maximum(count, 1) - means**2
        variance = float((rates * (within + difference**2)).sum() - mean**2)
        return (
            float(self.losses[:, 1].sum() / total),
            float((rates * base).sum()),
            math.sqrt(max(variance, 0) / total),
        )


def area_under_curve(by_outcome: Floats) -> tuple[float, float]:
    """AUC of counts by score, shape (2, bins): row 0 negatives, row 1 positives; and its variance
    (Hanley and McNeil). NaN without both kinds."""
    negatives, positives = by_outcome
    lower, upper = float(negatives.sum()), float(positives.sum())
    if lower < 1 or upper < 1:
        return math.nan, math.nan
    below = np.cumsum(negatives) - negatives / 2
    auc = float((positives * below).sum() / (lower * upper))
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (upper - 1) * (first - auc**2) + (lower - 1) * (second - auc**2)
    return auc, max(spread, 1e-12) / (lower * upper)


def performance_profile(
    frame: pd.DataFrame, score: str, anchor: float | None, policy: DriftPolicy, held_out: bool = False
) -> PerformanceProfile | None:
    """Performance of the reference frame (columns: the score, `@outcome`, maybe `@time`); None when there are
    too few outcomes to say anything."""
    frame = frame[frame[OUTCOME].notna() & frame[score].notna()]
    if len(frame) < policy.min_outcomes:
        return None
    task = _task(frame[score], frame[OUTCOME])
    if anchor is not None and TIME in frame:
        window_of = np.floor((frame[TIME].to_numpy() - anchor) / policy.window_seconds)
    else:
        blocks = int(np.clip(len(frame) // policy.min_outcomes, 1, ROW_WINDOWS))
        window_of = np.arange(len(frame)) * blocks // len(frame)
    tallies, errors = [], []
    for _, part in frame.groupby(window_of):
        tally = PerformanceTally(task)
        errors.append(tally.add(part[score], part[OUTCOME]))
        tallies.append(tally)
    if not tallies:  # none of these rows has a time
        return None
    whole = tallies[0]
    for tally in tallies[1:]:
        whole = whole.join(tally)
    quality, variance = whole.quality()
    if math.isnan(quality):
        return None
    enough = [(*tally.quality(), tally.outcomes) for tally in tallies if tally.outcomes >= policy.min_rows]
    enough = [entry for entry in enough if not math.isnan(entry[0])]
    bounds, rates = _calibrate(whole.by_outcome) if task == "binary" else ([], [])
    return PerformanceProfile(
        task=task,
        rows=whole.outcomes,
        in_time=anchor is not None and TIME in frame,
        quality=quality,
        qualities=[entry[0] for entry in enough],
        sizes=[entry[2] for entry in enough],
        sampling=variance * whole.outcomes,
        score_bounds=bounds,
        outcome_rates=rates,
        held_out=held_out,
        largest_error=float(np.nanquantile(np.concatenate(errors), 0.99)) or 1.0,
    )


def judge_performance(
    profile: PerformanceProfile | None,
    tallies: list[PerformanceTally],
    policy: DriftPolicy,
    level: float,
    unknown: int = 0,
) -> Performance:
    """Performance of the windows together against the reference.

    `level`: accepted probability of calling it degraded although it is not. `unknown`: outcomes that belong
    to no sampled prediction. `degraded`: the quality fell by more than `max_loss` and more than its own
    ups and downs explain. `harmful`: worse than always answering the base rate, with 99 % confidence.
    `doubtful`: neither, but worse than a constant answer, which is not called good.
    """
    whole = tallies[0]
    for tally in tallies[1:]:
        whole = whole.join(tally)
    shown: dict[str, Any] = {"task": whole.task, "rows": whole.rows, "outcomes": whole.outcomes,
                             "unknown_outcomes": unknown}  # fmt: skip
    shown["estimate"] = estimate(profile, whole)
    if profile is not None and profile.task == whole.task:
        shown["reference"] = profile.quality
    if whole.outcomes == 0:
        return Performance("no_outcomes", **shown, sentence="no outcomes have arrived for these predictions")
    if whole.outcomes < policy.min_outcomes:
        few = f"{whole.outcomes} outcomes; {policy.min_outcomes} are needed (drift.min_outcomes)"
        return Performance("too_few", **shown, sentence=few)
    quality, variance = whole.quality()
    if math.isnan(quality):
        return Performance("too_few", **shown, sentence="the outcomes are all alike; quality is not defined")
    error = 1.96 * math.sqrt(variance)
    shown.update(quality=quality, low=quality - error, high=quality + error)
    limit = None
    if profile is not None and profile.task == whole.task and len(profile.qualities) >= LEAST_WINDOWS:
        limit = _limit(profile, whole, len(tallies), policy, level)
        shown.update(limit=limit)
    harmful = False
    if whole.task == "binary":
        loss, base, difference_error = whole.loss()
        shown.update(loss=loss, base_loss=base)
        harmful = loss - base > HARM_CONFIDENCE * difference_error
    if harmful:
        sentence = f"worse than no model: log loss {loss:.4f}, the base rate alone has {base:.4f}"
        return Performance("harmful", **shown, sentence=sentence)
    if profile is None or limit is None:
        text = f"the reference has outcomes in fewer than {LEAST_WINDOWS} windows to compare with"
        return Performance("no_reference", **shown, sentence=text)
    degraded = quality > limit if whole.task == "number" else quality < limit
    sentence = f"{QUALITY[whole.task]} {quality:.4g} (reference {profile.quality:.4g}, limit {limit:.4g})"
    if degraded:
        return Performance("degraded", **shown, sentence=sentence)
    doubt = whole.worse_than_none()
    if doubt:
        return Performance(
            "doubtful", **shown, sentence=f"no better than no model so far: {doubt}; {sentence}"
        )
    return Performance("good", **shown, sentence=sentence)


def worsened(performance: Performance, policy: DriftPolicy) -> bool:
    """Whether performance, realised or else estimated, is below the reference by more than `max_loss`.

    Weaker than `degraded`, which allows for the reference's own ups and downs: no proof by itself, but enough
    to make drifted inputs matter.
    """
    reference, quality = performance.reference, performance.quality
    if reference is None:
        return False
    if quality is None or performance.high is None:
        return performance.estimate is not None and performance.estimate < reference - policy.max_loss
    doubt = HARM_CONFIDENCE / 1.96 * (performance.high - quality)
    if performance.task == "number":
        return quality - reference > max(policy.max_loss * reference, doubt)
    return reference - quality > max(policy.max_loss, doubt)


def _limit(
    profile: PerformanceProfile, whole: PerformanceTally, windows: int, policy: DriftPolicy, level: float
) -> float:
    sizes = np.array(profile.sizes, dtype=np.float64)[:, None]
    values = np.array(profile.qualities)[:, None]
    sampling = np.array([profile.sampling])
    others = (values.sum() - values) / (len(values) - 1)
    if profile.in_time:
        spread = spread_in_time(values - others, sizes, sampling, float(profile.rows))
    else:
        blocks = np.array(profile.sizes, dtype=np.int64)
        spread = spread_in_rows(values, blocks, sampling, float(whole.outcomes))
    variance, freedom = spread.variance(np.array([float(whole.outcomes)]), windows)
    explained = float(critical(np.array([2 * level]), freedom)[0] * np.sqrt(variance[0]))
    if whole.task == "number":
        return profile.quality + max(explained, policy.max_loss * profile.quality)
    return profile.quality - max(explained, policy.max_loss)


def estimate(profile: PerformanceProfile | None, whole: PerformanceTally) -> float | None:
    """CBPE of the AUC: realised counts where outcomes are known, expected ones elsewhere. None when the
    reference cannot calibrate the scores, or the task is not binary."""
    if profile is None or not profile.outcome_rates or whole.task != "binary":
        return None
    middles = (np.arange(SCORE_BINS + 1)) / SCORE_BINS
    rates = np.interp(middles, profile.score_bounds, profile.outcome_rates)
    open_rows = np.maximum(whole.scored - whole.by_outcome.sum(axis=0), 0)
    expected = whole.by_outcome + np.stack([open_rows * (1 - rates), open_rows * rates])
    auc, _ = area_under_curve(expected)
    return None if math.isnan(auc) else auc


def _calibrate(by_outcome: Floats) -> tuple[list[float], list[float]]:
    """Isotonic regression of the outcome on the score (pool adjacent violators), on about 50 groups."""
    counts = by_outcome.sum(axis=0)
    group = np.minimum((np.cumsum(counts) - counts / 2) * 50 // max(counts.sum(), 1), 49).astype(np.int64)
    pools: list[list[float]] = []
    for number in np.unique(group[counts > 0]):
        inside = group == number
        rows, positives = counts[inside].sum(), by_outcome[1, inside].sum()
        scores = (counts[inside] * np.flatnonzero(inside)).sum() / SCORE_BINS
        pools.append([rows, positives, scores])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [mine + other for mine, other in zip(pools[-1], last, strict=True)]
    return (
        [float(scores / rows) for rows, _, scores in pools],
        [float(positives / rows) for rows, positives, _ in pools],
    )


def task_of(profile: PerformanceProfile | None, prediction: pd.Series[Any], outcome: pd.Series[Any]) -> Task:
    """What kind of prediction it is: the reference says, else the values do."""
    return profile.task if profile is not None else _task(prediction, outcome.dropna())


def _task(prediction: pd.Series[Any], outcome: pd.Series[Any]) -> Task:
    if prediction.dtype.kind not in "fiub":
        return "label"
    truth, mistyped = numbers(outcome)
    if mistyped:
        return "label"
    scores = prediction.dropna()
    between = bool(((scores >= 0) & (scores <= 1)).all())
    if between and set(np.unique(truth[np.isfinite(truth)])) <= {0.0, 1.0}:
        return "binary"
    whole = prediction.dtype.kind in "iu" and bool((truth == np.round(truth)).all())
    return "label" if whole and len(np.unique(truth)) <= 100 else "number"


def _places(scores: Floats) -> Any:
    """Bin of each score; -1 where it is none or outside of 0 to 1."""
    inside = (scores >= 0) & (scores <= 1)
    return np.where(inside, np.round(np.where(inside, scores, 0) * SCORE_BINS), -1).astype(np.int64)
