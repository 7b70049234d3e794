"""The mathematics of the judge: e-values, which stay valid however often one looks at them.

An e-value's expectation is at most 1 when the canary is no worse, so by Ville's inequality it ever exceeds
1 / alpha with a chance of at most alpha: at any traffic, any number of looks, with changing weights and with
gaps. Arrays end in the axes [windows, metrics]; leading axes are independent runs, for the simulations.
Logarithms throughout: nothing overflows at 10^9 requests.

Hoeffding 1963; Lindon & Malek, arXiv 2011.03567; Turner, Ly & Grünwald, arXiv 2106.02693; Wasserman,
Ramdas & Balakrishnan, Universal inference (2020), for `shift_evidence`.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array: TypeAlias = NDArray[np.float64]

WORSE: Array = np.array([1.25, 1.5, 2, 3, 5, 10, 100])
"""Rate ratios whose evidences are averaged against a canary; the smallest leaves a zone of indifference."""
PRIOR: Array = np.array([0.11, 0.15, 0.21, 0.195, 0.17, 0.115, 0.05])
"""How they are weighed: most where a canary that is worse is neither found at once nor hardly at all."""
BETTER: Array = np.array([0.25, 0.5, 0.75, 1, 1.2])
"""Rate ratios for a canary, against the ratio that must be ruled out before it is certified."""
LARGEST = 690.0
"""Logarithms of evidence are cut here, where e^x still is a finite float that prints."""


def ratio_logs(
    bad: Array,
    both: Array,
    share: Array,
    ratios: Array = WORSE,
    tolerated: float = 1.0,
) -> Array:
    """log e of each window, for each ratio (first axis), that the canary's bad requests come at `ratio` times
    the rate of the stable's rather than at most (for ratios below it: at least) `tolerated` times.

    `bad` [..., T, G] are the canary's bad requests, `both` those of both arms, `share` [..., T] the canary's
    measured share of all requests. Given `both`, `bad` is hypergeometric when the arms are equal, so this is
    exact for any counts of independent requests; what may count of it in bursts is in `bursts`.
    """
    paid = costs(share, ratios, tolerated)[..., None]
    return np.stack(
        [bad * math.log(ratio / tolerated) - both * cost for ratio, cost in zip(ratios, paid, strict=True)]
    )


def costs(share: Array, ratios: Array, tolerated: float) -> Array:
    """What each bad request of either arm costs the evidence [ratios, ..., T]."""
    null = np.log1p(share * (tolerated - 1))
    return np.stack([np.log1p(share * (ratio - 1)) - null for ratio in ratios])


def mean_log(logs: Array, axis: int, weights: Array | None = None) -> Array:
    """The logarithm of the (weighted) mean of e^logs."""
    if weights is not None:
        logs = logs + np.log(np.maximum(weights / weights.sum(), 1e-300))
    top = np.max(logs, axis=axis, keepdims=True)
    summed: Array = np.log(np.sum(np.exp(logs - top), axis=axis)) + np.squeeze(top, axis=axis)
    return summed if weights is not None else summed - math.log(logs.shape[axis])


def one_sample_evidence(bad: Array, total: Array, tolerated: Array | float) -> Array:
    """log E of each window that bad requests come at more than the rate `tolerated`, one value a ratio of
    `WORSE` (last axis, odds ratios); add over windows, then average with `mean_log`."""
    rate = np.asarray(tolerated, dtype=np.float64)[..., None]
    worse = rate * WORSE / (1 - rate + rate * WORSE)
    gain: Array = bad[..., None] * np.log(worse / rate) + (total - bad)[..., None] * (
        np.log1p(-worse) - np.log1p(-rate)
    )
    return gain


def detector(gains: Array) -> Array:
    """log of the e-detector M = e (M + 1) after every window (axis 0), for each log e of `gains`.

    Its expectation after t windows is at most t, so M ever reaches T / alpha within T windows with a chance
    of at most alpha.
    """
    sums = np.cumsum(gains, axis=0)
    result: Array = sums + np.logaddexp.accumulate(gains - sums, axis=0)
    return result


def since(new: NDArray[np.bool_], amounts: Array, axis: int) -> Array:
    """Sums of non-negative amounts since the last `new` window, that one included."""
    sums = np.cumsum(amounts, axis=axis)
    result: Array = sums - np.maximum.accumulate(np.where(new, sums - amounts, 0), axis=axis)
    return result


def mixture(bad: Array, total: Array, rate: Array) -> Array:
    """log of the Beta(1/2, 1/2) mixture martingale for the Bernoulli rate `rate`, after `total` requests."""
    prior = special.betaln(0.5, 0.5)
    log: Array = (
        special.betaln(bad + 0.5, total - bad + 0.5)
        - prior
        - special.xlogy(bad, rate)
        - special.xlog1py(total - bad, -rate)
    )
    return log


def bounds(bad: Array, total: Array, miss: float) -> tuple[Array, Array]:
    """Lower and upper bound of a Bernoulli rate that hold at all times together, but for a chance `miss`."""
    bad, total = np.asarray(bad, dtype=np.float64), np.asarray(total, dtype=np.float64)
    limit = math.log(1 / miss) + special.betaln(0.5, 0.5) - special.betaln(bad + 0.5, total - bad + 0.5)
    centre = np.where(total > 0, bad / np.maximum(total, 1), 0.5)
    inside = np.stack([centre, centre])
    outside = np.stack([np.zeros_like(centre), np.ones_like(centre)])
    for _ in range(44):
        middle = (inside + outside) / 2
        covered = -special.xlogy(bad, middle) - special.xlog1py(total - bad, -middle) < limit
        inside, outside = np.where(covered, middle, inside), np.where(covered, outside, middle)
    return np.where(bad > 0, outside[0], 0.0), np.where(bad < total, outside[1], 1.0)


def shift_evidence(bad_c: Array, total_c: Array, bad_s: Array, total_s: Array, tolerated: float) -> Array:
    """log E that the canary's rate exceeds the stable's by more than `tolerated` (a difference of rates).

    The least product of both arms' mixture martingales over all pairs of rates within the tolerance.
    """
    arms = np.broadcast_arrays(
        *(np.asarray(arm, dtype=np.float64) for arm in (bad_c, total_c, bad_s, total_s))
    )
    rates = arms[0] / np.maximum(arms[1], 1) - arms[2] / np.maximum(arms[3], 1)
    beyond = (rates > tolerated) & (arms[1] > 0) & (arms[3] > 0)
    evidence: Array = np.full(beyond.shape, -LARGEST)
    if not beyond.any():
        return evidence
    bad_c, total_c, bad_s, total_s = (arm[beyond] for arm in arms)
    # The sum of both logarithms is convex in the stable's rate, and least where the canary's is at the limit.
    low, high = np.zeros_like(bad_s), np.full_like(bad_s, 1.0 - tolerated)
    for _ in range(54):
        rate = (low + high) / 2
        canary = np.minimum(rate + tolerated, 1 - 1e-15)
        slope = (total_c - bad_c) / (1 - canary) - bad_c / canary
        slope += (total_s - bad_s) / (1 - rate) - bad_s / np.maximum(rate, 1e-300)
        low, high = np.where(slope < 0, rate, low), np.where(slope < 0, high, rate)
    evidence[beyond] = mixture(bad_c, total_c, np.minimum(low + tolerated, 1.0)) + mixture(
        bad_s, total_s, low
    )
    return evidence
