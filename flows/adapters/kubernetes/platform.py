"""The `Platform` on Kubernetes with Istio: starts a release's objects, sets the model's VirtualService.

Translates, never decides: what the objects look like is `flows.domain.cluster` (`manifests` and `mesh`), who
gets traffic is the flows' business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from flows.adapters.kubernetes.api import Api, Conflict
from flows.adapters.kubernetes.autoscalers import Autoscalers, pinned_from
from flows.adapters.kubernetes.connection import connect
from flows.adapters.kubernetes.objects import (
    entries_of,
    holds,
    image_of,
    is_ours,
    owner_reference,
    replicas_of,
    serves,
)
from flows.adapters.kubernetes.readiness import Readiness
from flows.adapters.kubernetes.skeletons import read_skeletons
from flows.domain.cluster import mesh
from flows.domain.cluster.manifests import (
    ENTRY_LABEL,
    MANAGED_BY,
    MANAGER,
    MODEL_LABEL,
    PORT,
    RELEASE_LABEL,
    ROUTED_ANNOTATION,
    SHA256_ANNOTATION,
    Cluster,
    Manifest,
    aside_name,
    release_manifests,
    scales_to_zero,
)
from flows.domain.errors import DependencyDown, ReleaseExists, ReleaseNotReady, RouteConflict
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec

ROUTE_TRIES = 8
MESH_SECONDS = 15.0
"""How long a gateway may go on with an old route. istiod collects changes for up to 10 s
(PILOT_DEBOUNCE_MAX) and pushes clusters before routes: a Service that is deleted sooner is an empty 503 for
whoever is still sent to it."""
OWN_KINDS = (
    "ScaledObject",
    "InterceptorRoute",
    "HorizontalPodAutoscaler",
    "DestinationRule",
    "PodDisruptionBudget",
    "Service",
    "Deployment",
)
"""In the order of removal: first whoever could scale up again, last the servers."""


class KubernetesPlatform:
    """See `flows.domain.platform.Platform`. One instance may be used by several threads in turn.

    Without arguments it uses the credentials that kubectl would and the names that `k8s/` sets up.
    `clock`, `sleep` and `now` (Unix time) are in seconds. `poll_seconds` is how often a starting release is
    looked at.
    """

    def __init__(
        self,
        api: Api | None = None,
        cluster: Cluster | None = None,
        skeletons: Mapping[str, Any] | None = None,
        poll_seconds: float = 2,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster or Cluster()
        self._api = api or Api(connect, self._cluster.namespace)
        self._skeletons = read_skeletons() if skeletons is None else skeletons
        self._autoscalers = Autoscalers(self._api)
        self._readiness = Readiness(self._api, self._cluster, poll_seconds, clock, sleep)
        self._sleep = sleep
        self._now = now

    def close(self) -> None:
        """Give the connections back; the next call opens new ones."""
        self._api.close()

    # -- servers

    def start(self, release: Release, spec: ModelSpec, *, takes_over: bool = False) -> None:
        """Create or wake the release's servers and wait until they serve.

        Releases of the model that serve now are pinned first, so that they can take the traffic back.
        Raises ReleaseNotReady with the pod's own reason, ReleaseExists when the name is taken by other
        content, ReleaseNotReady when the objects belong to somebody else.
        """
        release_manifests(release, spec, self._cluster, self._skeletons)  # refuses a bad spec before any call
        deployments = self._deployments(release.model)
        autoscalers = self._autoscalers.of({MODEL_LABEL: release.model})
        self._refuse_foreign(release, deployments.get(release.name))
        weights = self._weights(release.model)
        self._brace(release, weights, deployments, autoscalers)
        pin = self._pin(spec, autoscalers.get(release.name))
        deployment, *rest = release_manifests(release, spec, self._cluster, self._skeletons, pin)
        known = deployments.get(release.name)
        if known is not None and serves(known, image_of(deployment), spec.resources.replicas):
            # A rollback must not wait for servers to be replaced because a skeleton has changed since.
            applied = known
        else:
            applied = self._apply(deployment)
        least = max(pin or 0, spec.resources.replicas)
        wanted = least
        if takes_over and spec.resources.autoscaling != "none":
            wanted = max(least, min(_giver(weights, deployments), spec.resources.max_replicas))
        if replicas_of(applied) < wanted:
            # The autoscaler would do so too once it looks, and takes none away for minutes.
            applied = self._scale(release.name, wanted)
        owner = owner_reference(applied)
        for manifest in rest:
            manifest["metadata"]["ownerReferences"] = [owner]
            self._apply(manifest)
        self._readiness.wait(release.name, spec.resources.start_seconds, spec.resources.replicas)
        if wanted > spec.resources.replicas:
            self._readiness.give_time(release.name, spec.resources.start_seconds, wanted)

    def stop(self, release: Release) -> None:
        """Remove the release's objects once no gateway can send it anybody any more.

        Pods drain by their preStop hook. Foreign objects are left alone.
        """
        self._let_gateways_learn(release.model)
        for kind in OWN_KINDS:
            for item in self._api.find(kind, labels={RELEASE_LABEL: release.name, MANAGED_BY: MANAGER}):
                name = item["metadata"]["name"]
                if name in (release.name, aside_name(release.name)):
                    self._api.delete(kind, name)

    def _let_gateways_learn(self, model: str) -> None:
        """Make before break: wait until every gateway has the route that we wrote last."""
        found = self._api.get("VirtualService", model)
        annotations = (found or {}).get("metadata", {}).get("annotations") or {}
        try:
            written = float(annotations.get(ROUTED_ANNOTATION, "-inf"))
        except ValueError:
            written = self._now()
        # Another machine's clock may be ahead of ours; nobody waits for longer than it takes.
        left = min(written + MESH_SECONDS - self._now(), MESH_SECONDS)
        if left > 0:
            self._sleep(left)

    def running(self) -> frozenset[str]:
        found = self._api.find("Deployment", labels={MANAGED_BY: MANAGER})
        names = (item["metadata"]["labels"].get(RELEASE_LABEL) for item in found)
        return frozenset(name for name in names if name)

    def url(self, release: Release) -> str:
        if self._api.get("Deployment", release.name) is None:
            raise _no_servers(release.name)
        return f"http://{self._cluster.host(release.name)}:{PORT}"

    def log(self, release: Release, last: int) -> list[str]:
        pods = self._api.find("Pod", labels={RELEASE_LABEL: release.name})
        names = sorted(pod["metadata"]["name"] for pod in pods)
        return [line for name in names for line in self._api.log_tail(name, "server", last)]

    def settle(self, model: str) -> None:
        """A promotion or an experiment is over: autoscalers get their own minimum back."""
        for autoscaler in self._autoscalers.of({MODEL_LABEL: model}).values():
            self._autoscalers.unpin(autoscaler)

    # -- traffic

    def routes(self, model: str) -> Routes:
        found = self._api.get("VirtualService", model)
        return Routes() if found is None else mesh.routes_of(model, entries_of(found))

    def route(self, model: str, routes: Routes) -> None:
        """Write our entries of the model's VirtualService, and read back that they stand.

        Every field that is not ours stays. Raises ReleaseNotReady when a release of the route has no
        servers, and RouteConflict when somebody else keeps writing.
        """
        deployments = self._deployments(model)
        for name in _releases_in(routes):
            if name not in deployments:
                raise _no_servers(name)
        ours = mesh.entries_of(
            model, routes, self._cluster, self._skeletons["route"], self._sleepers(deployments)
        )
        if sum(weight > 0 for weight in routes.weights.values()) > 1:
            self._pin_all(model, routes, deployments)
        for attempt in range(ROUTE_TRIES):
            found = self._api.get("VirtualService", model)
            if found is not None and attempt and holds(found, ours):
                return
            if not self._write(model, found, ours):
                self._sleep(min(0.05 * 2**attempt, 1))
        found = self._api.get("VirtualService", model)
        if found is None or not holds(found, ours):
            raise RouteConflict(
                f"somebody else keeps changing the VirtualService {model}; our {ROUTE_TRIES} writes did not "
                f"last. `kubectl get virtualservice {model} -n {self._cluster.namespace} -o yaml "
                "--show-managed-fields` shows who; stop that and try again"
            )

    def _write(self, model: str, found: Manifest | None, ours: list[Manifest]) -> bool:
        """One write; False when somebody was faster and the caller has to look again."""
        try:
            if found is None:
                skeleton = self._skeletons["virtual-service"]
                made = mesh.virtual_service(model, ours, self._cluster, skeleton)
                made["metadata"].setdefault("annotations", {})[ROUTED_ANNOTATION] = self._moment()
                self._api.create(made)
                return True
            entries = entries_of(found)
            if not (is_ours(found) or any(mesh.is_ours(entry) for entry in entries)):
                raise RouteConflict(
                    f"the VirtualService {model} in {self._cluster.namespace} belongs to somebody else "
                    f"(no label {MANAGED_BY}={MANAGER}); rename it or delete it"
                )
            merged = mesh.merge(entries, ours)
            if merged != entries:
                version = found["metadata"]["resourceVersion"]
                metadata = {"resourceVersion": version, "annotations": {ROUTED_ANNOTATION: self._moment()}}
                patch = {"metadata": metadata, "spec": {"http": merged}}
                self._api.merge("VirtualService", model, patch)
        except Conflict:
            return False
        return True

    def _moment(self) -> str:
        return f"{self._now():.3f}"

    # -- what a start needs

    def _deployments(self, model: str) -> dict[str, Manifest]:
        """The Deployment of every release of the model, by name."""
        found = self._api.find("Deployment", labels={MODEL_LABEL: model, MANAGED_BY: MANAGER})
        return {item["metadata"]["name"]: item for item in found}

    def _sleepers(self, deployments: Mapping[str, Manifest]) -> dict[str, float]:
        """The releases that are entered through the interceptor, with the seconds they may be waited for."""
        return {
            name: self._cluster.wake_seconds
            for name, deployment in deployments.items()
            if deployment["metadata"]["labels"].get(ENTRY_LABEL) == "interceptor"
        }

    def _refuse_foreign(self, release: Release, known: Manifest | None) -> None:
        found = known or self._api.get("Deployment", release.name)
        if found is None:
            return
        if not is_ours(found):
            raise ReleaseNotReady(
                f"a Deployment {release.name} that is not ours (no label {MANAGED_BY}={MANAGER}) stands in "
                f"{self._cluster.namespace}; rename it or delete it"
            )
        sha256 = (found["metadata"].get("annotations") or {}).get(SHA256_ANNOTATION)
        if sha256 not in (None, release.sha256):
            raise ReleaseExists(
                f"{release.name} runs in the cluster with other content (bundle {sha256[:12]}, not "
                f"{release.sha256[:12]}); releases are immutable, register a new version"
            )

    def _weights(self, model: str) -> Mapping[str, int]:
        """Who has which share of the traffic now; nobody where the route is mangled: that must not keep a
        rollback from starting its target, and `route` overwrites it."""
        try:
            return self.routes(model).weights
        except RouteConflict:
            return {}

    def _brace(
        self,
        release: Release,
        weights: Mapping[str, int],
        deployments: Mapping[str, Manifest],
        autoscalers: Mapping[str, Manifest],
    ) -> None:
        """Before a canary starts: pin the releases that serve the model, and wake those that sleep.

        A release of the route itself may be started to take traffic back: nobody waits for the others then.
        """
        returns = release.name in weights
        woken = []
        for name, weight in weights.items():
            deployment = deployments.get(name)
            if deployment is None or weight == 0 or name == release.name:
                continue
            replicas = replicas_of(deployment)
            if returns and replicas > 0:
                continue
            if name in autoscalers:
                self._autoscalers.pin(autoscalers[name], replicas)
            if replicas == 0:
                self._scale(name, 1)
                woken.append(name)
        if not returns:
            for name in woken:
                self._readiness.wait(name, self._cluster.wake_seconds, 1)

    def _pin(self, spec: ModelSpec, autoscaler: Manifest | None) -> int | None:
        """The pinned minimum of the release that is started: a sleeper stays awake until it is settled."""
        if autoscaler is not None and pinned_from(autoscaler) is not None:
            spec_of = autoscaler["spec"]
            return max(int(spec_of.get("minReplicas", spec_of.get("minReplicaCount", 1))), 1)
        return spec.resources.replicas if scales_to_zero(spec) else None

    def _pin_all(self, model: str, routes: Routes, deployments: Mapping[str, Manifest]) -> None:
        """While traffic is split, nobody in the split may shrink."""
        for name, autoscaler in self._autoscalers.of({MODEL_LABEL: model}).items():
            if name in routes.weights and pinned_from(autoscaler) is None:
                self._autoscalers.pin(autoscaler, replicas_of(deployments[name]))

    def _scale(self, name: str, replicas: int) -> Manifest:
        try:
            return self._api.merge("Deployment", name, {"spec": {"replicas": replicas}})
        except Conflict as error:
            raise ReleaseNotReady(
                f"the Deployment {name} was deleted while it was scaled; start it again"
            ) from error

    def _apply(self, manifest: Manifest) -> Manifest:
        for _ in range(ROUTE_TRIES):
            try:
                return self._api.apply(manifest)
            except Conflict:
                self._sleep(0.05)
        name = manifest["metadata"]["name"]
        raise DependencyDown(
            f"somebody keeps changing the {manifest['kind']} {name}; stop that and try again"
        )


def _giver(weights: Mapping[str, int], deployments: Mapping[str, Manifest]) -> int:
    """Servers of the largest release that has a share of the model's traffic."""
    sharing = (name for name, weight in weights.items() if weight and name in deployments)
    return max((replicas_of(deployments[name]) for name in sharing), default=0)


def _releases_in(routes: Routes) -> list[str]:
    mirrored = [routes.mirror.release] if routes.mirror else []
    return [*routes.weights, *(match.release for match in routes.matches), *mirrored]


def _no_servers(name: str) -> ReleaseNotReady:
    return ReleaseNotReady(f"{name} has no servers in the cluster; start it first (a promotion does)")
