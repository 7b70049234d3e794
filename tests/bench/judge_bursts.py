"""Requests that are not independent: how often that rejects healthy canaries, and what is found.

Each cell walks the default ramp with the judge's own arrays (`pauses.ramp`), and shows such pauses, minute by
minute, to the rules of the other systems.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from flows.domain.judge.paths import Tally, combined, path, rejection
from flows.domain.judge.policy import PromotionPolicy
from tests.bench.pauses import Fleet, Traffic, pauses, ramp
from tests.bench.rivals import MINUTES, argo_sees, flagger_sees, kayenta_sees
from tests.bench.situations import Situation

Array = NDArray[np.float64]
POLICY = PromotionPolicy()
BELIEVING = POLICY.model_copy(update={"pause_seconds": 0.0})
REJECTED = 0.01
RAMP_MINUTES = 30
NEAR = 1.6
"""Independent errors are to be found within so many times Wald's limit, where that is over …"""
LONG_MINUTES = 4.0


@dataclass(frozen=True)
class Regime:
    name: str
    traffic: Traffic
    rivals: bool = True


@dataclass(frozen=True)
class Cell:
    """Shares of healthy canaries rejected."""

    name: str
    rejected: dict[str, float]
    promoted: float
    met: bool


def regimes(quick: bool) -> Iterator[Regime]:
    sizes = [
        (10, 1, 1), (10, 3, 3), (100, 1, 1), (100, 3, 3), (1000, 10, 10), (10_000, 50, 50),
        (100, 1, 10), (1000, 3, 50), (10_000, 1, 50),
    ]  # fmt: skip
    hiccups = [(0.5, 0.3), (2, 1), (6, 5), (6, 20)]
    for rps, canary, stable in sizes[1::2] if quick else sizes:
        for an_hour, seconds in hiccups[1::2] if quick else hiccups:
            arms = (Fleet(one, an_hour, seconds, 0.001) for one in (canary, stable))
            yield Regime(f"{rps:g} rps, {canary}/{stable}, {an_hour:g} x {seconds:g} s", Traffic(rps, *arms))
    for rps, servers in ((10, 3), (100, 3), (1000, 10), (10_000, 50)):
        for an_hour, seconds in ((2, 1), (6, 20)):
            one = Fleet(servers, an_hour, seconds, 0.01)
            name = f"slow: {rps:g} rps, {servers}/{servers}, {an_hour:g} x {seconds:g} s"
            yield Regime(name, Traffic(rps, one, one, latency=True), rivals=False)
    yield from _others()


def _others() -> Iterator[Regime]:
    steady, three = Fleet(3, 0, 1, 0.02), Fleet(3, 2, 1, 0.002)

    def slow(name: str, warming: object) -> Regime:
        assert callable(warming)
        return Regime(name, Traffic(100, replace(steady, warming=warming), steady, latency=True))

    yield slow("cold start: 90 % slow for 30 s", lambda age: 0.9 * (age < 30))
    yield slow("cold cache: 60 % slow, halved every 15 s", lambda age: 0.6 * 0.5 ** (age / 15))
    yield slow("scale-up: 30 % slow for 45 s a shift", lambda age: 0.3 * (age < 45))

    def tide(seconds: Array) -> Array:
        result: Array = 1 + 0.8 * np.sin(2 * np.pi * seconds / 1800)
        return result

    yield Regime("load that triples in a quarter of an hour", Traffic(100, three, three, load=tide))
    retried = replace(three, clump=4)
    yield Regime("clients that try four times at once", Traffic(100, retried, retried))
    batch = replace(three, clump=30)
    yield Regime("a user who sends thirty bad rows at once", Traffic(100, batch, batch))
    yield Regime("an incident of both, 20 % for 2 min", Traffic(100, three, three, shared=(200, 320, 0.2)))
    flaky = Fleet(3, 0, 1, 0.001)
    for rate in (0.1, 0.3):
        yield Regime(f"hotfix: stable fails {rate:.0%}", Traffic(100, flaky, replace(flaky, base=rate)))


