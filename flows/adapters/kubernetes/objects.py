"""What objects that the API returned say; no calls."""

from __future__ import annotations

from flows.adapters.kubernetes.pods import is_available
from flows.domain.cluster import mesh
from flows.domain.cluster.manifests import MANAGED_BY, MANAGER, Manifest


def is_ours(thing: Manifest) -> bool:
    return (thing["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER


def replicas_of(deployment: Manifest) -> int:
    return int(deployment["spec"].get("replicas", 1))


def image_of(deployment: Manifest) -> str | None:
    """The server's; somebody may have put other containers beside it."""
    pod = deployment["spec"].get("template", {}).get("spec", {})
    return next((one["image"] for one in pod.get("containers", []) if one["name"] == "server"), None)


def serves(deployment: Manifest, image: str | None, replicas: int) -> bool:
    """It runs this image with as many servers as are wanted."""
    return is_available(deployment, replicas) and image_of(deployment) == image


def owner_reference(deployment: Manifest) -> Manifest:
    """Deleting the Deployment by hand takes everything of the release along."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
        "uid": deployment["metadata"]["uid"],
    }


def entries_of(virtual_service: Manifest) -> list[Manifest]:
    return list((virtual_service.get("spec") or {}).get("http") or [])


def holds(virtual_service: Manifest, ours: list[Manifest]) -> bool:
    """It says what we want it to say."""
    entries = entries_of(virtual_service)
    return mesh.merge(entries, ours) == entries
