"""What objects that the API returned say; no calls."""

from __future__ import annotations

from flows.domain import mesh
from flows.domain.manifests import MANAGED_BY, MANAGER, Manifest


def is_ours(thing: Manifest) -> bool:
    return (thing["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER


def replicas_of(deployment: Manifest) -> int:
    return int(deployment["spec"].get("replicas", 1))


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
