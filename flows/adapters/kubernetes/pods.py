"""Why a release does not become ready, in the cluster's own words and on one line.

Pure functions over what the API returned: Deployment, pods, events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.domain.cluster.manifests import Manifest

HOPELESS = frozenset(
    {"InvalidImageName", "ErrImageNeverPull", "ImagePullBackOff", "CreateContainerConfigError"}
)
"""Waiting reasons that do not pass by waiting: somebody has to do something."""
CRASHES_UNTIL_HOPELESS = 2
PREPARING = frozenset({"ContainerCreating", "PodInitializing"})
"""Waiting reasons while a node pulls the image and sets up volumes and network."""
NEXT_STEP = {
    "ImagePullBackOff": "is the image pushed, and may the nodes pull it?",
    "ErrImagePull": "is the image pushed, and may the nodes pull it?",
    "ErrImageNeverPull": "load the image onto the nodes",
    "InvalidImageName": "the registered image name is wrong",
    "CrashLoopBackOff": "run the image by hand, or read the whole log",
    "OOMKilled": "raise resources.memory in model.yaml",
    "CreateContainerConfigError": "a ConfigMap, a Secret or the security context does not fit",
}


@dataclass(frozen=True)
class Trouble:
    """Something that keeps a release from being ready.

    `hopeless` means that waiting longer is pointless. `pod` and `container` name the log worth reading.
    """

    reason: str
    hopeless: bool = False
    pod: str | None = None
    container: str | None = None
    unscheduled: bool = False


def is_available(deployment: Manifest, replicas: int) -> bool:
    """`replicas` servers are up to date and available.

    How many the Deployment asks for says nothing: an autoscaler raises that some seconds later.
    """
    status = deployment.get("status", {})
    return bool(
        replicas > 0
        and status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 1)
        and status.get("updatedReplicas", 0) >= replicas
        and status.get("availableReplicas", 0) >= replicas
    )


def trouble_of(deployment: Manifest, pods: Sequence[Manifest]) -> Trouble | None:
    """The most telling trouble; None when the servers are merely starting."""
    refused = _condition(deployment, "ReplicaFailure", "True")
    if refused is not None:
        sentence = _sentence(refused)
        # Refused by a quota or a policy is final. A webhook that does not answer right now is asked again.
        return Trouble(
            f"no pod may be created: {sentence}; {_next_step_when_refused(sentence)}",
            hopeless="is forbidden" in sentence,
        )
    found = [trouble for pod in pods if (trouble := _trouble_of_pod(pod)) is not None]
    return max(found, key=lambda trouble: (trouble.hopeless, not trouble.unscheduled), default=None)


def awaits_node_or_image(pods: Sequence[Manifest]) -> bool:
    """A pod has not begun to start its server: it has no node yet, or the node has no image yet."""
    return any(_has_not_begun(pod) for pod in pods if not _leaving(pod))


def unready_pod(pods: Sequence[Manifest]) -> str | None:
    """A pod that is not ready: its events are worth reading."""
    for pod in pods:
        if not _leaving(pod) and _condition(pod, "Ready", "True") is None:
            return str(pod["metadata"]["name"])
    return None


def trouble_in_events(pod: str, events: Sequence[Manifest]) -> Trouble | None:
    """What the kubelet complained about last: of its probes if it got that far, else of anything."""
    probes = [event for event in events if event.get("reason") == "Unhealthy"]
    complaints = probes or [event for event in events if event.get("type") == "Warning"]
    if not complaints:
        return None
    last = max(complaints, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    sentence = _sentence(last) if probes else f"{last.get('reason')}: {_sentence(last)}"
    return Trouble(f"{pod}: {sentence}", pod=pod, container="server" if probes else None)


def _next_step_when_refused(sentence: str) -> str:
    if "quota" in sentence:
        return "raise the quota, or stop what uses it up"
    if "PodSecurity" in sentence:
        return "correct the pod (k8s/release/deployment.yaml) or what a webhook adds to it"
    if "service account" in sentence or "serviceaccount" in sentence:
        return "apply k8s/overlays first"
    return "see the events of its ReplicaSet"


def _trouble_of_pod(pod: Manifest) -> Trouble | None:
    if _leaving(pod):
        return None
    name = str(pod["metadata"]["name"])
    status: dict[str, Any] = pod.get("status", {})
    if status.get("reason"):  # evicted, or refused by the node
        return Trouble(f"{name}: {status['reason']}: {_sentence(status)}")
    unscheduled = _condition(pod, "PodScheduled", "False")
    if unscheduled is not None:
        return Trouble(f"{name}: {unscheduled.get('reason')}: {_sentence(unscheduled)}", unscheduled=True)
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        trouble = _trouble_of_container(name, container)
        if trouble is not None:
            return trouble
    return None


def _has_not_begun(pod: Manifest) -> bool:
    status = pod.get("status", {})
    if _condition(pod, "PodScheduled", "False") is not None:
        return True
    return any(
        container.get("state", {}).get("waiting", {}).get("reason") in PREPARING
        and not container.get("restartCount")
        for container in status.get("containerStatuses", [])
    )


def _trouble_of_container(pod: str, container: Manifest) -> Trouble | None:
    name = str(container["name"])
    waiting = container.get("state", {}).get("waiting", {})
    died = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    restarts = int(container.get("restartCount", 0))
    if died and (waiting or not container.get("ready")):
        cause = died.get("reason", "Error")
        words = [f"{pod}: {waiting.get('reason') or cause}: container {name} ended with exit code"]
        words.append(f"{died.get('exitCode')} ({cause}), {restarts} restarts")
        step = NEXT_STEP.get(cause) or NEXT_STEP["CrashLoopBackOff"]
        # One that runs again may have died long ago, and only starts now.
        running = "running" in container.get("state", {})
        return Trouble(
            f"{' '.join(words)}; {step}",
            hopeless=restarts >= CRASHES_UNTIL_HOPELESS and not running,
            pod=pod,
            container=name,
        )
    reason = waiting.get("reason")
    if reason is None or reason in PREPARING:
        return None
    return Trouble(
        f"{pod}: {reason}: {_sentence(waiting)}" + (f"; {NEXT_STEP[reason]}" if reason in NEXT_STEP else ""),
        hopeless=reason in HOPELESS,
    )


def _leaving(pod: Manifest) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _condition(thing: Manifest, kind: str, status: str) -> Manifest | None:
    for condition in thing.get("status", {}).get("conditions", []):
        if condition.get("type") == kind and condition.get("status") == status:
            return dict(condition)
    return None


def _sentence(thing: Manifest) -> str:
    return " ".join(str(thing.get("message", "no message")).split())
