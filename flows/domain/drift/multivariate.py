"""Finds drift that no single column shows: can a classifier tell the window's rows from the reference's?

The domain classifier is ridge regression on normal scores of the columns, their squares and their products,
so it sees a changed correlation as readily as a changed mean, has a closed form, and says which product gave
it away. Its cross-validated AUC is 0.5 when nothing tells the rows apart.

One week of real data always differs somewhat from other weeks. So the reference is asked first: each of its
own windows against the rest. If those are told apart too, a window has to be told apart better than they are,
at their number of rows; otherwise all of the window's rows are used and the AUC's own error decides.

The reference's rows are kept as bin numbers in shuffled columns of bytes, never as values.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import special

from flows.domain.drift.binning import Bins, Codes, Flags, Floats, Ints, NumericBins
from flows.domain.drift.calibration import LEAST_WINDOWS, critical

GROUPS = 16
LEAST_ROWS = 100
MOST_NUMERIC = 30
"""Products grow with the square of the columns; later numeric columns enter alone."""
MOST_LEVELS = 8
FOLDS = 5
CROSS_VALIDATION = 1.35
"""A cross-validated AUC scatters more than one of a fixed score, since the folds share their rows: 1.33 times
in 370 simulations with 200 to 4 000 rows."""


class ReferenceRows(BaseModel):
    """Rows of the reference as bin numbers, in groups that are windows of the reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: list[str]
    numeric: list[bool]
    sizes: list[int]
    """Number of bins of each column."""
    group_rows: int
    groups: int
    codes: str
    """Base64 of bytes, row by row, group by group."""
    areas: list[float]
    """AUC of each group against the others."""

    def rows(self) -> Codes:
        """Shape (groups * group_rows, columns)."""
        flat = np.frombuffer(base64.b64decode(self.codes), dtype=np.uint8)
        return flat.reshape(self.groups * self.group_rows, len(self.columns))


