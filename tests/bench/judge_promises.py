"""What the judge promises beside the table: false certificates, the watch after 100 %, and its own speed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from flows.domain.judge.judging import judge, judge_promoted
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window
from tests.bench.judge_runs import POLICY, wrongly_certified
from tests.bench.situations import Situation

FORBIDDEN = [(0.01, 0.02, 10), (0.01, 0.02, 100), (0.001, 0.011, 10), (0.1, 0.2, 10)]
"""Stable's and canary's errors where the canary is just as bad as `max_ratio` and `max_absolute` rule out."""
WATCHED = PromotionPolicy(window_seconds=15)
VERDICT_MILLISECONDS = 10.0


def promises(rng: np.random.Generator, runs: int) -> list[Situation]:
    lines = []
    for base, canary, rps in FORBIDDEN:
        share = wrongly_certified(rng, runs, rps, canary, base)
        name = f"certified although {100 * canary:g} % fail, not {100 * base:g} %, {rps} rps"
        lines.append(Situation(name, f"{share:.1%} of {runs} (≤ {POLICY.beta:.0%})", share <= POLICY.beta))
    false, _ = _after(rng, 300, 0.005)
    lines.append(
        Situation(
            "after 100 %: healthy, 0.5 %, 10 rps", f"{false:.1%} of 300 rolled back (≤ 1 %)", false <= 0.01
        )
    )
    found, minutes = _after(rng, 100, 0.055)
    lines.append(
        Situation(
            "after 100 %: +5 points on 0.5 %, 10 rps",
            f"{found:.0%} of 100 rolled back, median {minutes:.0f} min",
            found == 1,
        )
    )
    return [*lines, speed(rng)]


def _after(rng: np.random.Generator, runs: int, rate: float) -> tuple[float, float]:
    """Share of the promotions that the watch after 100 % takes back, and the median minute of it."""
    minutes = []
    ramp = [
        Window(15.0 * i, 15.0 * i + 15, 50, _counts(rng, 75, 0.005), _counts(rng, 75, 0.005))
        for i in range(80)
    ]
    for _ in range(runs):
        windows: list[Window] = []
        kind = "hold"
        while kind == "hold":
            start = 1200.0 + 15 * len(windows)
            windows.append(Window(start, start + 15, 100, _counts(rng, 150, rate), None))
            kind = judge_promoted(WATCHED, ramp, windows).kind
        if kind == "reject":
            minutes.append(len(windows) / 4)
    return len(minutes) / runs, float(np.median(minutes)) if minutes else float("inf")


def _counts(rng: np.random.Generator, requests: int, rate: float) -> Counts:
    total = int(rng.poisson(requests))
    return Counts(total, int(rng.binomial(total, rate)), total)


def speed(rng: np.random.Generator) -> Situation:
    """One verdict over 1 000 windows: errors, 20 latency bounds, 10 bins of outputs, agreement, A/A check."""
    bounds = [0.001 * 1.6**index for index in range(20)]
    bins = [f"le_{edge / 10:g}" for edge in range(1, 11)]

    def arm(requests: int) -> Counts:
        slow = np.sort(rng.integers(0, requests, len(bounds)))[::-1]
        outputs = rng.multinomial(requests, [0.1] * len(bins))
        return Counts(
            requests,
            int(rng.binomial(requests, 0.01)),
            requests,
            dict(zip(bounds, map(int, slow), strict=True)),
            outputs=dict(zip(bins, map(int, outputs), strict=True)),
            compared=30,
        )

    policy = PromotionPolicy(min_agreement=0.9)
    seen = [
        Window(
            15.0 * i,
            15.0 * i + 15,
            (5, 25, 50)[i // 334],
            arm(100),
            arm(900),
            (Counts(450, 3), Counts(450, 4)),
        )
        for i in range(1000)
    ]
    spent = _spent(policy, seen, 40)
    # The fastest is the machine's speed for it; what is slower had to share the core.
    text = f"fastest {spent[0]:.1f} ms, median {spent[len(spent) // 2]:.1f} ms (< {VERDICT_MILLISECONDS:g})"
    return Situation(
        "a verdict: 1 000 windows, 20 latency bounds and more", text, spent[0] < VERDICT_MILLISECONDS
    )


def _spent(policy: PromotionPolicy, windows: Sequence[Window], times: int) -> list[float]:
    """Milliseconds of processor time, sorted."""
    spent = []
    for _ in range(times):
        before = time.process_time()
        judge(policy, windows)
        spent.append(1000 * (time.process_time() - before))
    return sorted(spent)
