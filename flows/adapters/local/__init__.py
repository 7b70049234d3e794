"""The local platform: release servers under supervision, Envoy as the data plane.

The same promises as on Kubernetes: a release is started once and never changed; only the route moves.
One server a release, whatever `resources.replicas` says: this is one machine.

Belongs here: server processes, Envoy's files, and reading back what it serves. May not: supervise processes
itself; it is given what does. The way in is `LocalPlatform`.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx

from flows.adapters.local import commands, loopback
from flows.adapters.local.gateway import Gateway
from flows.adapters.local.records import Record, Records
from flows.domain.errors import DependencyDown, ReleaseNotReady
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec
from flows.settings import LOOPBACK, Settings

__all__ = ["LocalPlatform", "Supervision"]

POLL_SECONDS = 0.05
TRIES = 3
"""A server that has ended this often while it was starting will not become ready."""
GRACE_SECONDS = 10
"""What a server gets beyond its own drain before it is killed."""


class Supervision(Protocol):
    """What keeps programs alive (`flows.adapters.stack.Supervisor`)."""

    @property
    def mark(self) -> Mapping[str, str]:
        """Environment variables by which the stack's processes are found."""

    def define(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        stop_seconds: float = 10,
    ) -> None: ...

    def load(self, names: Sequence[str]) -> None: ...

    def start(self, name: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def state(self, name: str) -> Any: ...

    def starts(self, name: str) -> Any: ...

    def cause(self, name: str) -> str: ...

    def log(self, name: str) -> Path: ...


class LocalPlatform:
    """`Platform` on one machine; the stack must be up."""

    def __init__(
        self,
        settings: Settings,
        supervision: Supervision,
        *,
        containers: commands.Containers | None = None,
        interpreter: Callable[[Release], str] | None = None,
        patience: float = 15,
    ) -> None:
        """`containers`: how a release's image is run; needed with another runtime than `process`.

        `interpreter`: the Python of a release's process, where it is not that of the settings.
        `patience`: seconds that the gateway may take to serve what it was given.
        """
        if settings.runtime != "process" and containers is None:
            raise ValueError(f"runtime {settings.runtime} needs to know how a release's image is run")
        self._containers = containers if settings.runtime != "process" else None
        self._interpreter = interpreter
        self._settings = settings
        self._supervision = supervision
        self._records = Records(settings.releases_folder, settings.ports.releases)
        self._gateway = Gateway(
            settings.gateway_folder,
            f"http://{LOOPBACK}:{settings.ports.gateway_admin}",
            timeout=settings.gateway_timeout_seconds,
            patience=patience,
            shown=settings.gateway_shows,
        )

    def start(self, release: Release, spec: ModelSpec, *, takes_over: bool = False) -> None:
        """Start the server and wait until `/readyz` says 200, at most `resources.start_seconds`.

        Every release has one server here, so who takes over is as large as who gives.
        """
        del takes_over
        known = self._records.get(release.name)
        if known is not None and known.sha256 == release.sha256 and self._runs_well(known):
            return
        record = self._records.claim(release, spec.resources.drain_seconds)
        variables = commands.environment(self._settings, release, spec, record)
        try:
            command = self._command(release, variables)
            self._supervision.define(
                release.name,
                command,
                variables,
                folder=self._settings.repository,
                stop_seconds=commands.DRAIN_SECONDS + GRACE_SECONDS,
            )
            self._supervision.load([release.name])
            self._supervision.start(release.name)
            self._scrape(record)
            self._gateway.offer(self._ports())
            self._await(record, spec.resources.start_seconds)
        except BaseException:
            if known is None:
                # Nothing serves from it yet. A release that had servers before stays under supervision.
                self._remove(release.name)
            raise

    def stop(self, release: Release) -> None:
        """Wait for the gateway's requests to be answered, then stop the server and forget it."""
        record = self._records.get(release.name)
        if record is None:
            return
        deadline = time.monotonic() + record.drain_seconds
        if self._is_out_of_route(release):
            while self._gateway.busy(release.name) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        self._remove(release.name)

    def route(self, model: str, routes: Routes) -> None:
        """Set the whole route. Raises ReleaseNotReady when it names a release without servers."""
        ports = self._ports()
        named = {*routes.weights, *(match.release for match in routes.matches)}
        if routes.mirror is not None:
            named.add(routes.mirror.release)
        if missing := sorted(named - set(ports)):
            raise ReleaseNotReady(f"{', '.join(missing)} has no servers here; start it before routing to it")
        self._gateway.serve(model, routes, ports)

    def routes(self, model: str) -> Routes:
        return self._gateway.routes(model)

    def url(self, release: Release) -> str:
        record = self._records.get(release.name)
        if record is None:
            raise ReleaseNotReady(f"{release.name} has no servers here; start it first")
        return record.url

    def log(self, release: Release, last: int) -> list[str]:
        """Also of a server that has ended: its file stays."""
        try:
            with self._supervision.log(release.name).open(errors="replace") as lines:
                return [line.rstrip("\n") for line in deque(lines, maxlen=last)]
        except FileNotFoundError:
            return []

    def settle(self, model: str) -> None:
        """One server a release: nothing is pinned here."""

    def running(self) -> frozenset[str]:
        return frozenset(record.release for record in self._records.all())

    # -------------------------------------------------------------------------------------------------

    def _command(self, release: Release, variables: Mapping[str, str]) -> list[str]:
        if self._containers is None:
            return commands.process(
                self._settings.python if self._interpreter is None else self._interpreter(release)
            )
        commands.prepare_container(self._settings)
        mark = self._supervision.mark
        return commands.container(self._settings, release, self._containers, variables, mark)

    def _ports(self) -> dict[str, int]:
        return {record.release: record.port for record in self._records.all()}

    def _is_out_of_route(self, release: Release) -> bool:
        """Waiting only makes sense when no new requests arrive."""
        try:
            return self._gateway.routes(release.model).weight(release.name) == 0
        except DependencyDown:
            return False

    def _remove(self, name: str) -> None:
        self._supervision.remove(name)
        self._records.forget(name)
        self._scrape_file(name).unlink(missing_ok=True)
        self._gateway.offer(self._ports())

    def _runs_well(self, record: Record) -> bool:
        """It serves: then it is left alone, also when this program would start it differently by now. A
        rollback calls `start` on the release that users are about to need."""
        state = self._supervision.state(record.release)
        return state is not None and state.state == "RUNNING" and _unready(record.url) is None

    def _await(self, record: Record, seconds: float) -> None:
        begun = time.monotonic()
        starts = self._supervision.starts(record.release)
        while True:
            problem = _unready(record.url)
            if problem is None:
                return
            ended = starts.ended()
            waited = time.monotonic() - begun
            if ended >= TRIES or waited > seconds:
                what = f"ended {ended} times while starting" if ended >= TRIES else f"is not ready: {problem}"
                said = self._supervision.cause(record.release) or "nothing"
                raise ReleaseNotReady(
                    f"{record.release} {what} (after {waited:.0f} s of {seconds:g} s); its log says: {said}; "
                    f"the rest: modelserve logs {record.model} {record.version}"
                )
            time.sleep(POLL_SECONDS)

    def _scrape(self, record: Record) -> None:
        """Tell Prometheus where the server is."""
        file = self._scrape_file(record.release)
        labels = {"release": record.release, "model": record.model, "version": str(record.version)}
        group = [{"targets": [f"{LOOPBACK}:{record.port}"], "labels": labels}]
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{record.release}.{os.getpid()}")
        temporary.write_text(json.dumps(group))
        temporary.replace(file)

    def _scrape_file(self, name: str) -> Path:
        return self._settings.scrape_folder / f"{name}.json"


def _unready(url: str) -> str | None:
    """Why the server is not ready; None when it is."""
    try:
        answer = loopback.get(f"{url}/readyz")
    except httpx.HTTPError as error:
        return f"{url} does not answer ({type(error).__name__})"
    if answer.status_code == 200:
        return None
    return f"/readyz says {answer.status_code} {' '.join(answer.text.split())[:200]}"
