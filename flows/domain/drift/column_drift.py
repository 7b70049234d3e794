"""One column's verdict: which question found most, whether it lasts, how large it is, what it does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flows.domain.drift.binning import NULL, Floats
from flows.domain.drift.calibration import LEAST_WINDOWS
from flows.domain.drift.column_tests import (
    Answers,
    Questions,
    answer,
    expected_counts,
    questions,
    reachable,
    spread,
    thresholds,
)
from flows.domain.drift.findings import ColumnDrift
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import ColumnProfile, Profile
from flows.domain.drift.tally import WindowTally

NEWEST = 30
"""Windows whose distance is kept."""
PRESENT = 0.67
"""A window shows a change when it deviates by so many standard deviations in the same direction."""


@dataclass(frozen=True)
class Examined:
    """The look at a column that found most."""

    column: ColumnProfile
    asked: Questions
    answers: Answers
    limit: Floats
    """|ratio| from which on each question alerts."""
    can_alert: bool
    """Whether any question could alert at all."""
    place: int
    """The question that found most, of those that could alert if there are any."""
    look: int
    """Newest windows judged together."""
    p: float
    """For the whole column: adjusted for its questions, not yet for other columns and looks."""


def examine(
    profile: Profile, column: ColumnProfile, windows: list[WindowTally], looks: list[int], level: float
) -> Examined:
    """Ask a column's questions of the newest `look` windows together, for each look.

    `level`: the column's part of the accepted false alarms of one look.
    """
    asked = questions(column)
    found: list[Examined] = []
    for look in looks:
        counts, cells = together(column, windows[-look:])
        learned = spread(profile, column, asked, float(counts.sum()))
        answers = answer(column, asked, learned, counts, cells, look)
        limit = thresholds(asked, answers, level)
        expected, _ = asked.means(expected_counts(column, cells))
        room = reachable(asked, expected, answers, limit) & (learned.windows >= LEAST_WINDOWS)
        room &= not column.mute
        weighted = np.minimum(answers.p / asked.weights, 1)
        place = int(np.lexsort((-np.abs(answers.ratio) / limit, weighted, ~room))[0])
        can_alert = bool(room.any())
        found.append(Examined(column, asked, answers, limit, can_alert, place, look, float(weighted[place])))
    best = min(found, key=lambda one: (one.p, one.look))
    if best.can_alert or not any(one.can_alert for one in found):
        return best
    return next(one for one in found if one.can_alert)


def together(column: ColumnProfile, windows: list[WindowTally]) -> tuple[Floats, Floats | None]:
    """The windows' counts by bin, and by season cell."""
    counts = np.sum([window.counts[column.name] for window in windows], axis=0).astype(np.float64)
    cells = [window.cells for window in windows if window.cells is not None]
    return counts, np.sum(cells, axis=0).astype(np.float64) if cells else None


