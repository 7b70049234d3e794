"""A promotion, and where a model stands: the rows that decide who gets the traffic.

`Standing` is read from the registry in one go; what the route must be, and where a rollback leads, follow
from it alone. That is why a flow, an alert, a sweep and a person can all call the same `restore`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from flows.domain.errors import ReleaseUnknown
from flows.domain.release import Phase, Release
from flows.domain.routes import Routes, split


class State(StrEnum):
    RUNNING = "running"
    WATCHING = "watching"
    """At 100 % and stable; the previous release stays warm while the new one is still watched."""
    PROMOTED = "promoted"
    REJECTED = "rejected"
    """The evidence spoke against the release: the judge, an alert, an integration sample, the scan."""
    FAILED = "failed"
    """Something of ours broke; nothing was learnt about the release."""
    ABORTED = "aborted"
    """A person or a newer rollback ended it."""
    KEPT = "kept"
    """The deadline came without proof and the policy keeps the canary at its weight."""
    UNPROVEN = "unproven"
    """The deadline came without proof, and nothing spoke against the release. The traffic went back to the
    stable; a release that nothing precedes stays. It may be promoted again."""


WITHOUT_PROOF = frozenset({State.KEPT, State.UNPROVEN})
"""Ends that say nothing for the release and nothing against it."""


@dataclass(frozen=True)
class Promotion:
    id: str
    model: str
    version: int
    run: str
    """The id of the Prefect flow run that drives it; a new run that takes over replaces it."""
    state: State
    paused: bool
    weight: int
    reason: str | None
    started_at: datetime
    deadline: datetime
    lease_until: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class Retreat:
    """A rollback with its end in sight: who leaves, who gets the traffic (None: nobody, 503)."""

    leaves: int | None
    """None: nobody served, and `target` is brought back."""
    target: int | None
    state: State
    """What the open promotion, if there is one, ends as."""
    reason: str


@dataclass(frozen=True)
class Standing:
    """One model's rows, read at one moment."""

    model: str
    releases: tuple[Release, ...]
    """In service, or meant by the open promotion or the retreat; in the order of their versions."""
    promotion: Promotion | None
    """The open one."""
    retreat: Retreat | None
    route: Routes
    """What we last meant the data plane to serve."""
    frozen: str | None

    def _in_phase(self, phase: Phase) -> Release | None:
        return next((release for release in self.releases if release.phase is phase), None)

    @property
    def stable(self) -> Release | None:
        return self._in_phase(Phase.STABLE)

    @property
    def canary(self) -> Release | None:
        return self._in_phase(Phase.CANARY)

    @property
    def previous(self) -> Release | None:
        return self._in_phase(Phase.PREVIOUS)

    def version(self, version: int) -> Release:
        """One of `releases`. Raises ReleaseUnknown."""
        for release in self.releases:
            if release.version == version:
                return release
        raise ReleaseUnknown(f"{self.model} v{version} is not in service")


def unpreceded(standing: Standing) -> bool:
    """Whether a first release serves everybody and is being watched: nobody else would answer."""
    running = standing.promotion is not None and standing.promotion.state is State.RUNNING
    everybody = standing.promotion is not None and standing.promotion.weight == 100
    alone = standing.canary is not None and standing.stable is None and standing.retreat is None
    return running and everybody and alone


def ramp(standing: Standing, weight: int) -> Routes:
    """The route of a running promotion at `weight` % for the canary."""
    assert standing.canary is not None
    stable = standing.stable.name if standing.stable else None
    return _with_warm(split(stable, standing.canary.name, weight), standing.canary)


def settled(stable: Release | None, previous: Release | None = None, hold_back: int = 0) -> Routes:
    """The route when no canary runs: all to the stable, less `hold_back` % for a warm previous release."""
    if stable is None:
        return Routes()
    if previous is None:
        return Routes({stable.name: 100})
    return Routes({stable.name: 100 - hold_back, previous.name: hold_back})


def due(standing: Standing, hold_back: int = 0) -> Routes:
    """The route that the registry's rows call for now.

    An unsettled retreat wins over a promotion; a promotion's recorded weight wins over the plain stable.
    """
    if standing.retreat is not None:
        target = standing.retreat.target
        return settled(None if target is None else standing.version(target))
    if standing.promotion is not None and standing.canary is not None:
        return ramp(standing, standing.promotion.weight)
    if standing.canary is not None:
        return standing.route  # kept at its weight by the policy, or by a person
    watching = standing.promotion is not None and standing.promotion.state is State.WATCHING
    return settled(standing.stable, standing.previous, hold_back if watching else 0)


def newest(standing: Standing) -> Release | None:
    """The newest release in service: the one that a rollback takes out."""
    return standing.canary or standing.stable


def plan_retreat(
    standing: Standing, state: State, reason: str, to: int | None = None, *, last: bool = False
) -> Retreat | None:
    """Where a rollback leads; None when there is nothing to roll back.

    A canary leaves for the stable. Without one the stable leaves for the previous release, or for `to`. A
    first release that is still a canary leaves for nobody: no answer is better than a harmful one, and nobody
    has relied on it yet. One that is stable and has nothing behind it leaves for nobody only with `last`.
    Where nobody serves, `to` is brought back; whoever names it has looked it up. Missing proof alone
    (`UNPROVEN`) takes out no only release.
    """
    leaving = newest(standing)
    if leaving is None:
        return None if to is None else Retreat(None, to, state, reason)
    running = standing.promotion is not None and standing.promotion.state is State.RUNNING
    if running and standing.canary is None:
        return None  # its canary has left already: the stable is not to blame
    heir = standing.stable if standing.canary is not None else standing.previous
    target = to if to is not None or heir is None else heir.version
    if target == leaving.version or (target is None and standing.canary is None and not last):
        return None
    if target is None and state is State.UNPROVEN:
        return None
    return Retreat(leaving.version, target, state, reason)


def plan_emptying(standing: Standing, reason: str) -> Retreat | None:
    """Take the model out: nobody answers afterwards, previous release or not. None when nobody serves."""
    leaving = newest(standing)
    return None if leaving is None else Retreat(leaving.version, None, State.ABORTED, reason)


def _with_warm(routes: Routes, canary: Release) -> Routes:
    """A canary at weight 0 stays in the map, so that the override header reaches it."""
    if canary.name in routes.weights or not routes.weights:
        return routes
    return Routes({**routes.weights, canary.name: 0}, routes.matches, routes.mirror)
