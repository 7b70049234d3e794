"""What the policy promises (alpha, beta) holds for the judge's arrays as a whole, not only for one gate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from flows.domain.judge.paths import Tally, certified, combined, path, rejection
from flows.domain.judge.policy import PromotionPolicy


def test_all_gates_together_keep_alpha_on_paths_of_10_000_windows() -> None:
    """Errors and eight latency bounds, which go up and down together, through the judge's own arrays."""
    rng = np.random.default_rng(11)
    runs, windows, alpha = 40, 10_000, 0.05
    policy = PromotionPolicy(alpha=alpha, max_slowdown=1.0, latency_floor_seconds=0.0)
    slower = np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005])
    crossed = []
    for _ in range(runs):
        weight = np.repeat([5.0, 25.0, 50.0, 10.0], windows // 4)
        total = rng.poisson(30, windows)
        canary = rng.binomial(total, weight / 100)
        # A slow hour makes requests slow and lets them fail, on both releases alike.
        hour = 1 + 0.9 * np.sin(np.arange(windows) / 900)
        arms = []
        for requests in (canary, total - canary):
            slow = [rng.binomial(requests, slower[0] * hour)]
            for before, after in itertools.pairwise(slower):
                slow.append(rng.binomial(slow[-1], after / before))
            failed = rng.binomial(slow[-1], 0.5) + rng.binomial(requests - slow[-1], 0.01)
            arms.append((requests.astype(float), failed.astype(float), np.stack(slow, axis=1).astype(float)))
        (n_c, x_c, slow_c), (n_s, x_s, slow_s) = arms
        bounds_ = tuple((float(i), float(i)) for i in range(len(slower)))
        seconds = np.full(windows, 15.0)
        followed = path(Tally(seconds, weight, n_c, x_c, n_s, x_s, n_c, n_s, slow_c, slow_s, bounds_))
        evidence = combined(policy, {"errors": followed.errors, "latency": followed.latency})
        crossed.append(evidence.max() >= rejection(policy))
    assert np.mean(crossed) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize(("base", "canary"), [(0.01, 0.02), (0.001, 0.011), (0.2, 0.4)])
def test_a_canary_as_bad_as_the_policy_says_is_hardly_ever_certified(base: float, canary: float) -> None:
    """Twice the errors and a point more, looked at 1 000 times: at most beta are ever certified."""
    rng = np.random.default_rng(13)
    policy, runs, windows = PromotionPolicy(), 200, 1000
    requests = rng.poisson(75, (2, runs, windows)).astype(float)
    bad = rng.binomial(requests.astype(int), np.array([canary, base])[:, None, None]).astype(float)
    none, weight = np.zeros((runs, windows, 0)), np.full((runs, windows), 50.0)
    counted = Tally(
        weight, weight, requests[0], bad[0], requests[1], bad[1], requests[0], requests[1], none, none
    )
    share = certified(policy, counted).any(axis=1).mean()
    assert share <= policy.beta + 3 * math.sqrt(policy.beta * (1 - policy.beta) / runs)