def describe(
    profile: Profile, one: Examined, windows: list[WindowTally], policy: DriftPolicy, p: float, level: float
) -> ColumnDrift:
    """The column's verdict. `p`: adjusted for all columns; `level`: accepted false alarms of the look."""
    column, place = one.column, one.place
    counts, cells = together(column, windows[-one.look :])
    expected = expected_counts(column, cells)
    shares = counts / max(counts.sum(), 1)
    distance = moved(column, shares, expected)
    persistent = p <= level and _persistent(profile, one, windows[-policy.persistence :])
    drifted = persistent and distance >= policy.min_effect
    ratio = float(np.abs(one.answers.ratio[place]) / one.limit[place])
    # The two adjustments (Holm, exact tails) may disagree with the plain ratio; the verdict decides the side.
    score = max(ratio, 1.0) if drifted else min(ratio, 0.99)
    known = counts.sum() - counts[NULL]
    numeric = column.kind == "numeric"
    total = sum(window.sums.get(column.name, 0.0) for window in windows[-one.look :])
    effect = influence = None
    if column.effects:
        effect = float(((shares - expected) * np.asarray(column.effects)).sum())
    moves = total / known - column.mean if column.name == profile.prediction and known else effect
    if profile.prediction_sd is not None and moves is not None:
        influence = float(abs(moves) / profile.prediction_sd)
    return ColumnDrift(
        column=column.name,
        role=column.role,
        kind=column.kind,
        rows=int(counts.sum()),
        drifted=drifted,
        score=score,
        p=p,
        test=one.asked.names[place],
        change=float(one.answers.change[place]),
        detectable=_detectable(one) if one.can_alert else None,
        distance=distance,
        windows=one.look,
        persistent=persistent,
        effect=effect,
        influence=influence,
        unknown=float(np.maximum((shares - expected)[column.new], 0).sum()),
        nulls=float(shares[NULL]),
        mean=float(total / known) if numeric and known else None,
        reference_mean=column.mean if numeric else None,
        trend=tuple(_window_distances(column, windows)),
        usual=_usual(profile, column, float(np.median([window.rows for window in windows]))),
        seen=tuple(float(share) for share in shares),
        expected=tuple(float(share) for share in expected),
        labels=tuple(column.bins.label(code) for code in range(column.bins.size)),
    )


def moved(column: ColumnProfile, shares: Floats, expected: Floats) -> float:
    """Share of the rows that moved: Kolmogorov-Smirnov for numbers, total variation for categories."""
    nulls = abs(float(shares[NULL] - expected[NULL]))
    if column.kind == "categorical":
        return max(float(np.abs(shares - expected).sum() / 2), nulls)
    known, wanted = shares[1:], expected[1:]
    if known.sum() == 0 or wanted.sum() == 0:
        return nulls
    apart = np.cumsum(known) / known.sum() - np.cumsum(wanted) / wanted.sum()
    return max(float(np.abs(apart).max()), nulls)


def _persistent(profile: Profile, one: Examined, windows: list[WindowTally]) -> bool:
    """Whether every one of these windows deviates in the direction of the whole."""
    side = np.sign(one.answers.ratio[one.place])
    for window in windows:
        counts, cells = together(one.column, [window])
        learned = spread(profile, one.column, one.asked, float(counts.sum()))
        alone = answer(one.column, one.asked, learned, counts, cells, 1)
        if side * alone.ratio[one.place] < PRESENT:
            return False
    return True


def _window_distances(column: ColumnProfile, windows: list[WindowTally]) -> list[float]:
    found = []
    for window in windows[-NEWEST:]:
        counts, cells = together(column, [window])
        found.append(moved(column, counts / max(counts.sum(), 1), expected_counts(column, cells)))
    return found


def _usual(profile: Profile, column: ColumnProfile, rows: float) -> float | None:
    """How far the reference's own windows of about `rows` rows are from all of them together."""
    counts = column.by_window
    cells = np.asarray(column.window_cells or profile.window_cells, dtype=np.float64)
    if not profile.in_time:
        joined = max(round(rows * len(counts) / max(column.total.sum(), 1)), 1)
        counts = np.add.reduceat(counts, np.arange(0, len(counts) // joined * joined, joined))
    if len(counts) < LEAST_WINDOWS:
        return None
    expected = [expected_counts(column, own) for own in cells] or [expected_counts(column, None)] * len(
        counts
    )
    apart = [
        moved(column, own / max(own.sum(), 1), wanted) for own, wanted in zip(counts, expected, strict=True)
    ]
    return float(np.quantile(apart, 0.95))


def _detectable(one: Examined) -> float:
    """The smallest change of the kind found that would be an alert."""
    limit, ratio = one.limit[one.place], abs(one.answers.ratio[one.place])
    if ratio > 0:  # exact tails have no deviation of their own: from what was seen to the threshold
        return float(limit / ratio * abs(one.answers.change[one.place]))
    return float(limit * one.answers.deviation[one.place])
