"""The questions asked of one column, each as a score for every bin: did the mean of this score move?

A numeric column: location (normal scores), spread, skew and tails (Legendre polynomials of the rank), and the
shares of null, below and above the reference. A categorical column: the share of each category, of rare
and never seen values together, of never seen ones, of null. The weights divide the column's part of the
accepted false alarms. Fewer new values than usual are no drift: from the reference, more is left out than
is unknown to it of live rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from flows.domain.drift.binning import BELOW, NULL, RARE, UNSEEN, Flags, Floats
from flows.domain.drift.calibration import (
    LEAST_WINDOWS,
    MOST_FREEDOM,
    Spread,
    count_tail,
    critical,
    spread_in_rows,
    spread_in_time,
    two_sided,
)
from flows.domain.drift.profile import ColumnProfile, Profile

NUMERIC = {"location": 0.60, "spread": 0.18, "skew": 0.06, "tails": 0.06}
NUMERIC_SHARES = {"null": 0.06, "below the reference": 0.02, "above the reference": 0.02}
CATEGORY_SHARES = {"null": 0.06, "never seen": 0.06, "rare values": 0.04}
ONLY_MORE = ("never seen", "below the reference", "above the reference")
SUSPICIOUS = 0.05
"""Exact tails are computed only for shares that Student's t finds remarkable."""
FEW = 20
EXTREME = 0.5
"""A new highest value is expected about once in as many rows as the reference had."""


@dataclass(frozen=True)
class Questions:
    """T scores by bin, shape (bins, T)."""

    names: tuple[str, ...]
    scores: Floats
    weights: Floats
    among_known: Flags
    """Whether the mean is over values that are not null."""
    is_share: Flags

    def means(self, counts: Floats) -> tuple[Floats, Floats]:
        """Mean scores (..., T) of counts or of shares (..., bins), and the rows they are over, same shape."""
        everything = counts.sum(axis=-1, keepdims=True).astype(np.float64)
        known = everything - counts[..., NULL : NULL + 1]
        rows = np.where(self.among_known, known, everything)
        return counts @ self.scores / np.where(rows > 0, rows, 1), rows


@dataclass(frozen=True)
class Answers:
    """What the newest windows together say to T questions."""

    change: Floats
    """Mean minus expected mean."""
    ratio: Floats
    """Change over its standard deviation."""
    p: Floats
    freedom: Floats
    deviation: Floats
    """The standard deviation of the change."""


