"""The rules of the systems in use, written out from their documentation, for the same counts.

They are the settings of each one's own tutorial. Their gates see the same Bernoulli requests as our judge,
minute by minute; what they do not do (compare with the stable, say) is left out as they leave it out.

- Argo Rollouts: an AnalysisTemplate with `successCondition: result[0] >= 0.99`, `interval: 1m`,
  `failureLimit: 3`, in the background of a rollout of setWeight/pause steps: more than three failed
  measurements abort it, passing measurements do not clear failed ones. A minute without requests is no
  measurement.
- Flagger: `interval: 1m`, `threshold: 5`, `stepWeight: 10`, `maxWeight: 50`, request-success-rate min 99: a
  minute that passes takes the next step, one that fails (no requests count as failed) is added up, five roll
  back, and passing at the maximum weight promotes.
- Kayenta: one critical metric, error rate a minute, canary against a baseline of equal size over the whole
  hour: the judge's Mann-Whitney interval for the shift at confidence 0.98, "High" when its lower end exceeds
  the tolerance of 0.25 of the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
MINUTES = 60


@dataclass(frozen=True)
class Outcome:
    """Per run: the minute of the rollback, and of the promotion; NaN when there was none."""

    rejected: Array
    promoted: Array


def argo(rng: np.random.Generator, runs: int, rps: float, canary: float, steps: Array) -> Outcome:
    """`steps` is the weight in percent of each minute; promoted when all are over."""
    requests = rng.poisson(rps * 60 * steps / 100, (runs, len(steps)))
    failed = (requests > 0) & (rng.binomial(requests, canary) > 0.01 * requests)
    minute = _first(np.cumsum(failed, axis=1) > 3)
    return Outcome(minute, np.where(np.isnan(minute), float(len(steps)), np.nan))


def flagger(rng: np.random.Generator, runs: int, rps: float, canary: float) -> Outcome:
    weight, fails = np.full(runs, 10.0), np.zeros(runs)
    rejected, promoted = np.full(runs, np.nan), np.full(runs, np.nan)
    for minute in range(1, MINUTES + 1):
        going = np.isnan(rejected) & np.isnan(promoted)
        requests = rng.poisson(rps * 60 * weight / 100)
        good = (requests > 0) & (rng.binomial(requests, canary) <= 0.01 * requests)
        fails += going & ~good
        rejected[going & (fails >= 5)] = minute
        promoted[going & good & (weight >= 50)] = minute
        weight = np.where(going & good, np.minimum(weight + 10, 50), weight)
    return Outcome(rejected, promoted)


def kayenta(rng: np.random.Generator, runs: int, rps: float, canary: float, base: float) -> Outcome:
    requests = rng.poisson(rps * 60 * 0.1, (2, runs, MINUTES))
    errors = rng.binomial(requests, np.array([canary, base])[:, None, None])
    points = errors / np.maximum(requests, 1)
    shifts = np.sort((points[0][:, :, None] - points[1][:, None, :]).reshape(runs, -1), axis=1)
    pairs = MINUTES * MINUTES
    quantile = stats.norm.ppf(0.99)
    low = max(0, int(pairs / 2 - quantile * np.sqrt(pairs * (2 * MINUTES + 1) / 12)))
    high = shifts[:, low] > 0.25 * np.abs(np.median(shifts, axis=1))
    return Outcome(np.where(high, float(MINUTES), np.nan), np.where(high, np.nan, float(MINUTES)))


def _first(events: NDArray[np.bool_]) -> Array:
    return np.where(events.any(axis=1), events.argmax(axis=1) + 1.0, np.nan)
