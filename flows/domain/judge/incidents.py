"""Whose incident it is: the canary's own counts decide.

A stable that fails is an incident; whether the canary shares it is seen from its own requests. One that is
proven to fail less than 1 / `max_ratio` times as often is spared, whatever the stable does. Where a stable
fails for longer than pauses last, it is being rescued, and every step is a relief that need not wait.

Arrays are [..., T], leading axes are independent runs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flows.domain.judge.evidence import Array, mean_log, ratio_logs, since

RATIOS: Array = np.array([0.05, 0.2, 0.5])
"""Of what must be ruled out: the rates whose evidences are averaged for the canary."""
MEMORY = 2.0
"""log E that is remembered beyond the proof. What was proven long ago must not outweigh what happens now."""
INCIDENT_SECONDS = 60.0
"""The stable's last minute (four windows at least) is what is compared with its past."""
SIGMAS = 3.0
"""A window fails by the stable's level where so many standard deviations of chance do not explain it."""


def spared(
    bad: Array, requests: Array, bad_stable: Array, stable: Array, max_ratio: float, alpha: float
) -> NDArray[np.bool_]:
    """Whether the canary is proven, at each window, to fail less than 1 / `max_ratio` times as often.

    The evidence is the ratio test's, cut at its proof and a little more: a canary that begins to fail with
    the stable loses the proof within a few bad requests.
    """
    share = requests / np.maximum(requests + stable, 1)
    logs = ratio_logs(bad[..., None], (bad + bad_stable)[..., None], share, RATIOS / max_ratio, 1 / max_ratio)
    sums = np.cumsum(logs[..., 0], axis=-1)
    proof = math.log(1 / alpha)
    excess = np.maximum.accumulate(np.maximum(sums - proof - MEMORY, 0), axis=-1)
    return np.asarray(mean_log(sums - excess, axis=0) >= proof)


def failing(bad: Array, requests: Array, seconds: Array, level: float) -> NDArray[np.bool_]:
    """Windows that fail, or whose minute does: more than `level` of the requests, and not by chance."""
    ends = np.cumsum(seconds.reshape(-1, seconds.shape[-1])[0])
    first = np.searchsorted(ends, ends - INCIDENT_SECONDS + 1e-6, side="right")
    found = np.zeros(bad.shape, dtype=bool)
    for failed, asked in ((bad, requests), (_from(first, bad), _from(first, requests))):
        expected = asked * level
        found |= failed > expected + SIGMAS * np.sqrt(expected * (1 - level))
    return found


def _from(first: NDArray[np.intp], amounts: Array) -> Array:
    """Sums from the window `first` on, that one included."""
    sums = np.cumsum(amounts, axis=-1)
    result: Array = sums - np.take(sums - amounts, first, axis=-1)
    return result


def lasting(bad: Array, requests: Array, level: float, new: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether more than `level` failed in most windows since the last `new` one: no pause does that."""
    over = since(new, (bad > requests * level).astype(np.float64), axis=-1)
    return np.asarray(over > since(new, np.ones_like(bad), axis=-1) / 2)
