"""How far a mean may wander without anything having changed, learned from windows of the reference.

Every drift test here is one question: did the mean of a score over a window's rows move? Textbook error
bars answer as if rows were independent. Real rows are not: weather lasts days, users come in bursts, and a
test that ignores it calls every reference week "drift". So the reference is cut into windows and each is
compared with all the others (leave one out); what they show among themselves is no drift.

Two ways, by what the reference knows:

- **in time**: windows as long as those that will be judged. A mean's variance is `sampling / rows` plus a
  variance between windows that more rows do not reduce; consecutive windows may resemble each other (`rho`).
- **in row order** (no time column): blocks of rows, the variance is `design * sampling / rows`. `design` is 1
  for independent rows and for an AR(1) with 0.9 about 19. It is taken at the block size that is judged.

A scale learned from few windows is itself uncertain: thresholds come from Student's t with the degrees of
freedom of that estimate, so three reference weeks make a check cautious instead of wrong. Scales are robust
(one broken week is cut back to `CUT` robust standard deviations); partial windows never enter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from flows.domain.drift.binning import Floats, Ints

LEAST_WINDOWS = 4
"""With fewer reference windows nothing is said about the spread between windows: no alert is possible."""
LEAST_BLOCKS = 16
CUT = 3.5
MOST_FREEDOM = 1e4


@dataclass(frozen=True)
class Spread:
    """What the reference's windows say about each of T tests. Arrays have shape (T,)."""

    sampling: Floats
    """Variance of one row's score."""
    rows: float
    """Rows of the reference."""
    windows: int
    between: Floats
    """Variance between windows that sampling does not explain (in time); zeros in row order."""
    noise: Floats
    """Variance of a reference window's mean that sampling explains."""
    rho: Floats
    """Likeness of consecutive windows, 0 to 0.95."""
    design: Floats
    """Factor on the sampling variance (in row order); ones in time."""
    freedom: Floats
    """Degrees of freedom of `design`."""

    def variance(self, rows: Floats, windows: int) -> tuple[Floats, Floats]:
        """Variance of (mean of `windows` consecutive windows with `rows` rows together) - (reference mean).

        Also its degrees of freedom. `rows` has shape (T,).
        """
        sampling = self.design * self.sampling * (1 / np.maximum(rows, 1) + 1 / max(self.rows, 1))
        share = (1 + (windows - 1) * self.rho) / windows + 1 / max(self.windows, 1)
        total = sampling + share * self.between
        uncertain = 2 * (share * (self.between + self.noise)) ** 2 / max(self.windows - 1, 1)
        in_time = np.divide(
            2 * total**2, uncertain, out=np.full_like(total, MOST_FREEDOM), where=uncertain > 0
        )
        freedom = np.where(self.noise > 0, in_time, self.freedom)
        return total, np.clip(freedom, 1, MOST_FREEDOM)


def spread_in_time(deviations: Floats, sizes: Floats, sampling: Floats, rows: float) -> Spread:
    """Calibrate on windows in time.

    `deviations` (W, T): a window's mean minus the mean of the others; `sizes` (W, T): its rows.
    """
    count = len(deviations)
    if count < 2:
        zero = np.zeros_like(sampling)
        return Spread(sampling, rows, count, zero, zero, zero, np.ones_like(zero), np.ones_like(zero))
    noise = sampling * (1 / np.maximum(sizes, 1) + 1 / np.maximum(rows - sizes, 1))
    kept = _cut(deviations)
    between = np.maximum((kept**2 - noise).mean(axis=0), 0) / (1 + 1 / (count - 1))
    first, second = kept[:-1], kept[1:]
    power = np.maximum((kept**2).mean(axis=0), 1e-300)
    lag = np.clip((first * second).mean(axis=0) / power, -1, 1)
    lag = (
        lag + (1 + 4 * np.maximum(lag, 0)) / count
    )  # the usual bias of a lag correlation from a short series
    rho = np.clip((count * lag + 10 * np.median(lag)) / (count + 10), 0, 0.95)
    ones = np.ones_like(sampling)
    return Spread(sampling, rows, count, between, noise.mean(axis=0), rho, ones, ones)


