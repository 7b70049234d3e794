"""The rules of the systems in use, written out from their documentation, for the same requests.

Each sees the same Bernoulli requests as our judge, minute by minute, without noise from scrapes and rates:
better than it would in production. What they do not do (compare with the stable, say) is left out as they
leave it out.

- Argo Rollouts: an AnalysisTemplate in the background of setWeight and pause steps. A metric fails, and the
  rollout is aborted, when *more than* `failureLimit` measurements have failed; later ones that pass clear
  nothing. Without requests the success rate is 0 / 0, and NaN meets no `successCondition`: that measurement
  fails too. Twice: with the service level that Flagger's tutorials have (`result[0] >= 0.99` once a minute,
  `failureLimit: 3`, our own ramp), and as its documentation's example has it (`>= 0.95` every 5 minutes,
  `failureLimit: 3`, 20 % more every 10 minutes, looked at from 40 % on).
- Flagger: as in its tutorials, `interval: 1m`, `threshold: 5`, `stepWeight: 10`, `maxWeight: 50`,
  `request-success-rate` at least 99. A minute that passes takes the next step; one that fails is added up (no
  requests: "no values found", which fails too) and five of them roll back; passing at the greatest weight
  promotes. With `iterations` (its A/B tests) the weight stays, and so many passing minutes promote.
- Kayenta: one metric, errors a request by the minute, canary beside a baseline of equal size for the hour. It
  is "High", and with one metric that decides the score, when the lower end of the shift's Mann-Whitney
  confidence interval (98 %) exceeds a quarter of the estimate. Its removal of outliers (beyond the 99th
  percentile and three interquartile ranges: a point of sixty at most) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
MINUTES = 60
ARGO_EXAMPLE = np.repeat([40.0, 60.0, 80.0], 10)
"""The weight in each minute in which the documentation's example looks; 10 minutes at 20 % come before."""


@dataclass(frozen=True)
class Outcome:
    """Per run: the minute of the rollback, and of the promotion; NaN when there was none."""

    rejected: Array
    promoted: Array


def argo(
    rng: np.random.Generator,
    runs: int,
    rps: float,
    canary: float,
    weights: Array,
    least: float = 0.99,
    every: int = 1,
    before: int = 0,
) -> Outcome:
    """`weights` in percent by the minute; at least `least` must succeed, measured `every` so many minutes."""
    requests = rng.poisson(rps * 60 * weights / 100, (runs, len(weights)))
    return argo_sees(requests, rng.binomial(requests, canary), least, every, before)


def argo_sees(
    requests: NDArray[np.int64],
    failures: NDArray[np.int64],
    least: float = 0.99,
    every: int = 1,
    before: int = 0,
) -> Outcome:
    """The same for counts of the canary by the minute."""
    runs, minutes = requests.shape
    requests, failures = (one.reshape(runs, -1, every).sum(axis=2) for one in (requests, failures))
    failed = (requests == 0) | (failures > (1 - least) * requests * (1 + 1e-12))
    minute = before + every * _first(np.cumsum(failed, axis=1) > 3)
    return Outcome(minute, np.where(np.isnan(minute), float(before + minutes), np.nan))


def argo_example(rng: np.random.Generator, runs: int, rps: float, canary: float) -> Outcome:
    """The example of Argo Rollouts' documentation."""
    return argo(rng, runs, rps, canary, ARGO_EXAMPLE, least=0.95, every=5, before=10)


def flagger(
    rng: np.random.Generator, runs: int, rps: float, canary: float, iterations: int | None = None
) -> Outcome:
    """A ramp, or with `iterations` that many passing minutes at 10 %."""

    def draw(_: int, weight: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        requests = rng.poisson(rps * 60 * weight / 100)
        return requests, rng.binomial(requests, canary)

    return flagger_sees(draw, runs, iterations)


def flagger_sees(
    draw: Callable[[int, Array], tuple[NDArray[np.int64], NDArray[np.int64]]],
    runs: int,
    iterations: int | None = None,
) -> Outcome:
    """The same for the canary's requests and failures of a minute (from 0) at a weight in percent."""
    weight, fails, passes = np.full(runs, 10.0), np.zeros(runs), np.zeros(runs)
    rejected, promoted = np.full(runs, np.nan), np.full(runs, np.nan)
    for minute in range(1, MINUTES + 1):
        going = np.isnan(rejected) & np.isnan(promoted)
        requests, failures = draw(minute - 1, weight)
        good = (requests > 0) & (failures <= 0.01 * requests)
        fails += going & ~good
        passes += going & good
        rejected[going & (fails >= 5)] = minute
        last = weight >= 50 if iterations is None else passes >= iterations
        promoted[going & good & last] = minute
        if iterations is None:
            weight = np.where(going & good, np.minimum(weight + 10, 50), weight)
    return Outcome(rejected, promoted)


def kayenta(rng: np.random.Generator, runs: int, rps: float, canary: float, base: float) -> Outcome:
    requests = rng.poisson(rps * 60 * 0.1, (2, runs, MINUTES))
    errors = rng.binomial(requests, np.array([canary, base])[:, None, None])
    return kayenta_sees(errors / np.maximum(requests, 1))


def kayenta_sees(points: Array) -> Outcome:
    """The same for error rates by the minute [canary and baseline, runs, minutes]."""
    runs = points.shape[1]
    shifts = np.sort((points[0][:, :, None] - points[1][:, None, :]).reshape(runs, -1), axis=1)
    pairs = MINUTES * MINUTES
    quantile = stats.norm.ppf(0.99)
    low = max(0, int(pairs / 2 - quantile * np.sqrt(pairs * (2 * MINUTES + 1) / 12)))
    high = shifts[:, low] > 0.25 * np.abs(np.median(shifts, axis=1))
    return Outcome(np.where(high, float(MINUTES), np.nan), np.where(high, np.nan, float(MINUTES)))


def _first(events: NDArray[np.bool_]) -> Array:
    return np.where(events.any(axis=1), events.argmax(axis=1) + 1.0, np.nan)
