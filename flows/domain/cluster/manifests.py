"""What a release is on Kubernetes: its manifests, from the skeletons and the model's spec.

Pure rendering, so that reviewers read the result in `tests/golden/k8s` and every rendered variant is
validated against the schemas before anything reaches a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.domain.cluster.skeleton import fill
from flows.domain.errors import ImageFailed, SpecInvalid
from flows.domain.release import Release
from flows.domain.spec import ModelSpec

Manifest = dict[str, Any]

PORT = 8080
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "modelserveai"
MODEL_LABEL = "modelserve.ai/model"
RELEASE_LABEL = "modelserve.ai/release"
VERSION_LABEL = "modelserve.ai/version"
ENTRY_LABEL = "modelserve.ai/entry"
"""`interceptor`: requests enter a release through KEDA's interceptor; `direct`: through its Service."""
SHA256_ANNOTATION = "modelserve.ai/bundle-sha256"
PINNED_ANNOTATION = "modelserve.ai/pinned-from"
ROUTED_ANNOTATION = "modelserve.ai/routed-at"
"""On a VirtualService: when (Unix time) we last changed who gets traffic."""
"""On an autoscaler whose minimum is pinned: the minimum to restore."""
PROBE_SECONDS = 2
SERVER_DRAIN_SECONDS = 15
"""What the server itself drains after SIGTERM; the pod has waited `drain_seconds` before that."""


@dataclass(frozen=True)
class Cluster:
    """What the manifests must know about the cluster; every default is what `k8s/` and `infra/` set up."""

    namespace: str = "modelserve"
    domain: str = "cluster.local"
    gateway: str = "modelserve/models"
    service_account: str = "modelserve-server"
    interceptor_host: str = "keda-add-ons-http-interceptor-proxy.keda.svc.cluster.local"
    scaler_address: str = "keda-add-ons-http-external-scaler.keda:9090"
    prometheus_url: str = "http://kube-prometheus-stack-prometheus.monitoring:9090"
    request_seconds: float = 60
    """How long the gateway waits for an answer."""
    node_seconds: float = 600
    """How long a pod may wait for a node and its image: the node group may have to grow first."""
    wake_seconds: float = 180
    """How long the first request to a sleeping model may be held; ingress time limits must allow it."""
    session_header: str | None = None
    """Requests with the same value of this header go to the same server of a release."""
    requests_per_server: int = 50
    """KEDA: requests a second that one server is sized for."""
    pending_rows_per_server: int = 32
    """KEDA: rows waiting in a server's queue beyond which another server is started."""
    proxies: int = 3
    """A request comes through so many of ours: load balancer, NGINX, gateway. Each names the one before."""
    tags_allowed: bool = False
    """Accept an image without a digest: for clusters whose nodes get images without a registry."""

    def host(self, release: str) -> str:
        """The release's name inside the cluster."""
        return f"{release}.{self.namespace}.svc.{self.domain}"


def aside_name(release: str) -> str:
    """A second name for the same servers: what goes there is no prediction, and the rules do not count it."""
    return f"{release}-aside"


def labels(release: Release) -> dict[str, str]:
    """Ownership: every object of a release carries these, and nothing without them is ever touched."""
    return {
        "app.kubernetes.io/name": release.model,
        "app.kubernetes.io/instance": release.name,
        "app.kubernetes.io/version": str(release.version),
        "app.kubernetes.io/component": "model-server",
        "app.kubernetes.io/part-of": "modelserve",
        MANAGED_BY: MANAGER,
        MODEL_LABEL: release.model,
        RELEASE_LABEL: release.name,
        VERSION_LABEL: str(release.version),
    }


def minimum_replicas(spec: ModelSpec) -> int:
    """The autoscaler's own minimum; 0 when the model may sleep."""
    return 0 if scales_to_zero(spec) else spec.resources.replicas


def scales_to_zero(spec: ModelSpec) -> bool:
    """Raises SpecInvalid when the wish cannot be met."""
    resources = spec.resources
    if resources.scale_to_zero and resources.autoscaling != "keda":
        raise SpecInvalid(
            f"model.yaml of {spec.name}: resources.scale_to_zero needs resources.autoscaling: keda "
            f"(found {resources.autoscaling!r}); a HorizontalPodAutoscaler cannot go to zero"
        )
    return resources.scale_to_zero


