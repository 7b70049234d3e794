"""The releases and routes whose manifests reviewers read and every check looks at: one of each kind."""

from __future__ import annotations

from typing import Any

from flows.adapters.kubernetes import read_skeletons
from flows.domain.cluster import mesh
from flows.domain.cluster.manifests import Cluster, Manifest, release_manifests
from flows.domain.release import Release
from flows.domain.routes import Match, Mirror, Routes
from flows.domain.spec import ModelSpec

CLUSTER = Cluster()
DIGEST = "sha256:" + "ab" * 32
RESOURCES: dict[str, dict[str, Any]] = {
    "cpu-hpa": {"cpu": "2", "memory": "4Gi", "replicas": 2, "max_replicas": 10},
    "cpu-fixed": {"autoscaling": "none", "replicas": 3},
    "gpu-hpa": {"pool": "gpu", "gpu": 1, "cpu": "4", "memory": "16Gi", "start_seconds": 300},
    "cpu-keda": {"autoscaling": "keda", "replicas": 2, "max_replicas": 20},
    "scale-to-zero": {"autoscaling": "keda", "scale_to_zero": True, "max_replicas": 5},
    "gpu-scale-to-zero": {"pool": "gpu", "gpu": 2, "autoscaling": "keda", "scale_to_zero": True},
}
ROUTES = {
    "split": Routes({"flights-v1": 90, "flights-v2": 10}),
    "canary-at-zero": Routes({"flights-v1": 100, "flights-v2": 0}),
    "ab-by-header": Routes(
        {"flights-v1": 50, "flights-v2": 50},
        matches=(
            Match("header", "x-experiment-arm", "a", "flights-v1"),
            Match("header", "x-experiment-arm", "b", "flights-v2"),
        ),
    ),
    "ab-by-cookie": Routes(
        {"flights-v1": 50, "flights-v2": 50},
        matches=(
            Match("cookie", "modelserve-flights", "1", "flights-v1"),
            Match("cookie", "modelserve-flights", "2", "flights-v2"),
        ),
    ),
    "mirror": Routes({"flights-v1": 100}, mirror=Mirror("flights-v2", 12.5)),
    "nobody": Routes(),
}
SLEEPING_ROUTE = Routes({"flights-v1": 100})


def spec(**resources: Any) -> ModelSpec:
    column = {"name": "x", "type": "number"}
    return ModelSpec.model_validate(
        {"name": "flights", "signature": {"inputs": [column], "outputs": [column]}, "resources": resources}
    )


def release(version: int = 2) -> Release:
    return Release(
        model="flights",
        version=version,
        bundle=f"s3://models/flights/{version}",
        sha256="cd" * 32,
        image=f"registry.example/modelserve/flights@{DIGEST}",
    )


def rendered() -> dict[str, list[Manifest]]:
    """Variant name → its manifests."""
    skeletons = read_skeletons()
    variants = {
        f"release-{name}": release_manifests(release(), spec(**resources), CLUSTER, skeletons)
        for name, resources in RESOURCES.items()
    }
    for name in ("cpu-hpa", "scale-to-zero"):
        variants[f"release-{name}-pinned"] = release_manifests(
            release(), spec(**RESOURCES[name]), CLUSTER, skeletons, pinned=4
        )
    sticky = Cluster(session_header="x-session-id")
    variants["release-session-affinity"] = release_manifests(release(), spec(), sticky, skeletons)
    for name, routes in ROUTES.items():
        variants[f"route-{name}"] = [_virtual_service(routes, skeletons, {})]
    sleepers = {"flights-v1": CLUSTER.wake_seconds}
    variants["route-to-a-sleeper"] = [_virtual_service(SLEEPING_ROUTE, skeletons, sleepers)]
    return variants


def _virtual_service(routes: Routes, skeletons: dict[str, Any], sleepers: dict[str, float]) -> Manifest:
    entries = mesh.entries_of("flights", routes, CLUSTER, skeletons["route"], sleepers)
    return mesh.virtual_service("flights", entries, CLUSTER, skeletons["virtual-service"])
