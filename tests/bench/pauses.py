"""Releases whose servers pause now and then, walked through the ramp by the judge's own arrays.

A pause hits one server: whatever reaches it meanwhile is bad. What hits whom and when is drawn once, so that
the weights of the ramp only change how many requests share the fate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from flows.domain.judge.paths import (
    Path,
    Tally,
    certified,
    combined,
    last_proving_step,
    passed,
    path,
    rejection,
    warm_up,
)
from flows.domain.judge.policy import PromotionPolicy

Array = NDArray[np.float64]
AT_ONCE = 200
"""So many runs at a time fit into the memory of a small machine."""
Rates = Callable[[Array], Array]
"""Seconds since the step began [runs, windows] → how likely one more request is bad, 0 to 1."""


@dataclass(frozen=True)
class Fleet:
    """A release's servers: how often each pauses, for how long, how often a request is bad anyway."""

    servers: int
    an_hour: float
    seconds: float
    base: float = 0.0
    clump: int = 1
    """Bad requests come in so many at once: the attempts of a client, or the rows of one user."""
    warming: Rates | None = None


@dataclass(frozen=True)
class Traffic:
    rps: float
    canary: Fleet
    stable: Fleet
    latency: bool = False
    """Bad requests are slow; else they fail."""
    load: Callable[[Array], Array] | None = None
    """Seconds since the ramp began → factor of the traffic."""
    shared: tuple[float, float, float] | None = None
    """From, to (seconds), and the share of all requests that fail meanwhile, on both releases alike."""


@dataclass(frozen=True)
class Ends:
    """Seconds of the rejection and of the promotion of each run; infinite without one."""

    rejected: Array
    promoted: Array
    bad: Array
    """The canary's bad requests until then."""


def pauses(rng: np.random.Generator, runs: int, windows: int, seconds: float, fleet: Fleet) -> Array:
    """The part of a fleet's time that was a pause, by window."""
    lost = np.zeros((runs, windows))
    number = rng.poisson(fleet.servers * fleet.an_hour * (windows * seconds + fleet.seconds) / 3600, runs)
    run = np.repeat(np.arange(runs), number)
    start = rng.uniform(-fleet.seconds, windows * seconds, len(run))
    for later in range(int(fleet.seconds // seconds) + 2):
        window = np.floor(start / seconds).astype(int) + later
        low, high = (
            np.maximum(start, window * seconds),
            np.minimum(start + fleet.seconds, (window + 1) * seconds),
        )
        hit = (high > low) & (window >= 0) & (window < windows)
        np.add.at(lost, (run[hit], window[hit]), (high - low)[hit])
    return np.minimum(lost / (fleet.servers * seconds), 1.0)


def ramp(
    rng: np.random.Generator, runs: int, traffic: Traffic, policy: PromotionPolicy, minutes: float = 40
) -> Ends:
    """Walk `runs` promotions through the policy's steps; who is not certified stays at the last of them."""
    portions = [min(AT_ONCE, runs - start) for start in range(0, runs, AT_ONCE)]
    parts = [_ramp(rng, some, traffic, policy, minutes) for some in portions]
    return Ends(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Ends)))


def _ramp(
    rng: np.random.Generator, runs: int, traffic: Traffic, policy: PromotionPolicy, minutes: float
) -> Ends:
    seconds = policy.window_seconds
    windows = int(minutes * 60 / seconds)
    lost = [pauses(rng, runs, windows, seconds, fleet) for fleet in (traffic.canary, traffic.stable)]
    column = np.arange(windows)
    weight, begun = np.full((runs, windows), float(policy.steps[0])), np.zeros((runs, windows))
    counts = _draw(rng, traffic, seconds, weight, lost, begun)
    rejected, promoted, bad = (np.full(runs, np.inf) for _ in range(3))
    for step, following in zip(policy.steps[:-1], policy.steps[1:], strict=True):
        counted = _tally(policy, traffic, weight, *counts)
        followed = path(counted)
        evidence = combined(policy, {"latency" if traffic.latency else "errors": _gate(traffic, followed)})
        last = step == last_proving_step(policy)
        proven = certified(policy, counted) if last else np.ones_like(weight, dtype=bool)
        leave = _first(passed(policy, counted, followed, evidence, proven) & (weight == step))
        reject = np.minimum(_first(evidence >= rejection(policy)), windows * 2.0)
        out = (reject <= leave) & (reject <= windows) & np.isinf(rejected)
        rejected[out] = reject[out] * seconds
        failed = np.cumsum(counts[1], axis=1)
        bad[out] = failed[out, (reject[out] - 1).astype(int)]
        leave = np.where(np.isfinite(rejected), np.inf, leave)
        if last:
            promoted = leave * seconds
            break
        new = column >= leave[:, None]
        weight = np.where(new, float(following), weight)
        begun = np.where(new, leave[:, None] * seconds, begun)
        fresh = _draw(rng, traffic, seconds, weight, lost, begun)
        counts = [np.where(new, now, was) for now, was in zip(fresh, counts, strict=True)]
    return Ends(rejected, promoted, bad)


def _gate(traffic: Traffic, followed: Path) -> Array:
    return followed.latency if traffic.latency else followed.errors


def _draw(
    rng: np.random.Generator,
    traffic: Traffic,
    seconds: float,
    weight: Array,
    lost: list[Array],
    begun: Array,
) -> list[Array]:
    """Requests and bad ones of the canary and of the stable, by window."""
    now = np.arange(weight.shape[1]) * seconds
    rate = traffic.rps * seconds * (traffic.load(now) if traffic.load is not None else np.ones(len(now)))
    drawn = []
    for part, paused, fleet in (
        (weight / 100, lost[0], traffic.canary),
        (1 - weight / 100, lost[1], traffic.stable),
    ):
        mean = rate * part
        bad, good = rng.poisson(mean * paused), rng.poisson(mean * (1 - paused))
        likely = np.full_like(mean, fleet.base)
        if fleet.warming is not None:
            likely = np.maximum(likely, fleet.warming(now - begun))
        if traffic.shared is not None:
            start, end, share = traffic.shared
            likely = np.where((now >= start) & (now < end), np.maximum(likely, share), likely)
        if fleet.clump > 1:
            more = np.minimum(fleet.clump * rng.poisson(good * likely / fleet.clump), good)
        else:
            more = rng.binomial(good, likely)
        drawn += [(bad + good).astype(float), (bad + more).astype(float)]
    return drawn


def _tally(
    policy: PromotionPolicy,
    traffic: Traffic,
    weight: Array,
    canary: Array,
    bad: Array,
    stable: Array,
    bad_stable: Array,
) -> Tally:
    slow = [one[..., None] if traffic.latency else np.zeros((*one.shape, 0)) for one in (bad, bad_stable)]
    failed = [np.zeros_like(one) if traffic.latency else one for one in (bad, bad_stable)]
    return Tally(
        np.full_like(weight, policy.window_seconds),
        weight,
        canary,
        failed[0],
        stable,
        failed[1],
        canary,
        stable,
        *slow,
        ((0.1, 0.1),) if traffic.latency else (),
        None,
        policy.pause_seconds,
        warm_up(policy),
    )


def _first(events: NDArray[np.bool_]) -> Array:
    """One-based index of the first event of each run; infinite without one."""
    return np.where(events.any(axis=-1), events.argmax(axis=-1) + 1.0, np.inf)