def ready_seconds(spec: ModelSpec, cluster: Cluster) -> float:
    """How long a new server may take altogether: the node group may have to grow first."""
    return cluster.node_seconds + spec.resources.start_seconds


def server_environment(release: Release, spec: ModelSpec) -> dict[str, str]:
    """The server's plain settings; addresses and secrets come from the cluster's ConfigMap and Secret."""
    limit = spec.access.per_second
    limited = {"SERVING_RATE_LIMIT": str(limit), "SERVING_FORWARDED_CLIENTS": "true"} if limit else {}
    return {
        "SERVING_BUNDLE": "/bundle",
        "SERVING_BUNDLE_SHA256": release.sha256,
        "SERVING_MODEL": release.model,
        "SERVING_VERSION": str(release.version),
        "SERVING_PORT": str(PORT),
        "SERVING_DRAIN_SECONDS": str(SERVER_DRAIN_SECONDS),
        **limited,
    }


CLUSTER_ENVIRONMENT = {
    "SERVING_REDIS_URL": ("secretKeyRef", "modelserve-server", "redis-url"),
    "SERVING_DATABASE_URL": ("secretKeyRef", "modelserve-server", "database-url"),
    "SERVING_SECRET": ("secretKeyRef", "modelserve-server-keys", "secret"),
    "SERVING_PERSONAL_KEY": ("secretKeyRef", "modelserve-server-keys", "personal-key"),
    "SERVING_JOBS_URI": ("configMapKeyRef", "modelserve-cluster", "SERVING_JOBS_URI"),
    "SERVING_JOBS_INPUT_URIS": ("configMapKeyRef", "modelserve-cluster", "SERVING_JOBS_INPUT_URIS"),
    "SERVING_OTLP_ENDPOINT": ("configMapKeyRef", "modelserve-tracing", "otlp-endpoint"),
}
"""Settings that every server takes from the namespace, where they are set once. All are optional."""


def release_manifests(
    release: Release,
    spec: ModelSpec,
    cluster: Cluster,
    skeletons: Mapping[str, Any],
    pinned: int | None = None,
) -> list[Manifest]:
    """Everything a release consists of, the Deployment first.

    `skeletons` maps file names without suffix (`deployment`, …) to parsed skeletons. `pinned` replaces the
    autoscaler's minimum while a promotion runs. Raises SpecInvalid and ImageFailed.
    """
    values = _values(release, spec, cluster, pinned)
    names = ["deployment", "service", "aside-service", "pod-disruption-budget", "destination-rule"]
    if spec.resources.autoscaling == "hpa":
        names.append("horizontal-pod-autoscaler")
    if spec.resources.autoscaling == "keda":
        names.append("scaled-object")
    if scales_to_zero(spec):
        names.append("interceptor-route")
    return [fill(skeletons[name], values) for name in names]


def _values(release: Release, spec: ModelSpec, cluster: Cluster, pinned: int | None) -> dict[str, Any]:
    resources = spec.resources
    own_minimum = minimum_replicas(spec)
    sleeps = scales_to_zero(spec)
    if sleeps and resources.start_seconds > cluster.wake_seconds:
        raise SpecInvalid(
            f"model.yaml of {spec.name}: resources.start_seconds is {resources.start_seconds:g}, but the "
            f"first request to a sleeping model is held for {cluster.wake_seconds:g} s at most; "
            "set scale_to_zero: false or make the model start sooner"
        )
    drain = max(resources.drain_seconds, cluster.request_seconds) + 5
    owned = labels(release)
    return {
        "release": release.name,
        "model": release.model,
        "version": str(release.version),
        "sha256": release.sha256,
        "namespace": cluster.namespace,
        "service_account": cluster.service_account,
        "labels": {**owned, ENTRY_LABEL: "interceptor" if sleeps else "direct"},
        "pod_labels": owned,
        "image": _image(release, cluster),
        "replicas": resources.replicas if resources.autoscaling == "none" else None,
        "progress_seconds": math.ceil(ready_seconds(spec, cluster)) + 30,
        "drain_seconds": math.ceil(drain),
        "grace_seconds": math.ceil(drain) + SERVER_DRAIN_SECONDS + 5,
        "pool": resources.pool,
        "tolerations": _tolerations(resources.pool),
        "environment": _environment(release, spec, cluster),
        "resources": _compute(spec),
        "startup_failures": math.ceil(resources.start_seconds / PROBE_SECONDS),
        "host": cluster.host(release.name),
        "aside": aside_name(release.name),
        "aside_host": cluster.host(aside_name(release.name)),
        "load_balancer": _load_balancer(cluster),
        "minimum": own_minimum if pinned is None else max(pinned, own_minimum),
        "maximum": max(resources.max_replicas, resources.replicas, pinned or 0),
        "pin": None if pinned is None else {PINNED_ANNOTATION: str(own_minimum)},
        "triggers": _triggers(release, cluster, sleeps),
        "fallback": None if sleeps else _fallback(resources.replicas),
        "cold_seconds": math.ceil(cluster.wake_seconds),
        "cold_request_seconds": math.ceil(cluster.wake_seconds + cluster.request_seconds),
        "request_seconds": math.ceil(cluster.request_seconds),
    }