@dataclass(frozen=True)
class DomainCheck:
    """How well the window's rows can be told from the reference's."""

    rows: int
    auc: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % confidence interval of the AUC."""
    limit: float | None = None
    """The AUC from which on it is an alert; None when none would be."""
    drifted: bool = False
    told_by: tuple[str, ...] = ()
    """Columns and products that tell most, strongest first."""
    sentence: str = ""


def reference_rows(
    coded: Mapping[str, Codes], bins: Mapping[str, Bins], window_of: Ints, rows: int, seed: int = 7
) -> ReferenceRows | None:
    """Keep about `rows` rows of the reference. None when that is 0 or too few, or only one column is there.

    Groups are windows in time (a random part of each), or runs of consecutive rows when windows are small
    blocks of row order, so that a group keeps the likeness of neighbours that a live window will have.
    """
    if len(coded) < 2 or rows < LEAST_ROWS:
        return None
    table = np.column_stack([coded[name] for name in coded])
    windows = int(window_of.max(initial=-1)) + 1
    places = np.flatnonzero(window_of >= 0)
    generator = np.random.default_rng(seed)
    if windows >= LEAST_WINDOWS and len(places) / windows >= LEAST_ROWS / 2:
        chosen = np.unique(np.linspace(0, windows - 1, min(GROUPS, windows)).round().astype(int))
        members = [np.flatnonzero(window_of == window) for window in chosen]
        size = min(rows // len(chosen), min(len(member) for member in members))
        picked = [np.sort(generator.choice(member, size, replace=False)) for member in members]
    else:
        groups = int(min(GROUPS, len(places) // (LEAST_ROWS // 2)))
        if groups < 2:
            return None
        size = min(rows // groups, len(places) // groups)
        starts = (np.arange(groups) * (len(places) - size) / max(groups - 1, 1)).astype(int)
        picked = [places[start : start + size] for start in starts]
    if size < LEAST_ROWS // 4:
        return None
    codes = table[np.concatenate(picked)]
    numeric = [isinstance(bins[name], NumericBins) for name in coded]
    sizes = [bins[name].size for name in coded]
    features, _ = _features(codes, codes, [bins[name] for name in coded], list(coded))
    group = np.repeat(np.arange(len(picked)), size)
    areas = [_told_apart(features, group == number, generator)[0] for number in range(len(picked))]
    return ReferenceRows(
        columns=list(coded),
        numeric=numeric,
        sizes=sizes,
        group_rows=size,
        groups=len(picked),
        codes=base64.b64encode(np.ascontiguousarray(codes, dtype=np.uint8).tobytes()).decode(),
        areas=[round(float(area), 5) for area in areas],
    )


def domain_check(
    reference: ReferenceRows, window: Codes, level: float, min_effect: float, bins: Mapping[str, Bins]
) -> DomainCheck:
    """Tell `window` (rows, columns as in the reference, in order) from the reference.

    `level`: accepted probability of an alert without drift. `min_effect`: AUC above 0.5 that is no drift.
    `bins`: of each column, to say what told the rows apart.
    """
    if len(window) < LEAST_ROWS:
        return DomainCheck(len(window), sentence=f"{len(window)} rows; {LEAST_ROWS} are needed")
    areas = np.array(reference.areas)
    kept = reference.rows()
    others = len(kept) - reference.group_rows
    group_error = _null_error(reference.group_rows, others)
    alike = areas.mean() <= 0.5 + 3 * group_error / math.sqrt(len(areas)) and areas.std() < 2 * group_error
    if not alike:
        if len(window) < reference.group_rows:
            few = f"{len(window)} rows; the reference was calibrated with {reference.group_rows}"
            return DomainCheck(len(window), sentence=few)
        start = (len(window) - reference.group_rows) // 2
        window = window[start : start + reference.group_rows]
    both = np.concatenate([kept, window])
    features, names = _features(kept, both, [bins[name] for name in reference.columns], reference.columns)
    is_window = np.arange(len(both)) >= len(kept)
    auc, weights = _told_apart(features, is_window, np.random.default_rng(11))
    error = _error(auc, len(window), len(kept))
    if alike:
        limit = 0.5 + float(critical(np.array([2 * level]), np.array([1e4]))[0]) * _null_error(
            len(window), len(kept)
        )
    else:
        freedom = len(areas) - 1
        spread = max(float(areas.std(ddof=1)), group_error) * math.sqrt(1 + 1 / len(areas))
        limit = float(areas.mean() + critical(np.array([2 * level]), np.array([float(freedom)]))[0] * spread)
    limit = max(limit, 0.5 + min_effect)
    strongest = np.argsort(-np.abs(weights))[:3]
    low, high = max(auc - 1.96 * error, 0), min(auc + 1.96 * error, 1)
    if limit >= 1:
        text = f"cannot alert: the reference's own windows are told apart (AUC {areas.mean():.2f} on average)"
        return DomainCheck(len(window), auc, low, high, sentence=text)
    return DomainCheck(
        len(window),
        auc,
        low,
        high,
        limit=limit,
        drifted=auc > limit,
        told_by=tuple(names[place] for place in strongest) if auc > limit else (),
        sentence=f"AUC {auc:.3f} ({low:.3f} to {high:.3f}), limit {limit:.3f}",
    )


def _features(
    reference: Codes, rows: Codes, bins: Sequence[Bins], names: Sequence[str]
) -> tuple[Floats, list[str]]:
    """Standardised features of `rows`; what bins mean is read off `reference` alone."""
    scores: list[Floats] = []
    score_names: list[str] = []
    levels: list[Floats] = []
    level_names: list[str] = []
    for place, name in enumerate(names):
        own = bins[place]
        counts = np.bincount(reference[:, place], minlength=own.size).astype(np.float64)
        codes = rows[:, place]
        if isinstance(own, NumericBins):
            counts[0] = 0
            middle = (np.cumsum(counts) - counts / 2 + 0.5) / (counts.sum() + 1)
            by_bin = special.ndtri(np.clip(middle, 1e-4, 1 - 1e-4))
            by_bin[0] = 0  # nulls: no opinion on the value, an opinion of their own below
            scores.append(by_bin[codes])
            score_names.append(name)
            levels.append((codes == 0).astype(np.float64))
            level_names.append(f"{name} is null")
        else:
            for level in np.argsort(-counts)[:MOST_LEVELS]:
                levels.append((codes == level).astype(np.float64))
                level_names.append(f"{name} {own.label(int(level))}")
    crossed = range(min(len(scores), MOST_NUMERIC))
    pairs = list(itertools.combinations_with_replacement(crossed, 2))
    products = [scores[first] * scores[second] for first, second in pairs]
    product_names = [f"{score_names[first]} * {score_names[second]}" for first, second in pairs]
    table = np.column_stack([*scores, *levels, *products])
    table -= table.mean(axis=0)
    spread = table.std(axis=0)
    used = spread > 1e-9
    every = score_names + level_names + product_names
    return table[:, used] / spread[used], [name for name, keep in zip(every, used, strict=True) if keep]


def _told_apart(features: Floats, is_window: Flags, generator: np.random.Generator) -> tuple[float, Floats]:
    """Cross-validated AUC of telling `is_window` rows apart, and the weights of a fit on all rows."""
    target = np.where(is_window, 1.0, 0.0)
    balance = np.where(is_window, 0.5 / max(target.sum(), 1), 0.5 / max((1 - target).sum(), 1)) * len(target)
    fold = np.empty(len(target), dtype=np.int64)
    for side in (is_window, ~is_window):
        members = np.flatnonzero(side)
        fold[members] = generator.permutation(np.arange(len(members)) % FOLDS)
    width = features.shape[1]
    weighted = features * balance[:, None]
    grams = [features[fold == number].T @ weighted[fold == number] for number in range(FOLDS)]
    sides = [weighted[fold == number].T @ (target[fold == number] - 0.5) for number in range(FOLDS)]
    gram, side = np.sum(grams, axis=0), np.sum(sides, axis=0)
    penalty = max(float(width), 0.02 * len(target)) * np.eye(width)
    scores = np.empty(len(target))
    for number in range(FOLDS):
        weights = np.linalg.solve(gram - grams[number] + penalty, side - sides[number])
        scores[fold == number] = features[fold == number] @ weights
    return _area(scores, is_window), np.linalg.solve(gram + penalty, side)


def _area(scores: Floats, positive: Flags) -> float:
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    upper, lower = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - upper * (upper + 1) / 2) / max(upper * lower, 1))


def _null_error(upper: int, lower: int) -> float:
    """Standard error of the AUC when nothing tells the rows apart."""
    return CROSS_VALIDATION * math.sqrt((upper + lower + 1) / (12 * max(upper * lower, 1)))


def _error(auc: float, upper: int, lower: int) -> float:
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (upper - 1) * (first - auc**2) + (lower - 1) * (second - auc**2)
    return CROSS_VALIDATION * math.sqrt(max(spread, 1e-12) / (upper * lower))