def cell(rng: np.random.Generator, runs: int, regime: Regime) -> Cell:
    ends = ramp(rng, runs, regime.traffic, POLICY, RAMP_MINUTES)
    believing = ramp(rng, max(runs // 4, 50), regime.traffic, BELIEVING, RAMP_MINUTES)
    rejected = {
        "ours": float(np.isfinite(ends.rejected).mean()),
        "independent": float(np.isfinite(believing.rejected).mean()),
        **(_rivals(rng, runs, regime.traffic) if regime.rivals else {}),
    }
    return Cell(regime.name, rejected, float(np.isfinite(ends.promoted).mean()), rejected["ours"] <= REJECTED)


def _rivals(rng: np.random.Generator, runs: int, traffic: Traffic) -> dict[str, float]:
    """Minute by minute. Slowness is shown to the rule that compares: the others have a person's limit."""
    rates = [_rates(traffic, fleet) for fleet in (traffic.canary, traffic.stable)]
    lost = [pauses(rng, runs, MINUTES, 60.0, fleet) for fleet in (traffic.canary, traffic.stable)]

    def draw(arm: int, percent: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        minutes = lost[arm][:, : percent.shape[-1]]
        mean = np.broadcast_to(traffic.rps * 60 * percent / 100, minutes.shape)
        bad, good = rng.poisson(mean * minutes), rng.poisson(mean * (1 - minutes))
        return bad + good, bad + rng.binomial(good, rates[arm][: percent.shape[-1]])

    steps, example = np.repeat([5.0, 25.0, 50.0], 5), np.repeat([20.0, 40.0, 60.0, 80.0], 10)

    def minute(number: int, weight: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        mean = traffic.rps * 60 * weight / 100
        bad = rng.poisson(mean * lost[0][:, number])
        good = rng.poisson(mean * (1 - lost[0][:, number]))
        return bad + good, bad + rng.binomial(good, rates[0][number])

    seen = draw(0, example)
    both = [draw(arm, np.full(MINUTES, 10.0)) for arm in (0, 1)]
    points = np.stack([failures / np.maximum(requests, 1) for requests, failures in both])
    ends = {
        "Argo": argo_sees(*draw(0, steps)),
        "example": argo_sees(seen[0][:, 10:], seen[1][:, 10:], 0.95, 5, 10),
        "Flagger": flagger_sees(minute, runs),
        "Kayenta": kayenta_sees(points),
    }
    return {
        who: float(np.mean(~np.isnan(one.rejected)))
        for who, one in ends.items()
        if who == "Kayenta" or not traffic.latency
    }


def _rates(traffic: Traffic, fleet: Fleet) -> Array:
    """How likely a request is bad, apart from pauses, on the average of each minute after the only shift."""
    seconds = np.arange(60.0 * MINUTES)
    likely = np.full_like(seconds, fleet.base)
    if fleet.warming is not None:
        likely = np.maximum(likely, fleet.warming(seconds))
    if traffic.shared is not None:
        start, end, share = traffic.shared
        likely = np.where((seconds >= start) & (seconds < end), np.maximum(likely, share), likely)
    result: Array = likely.reshape(MINUTES, 60).mean(axis=1)
    return result


def found(rng: np.random.Generator, runs: int) -> Iterator[Situation]:
    """What must still be found: outright failure, and a canary that is sick in bursts."""
    for rps, within in ((10, 90.0), (100, 45.0), (10_000, 45.0)):
        for servers in (1, 3):
            calm = Fleet(servers, 0, 1, 0.001)
            ends = ramp(rng, runs, Traffic(rps, replace(calm, base=1.0), calm), POLICY, 5)
            last, failed = float(ends.rejected.max()), float(ends.bad.max())
            met = last <= within and (rps > 10 or failed < 60)
            name = f"fails everything, {rps} rps, {servers} server{'s' * (servers > 1)} each"
            seen = f"{np.median(ends.rejected):.0f} s, at most {last:.0f} s and {failed:.0f} failed"
            yield Situation(name, seen, met)
    for an_hour, base in ((6, 0.0), (6, 0.001), (6, 0.005), (2, 0.0), (2, 0.001)):
        # How often the stable pauses was never said: the rows beside the first show what it depends on.
        arms = (Fleet(3, often, 0.5, base) for often in (10 * an_hour, an_hour))
        ends = ramp(rng, runs, Traffic(200, *arms), POLICY, 60)
        share = float(np.isfinite(ends.rejected).mean())
        name = f"sick in bursts, {10 * an_hour} an hour, not {an_hour}; {100 * base:g} % fail"
        promised = (an_hour, base) == (6, 0.0)
        seen = f"{share:.0%} rejected" + ("" if promised else " (nothing promised)")
        yield Situation(name, seen, share >= 0.9 or not promised)


INDEPENDENT = [
    (10, 0.005, 2), (10, 0.005, 5), (100, 0.005, 1.5), (100, 0.005, 2), (100, 0.001, 2), (100, 0.002, 3),
    (10, 0.01, 3), (1000, 0.001, 1.5), (30, 0.01, 2), (10, 0.001, 5), (100, 0.001, 5), (10, 0.001, 10),
]  # fmt: skip


def limits(rng: np.random.Generator, runs: int) -> Iterator[Situation]:
    """Independent errors at 5 %: median time to the rejection over Wald's limit, ln(1 / alpha) / drift."""
    part = 0.05
    for rps, base, ratio in INDEPENDENT:
        both = rps * base * (part * ratio + 1 - part)
        drift = rps * base * part * ratio * math.log(ratio) - both * math.log1p(part * (ratio - 1))
        limit = math.log(1 / POLICY.alpha) / drift
        seconds = max(POLICY.window_seconds, 5.0)
        windows = int(3 * limit / seconds)
        share = max(1, int(2e6 / windows / 8))
        ours, theirs = [], []
        for start in range(0, runs, share):
            some = min(share, runs - start)
            canary = rng.poisson(rps * seconds * part, (some, windows))
            stable = rng.poisson(rps * seconds * (1 - part), (some, windows))
            bad, bad_s = rng.binomial(canary, base * ratio), rng.binomial(stable, base)
            ours.append(_ours(*(one.astype(float) for one in (canary, bad, stable, bad_s)), seconds))
            theirs.append(
                _lindon_malek(np.cumsum(bad, axis=1), np.cumsum(bad + bad_s, axis=1), part) * seconds
            )
        mine, multinomial = (float(np.median(np.concatenate(one))) / limit for one in (ours, theirs))
        name = f"{ratio:g} x {100 * base:g} %, {rps} rps: limit {limit / 60:.1f} min"
        seen = f"{mine:.2f} x the limit; multinomial mixture {multinomial:.2f}"
        yield Situation(name, seen, mine <= NEAR or limit <= 60 * LONG_MINUTES)


def _ours(canary: Array, bad: Array, stable: Array, bad_stable: Array, seconds: float) -> Array:
    none, lengths = np.zeros((*canary.shape, 0)), np.full_like(canary, seconds)
    counted = Tally(
        lengths, np.full_like(canary, 5.0), canary, bad, stable, bad_stable, canary, stable, none, none
    )
    evidence = combined(POLICY, {"errors": path(counted).errors})
    return _first(evidence >= rejection(POLICY)) * seconds


def _lindon_malek(bad: NDArray[np.int64], both: NDArray[np.int64], part: float) -> Array:
    """Windows until the Beta mixture over the canary's part of the bad requests exceeds 1 / alpha.

    Its mean is the canary's share of the requests, its weight that of one bad request of the canary's.
    """
    one, other = 1.0, (1 - part) / part
    log = special.betaln(one + bad, other + both - bad) - special.betaln(one, other)
    log -= bad * math.log(part) + (both - bad) * math.log1p(-part)
    return _first(log >= math.log(1 / POLICY.alpha))


def _first(events: NDArray[np.bool_]) -> Array:
    return np.where(events.any(axis=-1), events.argmax(axis=-1) + 1.0, np.inf)
