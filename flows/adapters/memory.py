"""A platform in memory: what flows are tested against. It keeps state and breaks on demand."""

from __future__ import annotations

import threading

from flows.domain.errors import ReleaseNotReady
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec


class MemoryPlatform:
    """`Platform` without processes.

    `broken` names releases that never become ready. `fail` holds an error that the next call of a method
    raises instead of acting: `fail["route"] = DependencyDown(...)`. `changes` lists every route that was
    set, in order; `takers` every release that was started to take over from everybody.
    """

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.fail: dict[str, Exception] = {}
        self.takers: list[str] = []
        self.changes: list[tuple[str, Routes]] = []
        self._releases: dict[str, Release] = {}
        self._routes: dict[str, Routes] = {}
        self._lock = threading.RLock()

    def start(self, release: Release, spec: ModelSpec, *, takes_over: bool = False) -> None:
        with self._lock:
            self._maybe_fail("start")
            if release.name in self.broken:
                seconds = spec.resources.start_seconds
                raise ReleaseNotReady(f"{release.name} is not ready: broken on purpose (of {seconds:g} s)")
            self._releases[release.name] = release
            if takes_over:
                self.takers.append(release.name)

    def stop(self, release: Release) -> None:
        with self._lock:
            self._maybe_fail("stop")
            self._releases.pop(release.name, None)

    def route(self, model: str, routes: Routes) -> None:
        with self._lock:
            self._maybe_fail("route")
            named = {*routes.weights, *(match.release for match in routes.matches)}
            if routes.mirror is not None:
                named.add(routes.mirror.release)
            if missing := sorted(named - set(self._releases)):
                raise ReleaseNotReady(f"{', '.join(missing)} has no servers; start it before routing to it")
            self._routes[model] = routes
            self.changes.append((model, routes))

    def routes(self, model: str) -> Routes:
        with self._lock:
            self._maybe_fail("routes")
            return self._routes.get(model, Routes())

    def settle(self, model: str) -> None:
        """Nothing is pinned here."""

    def url(self, release: Release) -> str:
        with self._lock:
            self._maybe_fail("url")
            if release.name not in self._releases:
                raise ReleaseNotReady(f"{release.name} has no servers; start it first")
            return f"memory://{release.name}"

    def log(self, release: Release, last: int) -> list[str]:
        with self._lock:
            self._maybe_fail("log")
            return [f"{release.name} is in memory"][:last] if release.name in self._releases else []

    def running(self) -> frozenset[str]:
        with self._lock:
            self._maybe_fail("running")
            return frozenset(self._releases)

    def _maybe_fail(self, method: str) -> None:
        error = self.fail.pop(method, None)
        if error is not None:
            raise error