def spread_in_rows(means: Floats, sizes: Ints, sampling: Floats, rows_judged: float) -> Spread:
    """Calibrate on blocks of consecutive rows, for judging windows of about `rows_judged` rows.

    `means` (B, T) and `sizes` (B,): the mean scores and rows of the finest blocks, in order.
    Blocks are joined two by two. Where no scale shows more than independent rows would, the finest and most
    certain estimate is used; otherwise that of blocks as large as what is judged.
    """
    total = float(sizes.sum())
    tests = means.shape[1]
    sampling_safe = np.maximum(sampling, 1e-300)
    scales: list[tuple[float, int, Floats]] = []
    sums, counts = means * sizes[:, None], sizes.astype(np.float64)
    while True:
        blocks = sums / np.maximum(counts, 1)[:, None]
        rest = total - counts
        others = (sums.sum(axis=0) - sums) / np.maximum(rest, 1)[:, None]
        noise = sampling_safe * (1 / np.maximum(counts, 1) + 1 / np.maximum(rest, 1))[:, None]
        ratio = _cut((blocks - others) / np.sqrt(noise)) ** 2
        scales.append((float(counts.mean()), len(counts), ratio.mean(axis=0)))
        if len(counts) // 2 < LEAST_BLOCKS:
            break
        even = len(counts) // 2 * 2
        sums = sums[:even:2] + sums[1:even:2]
        counts = counts[:even:2] + counts[1:even:2]
    dependent = np.zeros(tests, dtype=bool)
    for _, blocks_there, ratio_there in scales:
        dependent |= ratio_there > 1 + 3 * np.sqrt(2 / blocks_there)
    level = next((place for place, scale in enumerate(scales) if scale[0] >= rows_judged), len(scales) - 1)
    at_size = np.max([ratio for _, _, ratio in scales[: level + 1]], axis=0)
    design = np.maximum(np.where(dependent, at_size, scales[0][2]), 1)
    freedom = np.where(dependent, scales[level][1] - 1, scales[0][1] - 1).astype(np.float64)
    zero = np.zeros(tests)
    windows = scales[level][1] if len(scales[0][2]) else 0
    return Spread(sampling, total, windows, zero, zero, zero, design, np.maximum(freedom, 1))


def _cut(deviations: Floats) -> Floats:
    """Cut values back to `CUT` robust standard deviations around zero, column by column."""
    scale = 1.4826 * np.median(np.abs(deviations), axis=0)
    limit = np.where(scale > 0, CUT * scale, np.abs(deviations).max(axis=0, initial=0))
    return np.clip(deviations, -limit, limit)


def two_sided(ratio: Floats, freedom: Floats) -> Floats:
    """Probability that |t| is at least |ratio| with these degrees of freedom."""
    return np.asarray(2 * special.stdtr(freedom, -np.abs(ratio)), dtype=np.float64)


def critical(level: Floats, freedom: Floats) -> Floats:
    """The |t| that is exceeded with probability `level`."""
    return np.asarray(-special.stdtrit(freedom, level / 2), dtype=np.float64)


def count_tail(count: Floats, rows: Floats, seen: Floats, rows_seen: float) -> Floats:
    """Two-sided probability of `count` of `rows` when the reference had `seen` of `rows_seen`.

    Beta-binomial, so exact where a category is too rare for Student's t, and aware that the reference
    itself is a sample. Arrays of one shape.
    """
    hits, misses = seen + 0.5, max(rows_seen, 1) - seen + 0.5
    size = np.maximum(rows, 1)
    # Normal approximation in the angle scale for large expectations, exact sums for small ones.
    expected = size * hits / (hits + misses)
    large = (expected > 300) & (size - expected > 300)
    tail = np.ones_like(count)
    for place in np.flatnonzero(~large):
        tail[place] = _beta_binomial(
            int(count[place]), int(size[place]), float(hits[place]), float(misses[place])
        )
    angle = np.arcsin(np.sqrt(np.clip(count / size, 0, 1))) - np.arcsin(np.sqrt(hits / (hits + misses)))
    normal = 2 * special.ndtr(-np.abs(angle) / np.sqrt(0.25 / size + 0.25 / max(rows_seen, 1)))
    return np.where(large, normal, np.minimum(tail, 1))


def _beta_binomial(count: int, rows: int, hits: float, misses: float) -> float:
    values = np.arange(0, count + 1) if count <= rows * hits / (hits + misses) else np.arange(count, rows + 1)
    if len(values) > 20000:  # the far side of a huge window: its near terms carry the tail
        values = values[-20000:] if values[0] == 0 else values[:20000]
    logs = (
        special.gammaln(rows + 1)
        - special.gammaln(values + 1)
        - special.gammaln(rows - values + 1)
        + special.betaln(values + hits, rows - values + misses)
        - special.betaln(hits, misses)
    )
    return float(min(1.0, 2 * np.exp(logs).sum()))
