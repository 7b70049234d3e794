"""Many simulated promotions at once, through the judge's own arrays.

Requests are Poisson, errors Bernoulli; the ramp is the default policy's and is walked by the judge's own
`path`, `passed` and `certified` (the arrays that `judge` looks at the last column of; a test holds them to
agree).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flows.domain.judge.paths import Tally, certified, combined, last_proving_step, passed, path, rejection
from flows.domain.judge.policy import PromotionPolicy
from tests.bench.rivals import MINUTES, Outcome

Array = NDArray[np.float64]
POLICY = PromotionPolicy()
WINDOWS = int(MINUTES * 60 / POLICY.window_seconds)


AT_ONCE = 200
"""So many runs at a time fit into the memory of a small machine."""


def ramp(rng: np.random.Generator, runs: int, rps: float, canary: float, base: float) -> Outcome:
    """Runs of the default ramp."""
    parts = [_ramp(rng, some, rps, canary, base) for some in _portions(runs)]
    rejected, promoted = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("rejected", "promoted")
    )
    return Outcome(rejected, promoted)


def _portions(runs: int) -> list[int]:
    return [min(AT_ONCE, runs - start) for start in range(0, runs, AT_ONCE)]


def _ramp(rng: np.random.Generator, runs: int, rps: float, canary: float, base: float) -> Outcome:
    """All runs of a step at once, each with its own moment of leaving it."""
    weight = np.full((runs, WINDOWS), float(POLICY.steps[0]))
    total = rng.poisson(rps * POLICY.window_seconds, (runs, WINDOWS)).astype(np.float64)
    requests, bad_c, bad_s = _traffic(rng, total, weight, canary, base)
    rejected, through = np.full(runs, np.nan), np.full(runs, np.nan)
    column = np.arange(WINDOWS)
    for step, following in zip(POLICY.steps[:-1], POLICY.steps[1:], strict=True):
        counted = _tally(requests, bad_c, total - requests, bad_s, weight)
        followed = path(counted)
        evidence = combined(POLICY, {"errors": followed.errors})
        last = step == last_proving_step(POLICY)
        proven = certified(POLICY, counted) if last else np.ones_like(weight, dtype=bool)
        may = passed(POLICY, counted, followed, evidence, proven) & (weight == step)
        reject = _first(evidence >= rejection(POLICY))
        leave = np.where(np.isnan(through), _first(may), np.inf)
        if not last:
            # From the window after the one that passes on: new weight, new requests. The past stays.
            new = column >= np.where(np.isnan(leave), np.inf, leave)[:, None]
            weight = np.where(new, float(following), weight)
            fresh = _traffic(rng, total, weight, canary, base)
            requests, bad_c, bad_s = (
                np.where(new, now, was) for now, was in zip(fresh, (requests, bad_c, bad_s), strict=True)
            )
            continue
        first = ~np.isnan(reject) & ~(leave < reject)
        rejected[first] = reject[first]
        through = np.where(first, np.nan, leave)
    return Outcome(rejected * POLICY.window_seconds / 60, through * POLICY.window_seconds / 60)


def held(rng: np.random.Generator, runs: int, rps: float, canary: float, base: float) -> Array:
    """Minute of the rejection when the canary stays at 10 % for the hour and is looked at all the time."""
    minutes = []
    for some in _portions(runs):
        counted = _steady(rng, some, rps, canary, base, 10.0)
        minutes.append(_first(combined(POLICY, {"errors": path(counted).errors}) >= rejection(POLICY)))
    return np.concatenate(minutes) * POLICY.window_seconds / 60


def wrongly_certified(rng: np.random.Generator, runs: int, rps: float, canary: float, base: float) -> float:
    """Share of the runs that ever have a certificate within an hour at 50 %, looked at after every window."""
    counted = _steady(rng, runs, rps, canary, base, 50.0)
    return float(certified(POLICY, counted).any(axis=1).mean())


def _steady(
    rng: np.random.Generator, runs: int, rps: float, canary: float, base: float, percent: float
) -> Tally:
    weight = np.full((runs, WINDOWS), percent)
    total = rng.poisson(rps * POLICY.window_seconds, (runs, WINDOWS)).astype(np.float64)
    requests, bad_c, bad_s = _traffic(rng, total, weight, canary, base)
    return _tally(requests, bad_c, total - requests, bad_s, weight)


def _tally(requests: Array, bad_c: Array, stable: Array, bad_s: Array, weight: Array) -> Tally:
    none = np.zeros((*requests.shape, 0))
    seconds = np.full_like(requests, POLICY.window_seconds)
    return Tally(seconds, weight, requests, bad_c, stable, bad_s, requests, stable, none, none)


def _traffic(
    rng: np.random.Generator, total: Array, weight: Array, canary: float, base: float
) -> tuple[Array, Array, Array]:
    requests = rng.binomial(total.astype(int), weight / 100)
    bad_c = rng.binomial(requests, canary)
    bad_s = rng.binomial(total.astype(int) - requests, base)
    return requests.astype(np.float64), bad_c.astype(np.float64), bad_s.astype(np.float64)


def _first(events: NDArray[np.bool_]) -> Array:
    """One-based index of the first event of each run; NaN without one."""
    return np.where(events.any(axis=-1), events.argmax(axis=-1) + 1.0, np.nan)
