"""Holds a release's size while a promotion needs it: the autoscaler's minimum is pinned, then restored.

A stable release whose traffic goes to a canary would shrink just before a rollback needs it; a sleeping
one would be cold. The number to restore is kept on the autoscaler itself, so that no crash loses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flows.adapters.kubernetes.api import Api, Conflict
from flows.domain.cluster.manifests import PINNED_ANNOTATION, RELEASE_LABEL, Manifest
from flows.domain.errors import DependencyDown

MINIMUM = {"HorizontalPodAutoscaler": "minReplicas", "ScaledObject": "minReplicaCount"}
MAXIMUM = {"HorizontalPodAutoscaler": "maxReplicas", "ScaledObject": "maxReplicaCount"}
TRIES = 5

Change = Callable[[Manifest], Manifest | None]
"""From the object as it is to the patch that it needs; None when it needs none."""


class Autoscalers:
    """The autoscalers of releases; a release has none or one."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def of(self, labels: Mapping[str, str]) -> dict[str, Manifest]:
        """Release name → autoscaler object, for the releases that carry these labels."""
        found = {}
        for kind in MINIMUM:
            for item in self._api.find(kind, labels=labels):
                name = item["metadata"].get("labels", {}).get(RELEASE_LABEL)
                # KEDA's own HorizontalPodAutoscaler inherits the labels, but not the name.
                if name == item["metadata"]["name"]:
                    found[name] = {**item, "kind": kind}
        return found

    def pin(self, autoscaler: Manifest, replicas: int) -> None:
        """Keep at least `replicas` (and at least one) servers until `unpin`; never lowers a minimum."""
        minimum = MINIMUM[autoscaler["kind"]]
        maximum = MAXIMUM[autoscaler["kind"]]

        def change(current: Manifest) -> Manifest | None:
            spec = current["spec"]
            now = int(spec.get(minimum, 1))
            wanted = max(now, replicas, 1)
            before = pinned_from(current)
            if wanted == now and before is not None:
                return None
            return {
                "metadata": {"annotations": {PINNED_ANNOTATION: str(now if before is None else before)}},
                "spec": {minimum: wanted, maximum: max(int(spec[maximum]), wanted)},
            }

        self._change(autoscaler, change)

    def unpin(self, autoscaler: Manifest) -> None:
        """Give the autoscaler its own minimum back; nothing happens when it is not pinned."""
        minimum = MINIMUM[autoscaler["kind"]]

        def change(current: Manifest) -> Manifest | None:
            before = pinned_from(current)
            if before is None:
                return None
            return {"metadata": {"annotations": {PINNED_ANNOTATION: None}}, "spec": {minimum: before}}

        self._change(autoscaler, change)

    def _change(self, autoscaler: Manifest, change: Change) -> None:
        """Write only what was just read, so that two hands never pin over each other."""
        kind, name = autoscaler["kind"], autoscaler["metadata"]["name"]
        current: Manifest | None = autoscaler
        for _ in range(TRIES):
            if current is None:
                return
            patch = change(current)
            if patch is None:
                return
            patch["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"]
            try:
                self._api.merge(kind, name, patch)
                return
            except Conflict:
                current = self._api.get(kind, name)
        raise DependencyDown(
            f"somebody keeps changing the {kind} {name}; stop that (kubectl get {kind} {name} "
            "-o yaml --show-managed-fields shows who) and run the command again"
        )


def pinned_from(autoscaler: Manifest) -> int | None:
    """The minimum to restore; None when the autoscaler is not pinned."""
    value = (autoscaler["metadata"].get("annotations") or {}).get(PINNED_ANNOTATION)
    return int(value) if value is not None and str(value).isdigit() else None