def _image(release: Release, cluster: Cluster) -> str:
    if release.image is None:
        raise ImageFailed(f"{release.name} has no image yet; build it first (`make image` or a promotion)")
    if "@sha256:" not in release.image and not cluster.tags_allowed:
        raise ImageFailed(
            f"{release.name}: image {release.image} is not pinned by digest (name@sha256:…); push it and "
            "register the digest, or set MODELSERVE_IMAGE_TAGS_ALLOWED=true where nodes have no registry"
        )
    return release.image


def _tolerations(pool: str) -> list[dict[str, str]]:
    if pool != "gpu":
        return []
    return [{"key": "nvidia.com/gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]


def _compute(spec: ModelSpec) -> dict[str, Any]:
    """Limits equal requests: the server sizes its threads by its quota, and is evicted last."""
    resources = spec.resources
    if resources.pool == "gpu" and resources.gpu == 0:
        raise SpecInvalid(f"model.yaml of {spec.name}: resources.gpu must be at least 1 in the pool 'gpu'")
    if resources.pool == "cpu" and resources.gpu:
        raise SpecInvalid(
            f"model.yaml of {spec.name}: resources.pool must be 'gpu' when resources.gpu is {resources.gpu}"
        )
    amounts = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.gpu:
        amounts["nvidia.com/gpu"] = str(resources.gpu)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _environment(release: Release, spec: ModelSpec, cluster: Cluster) -> list[dict[str, Any]]:
    told = server_environment(release, spec)
    if spec.access.per_second:
        told["SERVING_FORWARDED_PROXIES"] = str(cluster.proxies)
    plain: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in told.items()]
    shared: list[dict[str, Any]] = [
        {"name": name, "valueFrom": {source: {"name": holder, "key": key, "optional": True}}}
        for name, (source, holder, key) in CLUSTER_ENVIRONMENT.items()
    ]
    return plain + shared


def _load_balancer(cluster: Cluster) -> dict[str, Any]:
    if cluster.session_header:
        return {"consistentHash": {"httpHeaderName": cluster.session_header}}
    return {"simple": "LEAST_REQUEST"}


def _fallback(replicas: int) -> dict[str, Any]:
    """With Prometheus gone the number of servers stays, and never falls below the model's own."""
    return {"failureThreshold": 4, "replicas": replicas, "behavior": "currentReplicasIfHigher"}


def _triggers(release: Release, cluster: Cluster, sleeps: bool) -> list[dict[str, Any]]:
    selector = f'model="{release.model}",version="{release.version}"'
    triggers: list[dict[str, Any]] = [
        {
            "type": "prometheus",
            "name": "requests",
            "metadata": {
                "serverAddress": cluster.prometheus_url,
                "query": f"sum(rate(traffic:requests:count{{{selector}}}[1m]))",
                "threshold": str(cluster.requests_per_server),
            },
        },
        {
            "type": "prometheus",
            "name": "queue",
            "metadata": {
                "serverAddress": cluster.prometheus_url,
                "query": f"sum(modelserve_pending_rows{{{selector}}})",
                "threshold": str(cluster.pending_rows_per_server),
            },
        },
    ]
    if sleeps:
        # Prometheus notices the first request a scrape too late; the interceptor's scaler pushes.
        triggers.append(
            {
                "type": "external-push",
                "name": "waiting",
                "metadata": {"scalerAddress": cluster.scaler_address, "interceptorRoute": release.name},
            }
        )
    return triggers
