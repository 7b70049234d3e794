"""Counters as gateways and servers would show them, moved on by simulated traffic.

The world's edge is what is simulated: a `Snapshot` as the Prometheus adapter hands it over. Everything after
that (differences, windows, verdicts) is the real code.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from flows.domain.judge.counters import Series, Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window, unobserved

CANARY, STABLE = "flights-v2", "flights-v1"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
BINS = ("le_0.2", "le_0.4", "le_0.6", "le_0.8", "le_1")
START = 1_700_000_000.0


@dataclass
class Arm:
    """How one release behaves."""

    error_rate: float = 0.005
    median_seconds: float = 0.02
    bins: tuple[float, ...] = (0.4, 0.3, 0.15, 0.1, 0.05)
    hits: float = 0.0
    """Share of the requests whose answer is known already, at once (`hit_seconds`)."""
    hit_seconds: float = 0.002
    queue_seconds: float = 0.0
    """What every request waits in the proxy before the server."""
    up: bool = True
    """False: its servers are gone, and the gateway answers 503 for them."""


@dataclass
class Traffic:
    """Two releases behind some gateways; `applied` is the percentage that really goes to the canary."""

    rng: np.random.Generator
    rps: float = 10.0
    canary: Arm = field(default_factory=Arm)
    stable: Arm | None = field(default_factory=Arm)
    gateways: tuple[str, ...] = ("gateway-a", "gateway-b")
    applied: float = 0.0
    now: float = START
    counters: defaultdict[Series, float] = field(default_factory=lambda: defaultdict(float))

    def run(self, seconds: float) -> None:
        self.now += seconds
        for gateway in self.gateways:
            total = int(self.rng.poisson(self.rps * seconds / len(self.gateways)))
            if self.stable is None:
                self._serve(CANARY, self.canary, gateway, total if self.applied else 0)
                continue
            canary = int(self.rng.binomial(total, self.applied / 100))
            self._serve(CANARY, self.canary, gateway, canary)
            self._serve(STABLE, self.stable, gateway, total - canary)

    def _serve(self, release: str, arm: Arm, gateway: str, requests: int) -> None:
        errors = requests if not arm.up else int(self.rng.binomial(requests, arm.error_rate))
        self._add("requests", release, "5", gateway, errors)
        self._add("requests", release, "2", gateway, requests - errors)
        timed = requests if arm.up else 0
        hits = int(self.rng.binomial(timed, arm.hits)) if arm.hits else 0
        known = arm.queue_seconds + self.rng.lognormal(np.log(arm.hit_seconds), 0.7, hits)
        computed = arm.queue_seconds + self.rng.lognormal(np.log(arm.median_seconds), 0.7, timed - hits)
        for bound in (*BOUNDS, np.inf):
            label = repr(float(bound))
            below = int((known <= bound).sum())
            self._add("latency", release, label, gateway, below + int((computed <= bound).sum()))
            if arm.hits:
                self._add("cached", release, label, gateway, below)
        if arm.up:
            server = f"{release}-{gateway[-1]}"
            for name, count in zip(BINS, self.rng.multinomial(requests, arm.bins), strict=True):
                self._add("outputs", release, name, server, int(count))
            self._add("served", release, "5", server, errors)
            self._add("served", release, "2", server, requests - errors)

    def _add(self, kind: str, release: str, label: str, pod: str, amount: int) -> None:
        self.counters[Series(kind, release, label, pod)] += amount

    def restart(self, gateway: str) -> None:
        """Its counters begin again at zero."""
        for series in self.counters:
            if series.pod == gateway:
                self.counters[series] = 0.0

    def snapshot(self, earlier: Snapshot | None = None) -> Snapshot:
        down = {name for name, arm in ((CANARY, self.canary), (STABLE, self.stable)) if arm and not arm.up}
        shown = {
            series: value
            for series, value in self.counters.items()
            if series.kind in ("requests", "latency", "cached") or series.release not in down
        }
        return Snapshot(self.now, shown, dict.fromkeys(self.gateways, self.now)).after(earlier)


@dataclass
class Promotion:
    """The flow's loop: shift, wait, count, judge, until it ends or the minutes are over."""

    policy: PromotionPolicy
    traffic: Traffic
    windows: list[Window] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    weight: int = 0
    blind: tuple[tuple[float, float], ...] = ()
    """Times (seconds from the start) in which Prometheus does not answer."""
    mesh: bool = True
    """False: the mesh does not apply the weights that are written."""
    restart_every: int = 0
    """A gateway's counters begin again every so many windows; 0: never."""
    _before: Snapshot | None = None

    def run(self, minutes: float) -> str:
        """How it ended: promoted, rollback, keep, or open."""
        self._shift(self.policy.steps[0])
        while self.traffic.now < START + 60 * minutes:
            verdict = self.step()
            if verdict.outcome in ("rollback", "keep"):
                return verdict.outcome
            if verdict.outcome == "advance":
                if self.weight == 100:
                    return "promoted"
                self._shift(self.policy.steps[self.policy.steps.index(self.weight) + 1])
        return "open"

    def step(self) -> Verdict:
        """One more window at the same weight, whatever is said of it."""
        before = self._before or self.traffic.snapshot()
        if self.restart_every and len(self.windows) % self.restart_every == self.restart_every - 1:
            self.traffic.restart(self.traffic.gateways[0])
        self.traffic.run(self.policy.window_seconds)
        window = self._window(before)
        self._before = self.traffic.snapshot(before) if window.observed else before
        self.windows.append(window)
        self.verdicts.append(judge(self.policy, self.windows))
        return self.verdicts[-1]

    def _window(self, before: Snapshot) -> Window:
        if any(first <= self.traffic.now - START < last for first, last in self.blind):
            return unobserved(before.at, self.traffic.now, self.weight, "Prometheus does not answer")
        after = self.traffic.snapshot(before)
        stable = STABLE if self.traffic.stable else None
        return difference(before, after, CANARY, stable, self.weight)

    def _shift(self, weight: int) -> None:
        self.weight = weight
        if self.mesh:
            self.traffic.applied = weight
