"""Envoy as the data plane, told what to do by two files that are renamed into the folder it watches.

The files are the memory of the data plane: they survive a restart, and writers in several processes take
turns by a file lock and change nothing but their own model's entries. A write is finished when Envoy's
`/config_dump` shows it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from flows.adapters.local import envoy, loopback
from flows.adapters.local.envoy import Entry
from flows.domain.errors import DependencyDown, RouteConflict
from flows.domain.routes import Routes

CLUSTERS, ROUTES = "clusters.json", "routes.json"
CLUSTERS_DUMP = "type.googleapis.com/envoy.admin.v3.ClustersConfigDump"
ROUTES_DUMP = "type.googleapis.com/envoy.admin.v3.RoutesConfigDump"
POLL_SECONDS = 0.02
NEVER_SET_UP = "the gateway was never set up; start the stack with `modelserve up`"


class Gateway:
    """One Envoy: its two files and its admin interface."""

    def __init__(
        self,
        folder: Path,
        admin_url: str,
        *,
        timeout: float = 60,
        patience: float = 15,
        shown: Sequence[str] = (),
    ) -> None:
        """`timeout`: seconds a release may take to answer. `patience`: seconds Envoy may take to follow.
        `shown`: paths of servers that users see beside those for users."""
        self._shown = shown
        self._folder = folder
        self._admin = admin_url
        self._timeout = timeout
        self._patience = patience

    def serve(self, model: str, routes: Routes, ports: Mapping[str, int]) -> None:
        """Serve this route. `ports` maps every release that has servers to its port on this machine.

        Clusters come before the routes that name them and go after: no request meets a missing one.
        Raises DependencyDown when Envoy does not follow; the files then already say what it shall serve.
        """
        entries = envoy.entries_of(model, routes, self._timeout, self._shown)
        with self._turn():
            present = self._read(ROUTES)
            wanted = envoy.replaced(_entries(present), model, entries)
            named = envoy.clusters_named_in(wanted)
            with self._undone_when_refused():
                self._write_clusters(ports, named | envoy.clusters_named_in(_entries(present)))
                self._write_routes(present, wanted)
                self._until(lambda: self._follows(model, routes), f"the route of {model}")
                self._write_clusters(ports, named)

    def offer(self, ports: Mapping[str, int]) -> None:
        """Know the clusters of these releases, and forget those of others that no route names."""
        with self._turn():
            self._write_clusters(ports, envoy.clusters_named_in(_entries(self._read(ROUTES))))

    def routes(self, model: str) -> Routes:
        """What Envoy serves now. Raises RouteConflict for an edit by hand that is no route of ours."""
        return envoy.routes_in(model, self._served())

    def busy(self, release: str) -> int:
        """Requests that this release is answering now; 0 when the gateway does not answer."""
        clusters = release, release + envoy.ASIDE_SUFFIX
        names = [f"cluster.{cluster}.upstream_rq_active" for cluster in clusters]
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
            wanted = {"filter": f"^({'|'.join(names)})$", "format": "json"}
            stats = self._get("/stats", wanted).json()["stats"]
            return sum(int(stat["value"]) for stat in stats if stat.get("name") in names)
        return 0

    # -- files ----------------------------------------------------------------------------------------

    def _write_clusters(self, ports: Mapping[str, int], named: set[str]) -> None:
        present = self._read(CLUSTERS)
        kept = {entry["name"]: entry for entry in present["resources"] if entry["name"] in named}
        offered = {name: envoy.cluster(name, "127.0.0.1", port) for name, port in ports.items()}
        asides = {
            name: envoy.cluster(name, "127.0.0.1", ports[release])
            for name in named
            if name.endswith(envoy.ASIDE_SUFFIX)
            and (release := name.removesuffix(envoy.ASIDE_SUFFIX)) in ports
        }
        clusters = [entry for _, entry in sorted({**kept, **offered, **asides}.items())]
        if clusters == present["resources"]:
            return
        document = _versioned({"resources": clusters})
        self._replace(CLUSTERS, document)

        if self._answers():

            def followed() -> bool:
                dump = self._dump(CLUSTERS_DUMP).get("dynamic_active_clusters", [])
                served = {_upstream(entry["cluster"]) for entry in dump}
                return served == {_upstream(entry) for entry in clusters}

            self._until(followed, "the clusters")

    def _write_routes(self, present: Entry, entries: list[Entry]) -> None:
        if entries == _entries(present):
            return
        document = json.loads(json.dumps(present))
        document["resources"][0]["virtual_hosts"][0]["routes"] = entries
        self._replace(ROUTES, _versioned(document))

    def _read(self, name: str) -> Entry:
        try:
            document: Entry = json.loads((self._folder / name).read_text())
        except FileNotFoundError as error:
            raise DependencyDown(NEVER_SET_UP) from error
        except ValueError as error:
            raise RouteConflict(
                f"{self._folder / name} was edited into something that is not JSON ({error}); put it right"
            ) from error
        return document

    def _replace(self, name: str, document: Entry) -> None:
        """Rename into place: Envoy reacts to moves, and never sees half a file."""
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._folder / name)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One writer at a time, over all processes of this machine."""
        try:
            file = (self._folder / ".lock").open("w")
        except FileNotFoundError as error:
            raise DependencyDown(NEVER_SET_UP) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _undone_when_refused(self) -> Iterator[None]:
        """Put the files back when a living Envoy does not take them: it must be able to start from them.

        When Envoy is away they stay: it will start with what was wanted last.
        """
        former = {name: self._read(name) for name in (CLUSTERS, ROUTES)}
        try:
            yield
        except DependencyDown:
            if self._answers():
                for name, document in former.items():
                    self._replace(name, document)
            raise

    # -- Envoy ----------------------------------------------------------------------------------------

    def _follows(self, model: str, routes: Routes) -> bool:
        served = self._served()
        names = [entry["name"] for entry in envoy.entries_of(model, routes, self._timeout, self._shown)]
        try:
            same = envoy.routes_in(model, served) == routes
        except RouteConflict:
            return False
        return same and [entry["name"] for entry in served if envoy.is_of(model, entry)] == names

    def _answers(self) -> bool:
        try:
            return self._get("/ready", {}).status_code == 200
        except httpx.HTTPError:
            return False

    def _served(self) -> list[Entry]:
        entries: list[Entry] = []
        for config in self._dump(ROUTES_DUMP).get("dynamic_route_configs", []):
            for host in config["route_config"].get("virtual_hosts", []):
                entries.extend(host.get("routes", []))
        return entries

    def _dump(self, kind: str) -> Entry:
        try:
            configs = self._get("/config_dump", {}).json()["configs"]
        except (httpx.HTTPError, ValueError) as error:
            raise DependencyDown(
                f"the gateway does not answer at {self._admin} ({error}); see `modelserve status`"
            ) from error
        return next((config for config in configs if config["@type"] == kind), {})

    def _get(self, path: str, query: Mapping[str, str]) -> httpx.Response:
        return loopback.get(self._admin + path, query).raise_for_status()

    def _until(self, followed: Callable[[], bool], what: str) -> None:
        """Wait until Envoy shows it; an Envoy that is just being restarted gets its time, too."""
        deadline = time.monotonic() + self._patience
        while True:
            down: DependencyDown | None = None
            try:
                if followed():
                    return
            except DependencyDown as error:
                down = error
            if time.monotonic() > deadline:
                raise down or DependencyDown(
                    f"the gateway does not take over {what} from {self._folder} after {self._patience:g} s; "
                    "its log says why"
                )
            time.sleep(POLL_SECONDS)


def _entries(document: Mapping[str, Any]) -> list[Entry]:
    entries: list[Entry] = document["resources"][0]["virtual_hosts"][0]["routes"]
    return entries


def _upstream(cluster: Mapping[str, Any]) -> tuple[str, int]:
    """Name and port; port 0 for a cluster of somebody else's shape."""
    try:
        return cluster["name"], envoy.cluster_port(cluster)
    except (KeyError, IndexError):
        return cluster["name"], 0


def _versioned(document: Entry) -> Entry:
    content = {key: value for key, value in document.items() if key != "version_info"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return {"version_info": digest, **content}