def questions(column: ColumnProfile) -> Questions:
    counts = column.total
    size = len(counts)
    unit = np.eye(size)
    if column.kind == "numeric":
        known = counts.copy()
        known[NULL] = 0
        total = max(known.sum(), 1)
        rank = np.clip((np.cumsum(known) - known / 2) / total, 0.5 / total, 1 - 0.5 / total)
        x = 2 * rank - 1
        shapes = np.column_stack(
            [special.ndtri(rank), (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2, (35 * x**4 - 30 * x**2 + 3) / 8]
        )
        shapes[NULL] = 0
        scores = np.column_stack([shapes, unit[NULL], unit[BELOW], unit[size - 1]])
        names = (*NUMERIC, *NUMERIC_SHARES)
        weights = np.array([*NUMERIC.values(), *NUMERIC_SHARES.values()])
        is_share = np.array([False] * 4 + [True] * 3)
        return Questions(names, scores, weights, ~np.isin(np.arange(7), [4]), is_share)
    categories = max(len(column.categories), 1)
    rest = 1 - sum(CATEGORY_SHARES.values())
    scores = unit.copy()
    scores[UNSEEN, RARE] = 1  # what is new today is rare tomorrow
    names = (*CATEGORY_SHARES, *(f"share of {name!r}" for name in column.categories))
    weights = np.array([*CATEGORY_SHARES.values(), *[rest / categories] * len(column.categories)])
    always = np.ones(size, dtype=bool)
    return Questions(names, scores, weights, ~always, always)


def expected_counts(column: ColumnProfile, cells: Floats | None) -> Floats:
    """Shares by bin that the reference would show; with a season, those of the same hours and weekdays."""
    overall = column.total
    if cells is None or not column.cells:
        return np.asarray(overall / max(overall.sum(), 1))
    by_cell = np.asarray(column.cells, dtype=np.float64)
    rows = by_cell.sum(axis=1, keepdims=True)
    # Hours that the reference hardly saw borrow from the whole.
    shares = (by_cell + 10 * overall / max(overall.sum(), 1)) / (rows + 10)
    return np.asarray(cells @ shares / max(cells.sum(), 1))


def spread(profile: Profile, column: ColumnProfile, asked: Questions, rows: float) -> Spread:
    """Calibrate the column's questions on the reference, for judging about `rows` rows."""
    counts, total = column.by_window, column.total
    mean, over = asked.means(total)
    second = (total @ asked.scores**2) / np.maximum(over, 1)
    sampling = np.maximum(second - mean**2, 0.5 / np.maximum(over, 1))
    means, sizes = asked.means(counts)
    if profile.in_time:
        used = counts.sum(axis=1) > 0
        if column.cells and len(counts):
            cells = np.asarray(column.window_cells or profile.window_cells, dtype=np.float64)
            expected = np.stack([asked.means(expected_counts(column, own))[0] for own in cells])
            share = sizes / np.maximum(over, 1)
            deviations = (means - expected) / np.maximum(1 - share, 0.1)
        else:
            rest = np.maximum(over - sizes, 1)
            deviations = means - (mean * over - means * sizes) / rest
        return spread_in_time(deviations[used], sizes[used], sampling, float(over.max()))
    blocks = counts.sum(axis=1).astype(np.int64)
    return spread_in_rows(means, blocks, sampling, rows)


def answer(
    column: ColumnProfile,
    asked: Questions,
    learned: Spread,
    counts: Floats,
    cells: Floats | None,
    windows: int,
) -> Answers:
    """Judge `counts` (bins,) of `windows` windows together."""
    expected, _ = asked.means(expected_counts(column, cells))
    means, rows = asked.means(counts)
    change = np.where(rows > 0, means - expected, 0.0)
    change = np.where(np.isin(asked.names, ONLY_MORE), np.maximum(change, 0), change)
    variance, freedom = learned.variance(rows, windows)
    deviation = np.sqrt(np.maximum(variance, 1e-300))
    ratio = change / deviation
    p = two_sided(ratio, freedom)
    shares = np.flatnonzero(asked.is_share & (p < SUSPICIOUS))
    if len(shares):
        rows_seen = float(column.total.sum())
        seen = expected[shares] * rows_seen
        if column.kind == "numeric":
            beyond = np.isin(shares, [len(NUMERIC) + 1, len(NUMERIC) + 2])
            seen = np.where(beyond, np.maximum(seen, EXTREME), seen)
        # Rows of one moment resemble each other: each bunch counts once, as far as the reference knows. New
        # values have bunches of their own, unless there was none; then those of the other shares are taken.
        bunches = np.maximum(learned.design, 1 + rows * learned.between / learned.sampling)
        own = np.isin(asked.names, ["never seen"]) & (expected > 0)
        bunch = np.where(own, bunches, bunches.max())[shares]
        hits = (means * rows)[shares]
        exact = count_tail(np.round(hits / bunch), np.floor(rows[shares] / bunch), seen, rows_seen)
        # Of a handful of new rows in all of the reference, no spread between its windows can be told.
        handful = own[shares] & (seen < FEW)
        p[shares] = np.where(handful, exact, np.maximum(p[shares], exact))
        # What the reference never had has no spread to divide by: the exact tail says how far out it is.
        ratio[shares] = np.sign(change[shares]) * -special.ndtri(np.maximum(p[shares], 1e-300) / 2)
        freedom[shares] = MOST_FREEDOM
    if learned.windows < LEAST_WINDOWS or column.mute:
        p = np.ones_like(p)
    return Answers(change, ratio, np.where(rows > 0, p, 1.0), freedom, deviation)


def thresholds(asked: Questions, answers: Answers, level: float) -> Floats:
    """The |ratio| from which on each question alerts at `level` for the column."""
    return critical(level * asked.weights, answers.freedom)


def reachable(asked: Questions, expected: Floats, answers: Answers, limit: Floats) -> Flags:
    """Whether each question could alert at all: no mean can leave the range of its score."""
    room = np.maximum(asked.scores.max(axis=0) - expected, expected - asked.scores.min(axis=0))
    return np.asarray(limit * answers.deviation < room)
