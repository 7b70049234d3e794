"""Every manifest that ships is valid, and the checks that say so can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.manifests.validate import OVERLAYS, built, problems_of
from tests.manifests.variants import rendered

Thing = dict[str, Any]
RENDERED = rendered()


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Thing]:
    return built(request.param)


def test_an_overlay_is_valid(overlay: list[Thing]) -> None:
    problems = [
        f"{thing['kind']} {thing['metadata']['name']}: {problems_of(thing)}"
        for thing in overlay
        if problems_of(thing)
    ]
    assert problems == []


@pytest.mark.parametrize("variant", RENDERED)
def test_what_a_promotion_renders_is_valid(variant: str) -> None:
    assert [problem for thing in RENDERED[variant] for problem in problems_of(thing)] == []


def of_kind(kind: str) -> Thing:
    return copy.deepcopy(
        next(thing for things in RENDERED.values() for thing in things if thing["kind"] == kind)
    )


def set_(*path: Any) -> Callable[[Thing], None]:
    *way, last, value = path

    def change(thing: Thing) -> None:
        for step in way:
            thing = thing[step]
        thing[last] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Deployment", set_("spec", "replica", 3)),
        ("Deployment", set_("spec", "template", "spec", "containers", 0, "securityContxt", {})),
        ("Deployment", set_("spec", "minReadySeconds", "soon")),
        ("Service", set_("spec", "ports", 0, "targetport", "http")),
        ("HorizontalPodAutoscaler", set_("spec", "minReplica", 1)),
        ("VirtualService", set_("spec", "http", 0, "retry", {"attempts": 1})),
        ("VirtualService", set_("spec", "http", 0, "timeout", "0s")),
        ("VirtualService", set_("spec", "http", 0, "route", 0, "weight", "much")),
        ("DestinationRule", set_("spec", "trafficPolicy", "tls", "mode", "ISTIO_MUTAL")),
        ("ScaledObject", set_("spec", "minReplicas", 1)),
        ("ScaledObject", set_("spec", "minReplicaCount", 99)),
        ("InterceptorRoute", set_("spec", "target", "sevice", "x")),
        ("InterceptorRoute", set_("spec", "timeouts", "readiness", "long")),
    ],
)
def test_a_mistake_is_found(kind: str, change: Callable[[Thing], None]) -> None:
    thing = of_kind(kind)
    assert problems_of(thing) == []
    change(thing)
    assert problems_of(thing)


def test_a_kind_without_a_schema_is_a_problem() -> None:
    assert problems_of({"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "x"}})


def test_no_two_objects_of_an_overlay_have_the_same_name(overlay: list[Thing]) -> None:
    names = [(t["kind"], t["metadata"].get("namespace"), t["metadata"]["name"]) for t in overlay]
    assert len(names) == len(set(names))


def workloads(things: list[Thing]) -> list[tuple[str, Thing]]:
    pods = []
    for thing in things:
        if thing["kind"] == "Deployment":
            pods.append((thing["metadata"]["name"], thing["spec"]["template"]["spec"]))
        if thing["kind"] == "CronJob":
            spec = thing["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            pods.append((thing["metadata"]["name"], spec))
    return pods


def restricted(pod: Thing) -> list[str]:
    """What Pod Security's profile `restricted` would refuse."""
    refused = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    refused += [
        volume["name"]
        for volume in pod.get("volumes", [])
        if not {"configMap", "emptyDir", "secret", "projected"} & set(volume)
    ]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = container.get("securityContext", {})
        good = (
            context.get("allowPrivilegeEscalation") is False
            and context.get("capabilities", {}).get("drop") == ["ALL"]
            and context.get("runAsNonRoot") is True
            and context.get("seccompProfile", {}).get("type") == "RuntimeDefault"
            and context.get("readOnlyRootFilesystem") is True
            and not context.get("privileged")
        )
        if not good:
            refused.append(container["name"])
        if set(container.get("resources", {})) != {"requests", "limits"}:
            refused.append(f"{container['name']} has no limits")
        if "@sha256:" not in container["image"]:
            refused.append(f"{container['name']} is not pinned by digest")
    return refused


def test_every_pod_of_an_overlay_is_restricted_and_pinned(overlay: list[Thing]) -> None:
    found = workloads(overlay)
    assert len(found) == 4
    assert {name: restricted(pod) for name, pod in found if restricted(pod)} == {}


@pytest.mark.parametrize("variant", [name for name in RENDERED if name.startswith("release-")])
def test_every_release_is_restricted_and_pinned(variant: str) -> None:
    ((name, pod),) = workloads(RENDERED[variant])
    assert restricted(pod) == [], name
    assert pod["automountServiceAccountToken"] is False
    assert not {"HorizontalPodAutoscaler", "ScaledObject"} <= {thing["kind"] for thing in RENDERED[variant]}


def test_every_namespace_with_pods_is_closed_by_default(overlay: list[Thing]) -> None:
    for namespace in ("modelserve", "modelserve-system"):
        inside = [thing for thing in overlay if thing["metadata"].get("namespace") == namespace]
        closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        assert closed in [thing["spec"] for thing in inside if thing["kind"] == "NetworkPolicy"]
        assert {} in [thing.get("spec", {}) for thing in inside if thing["kind"] == "AuthorizationPolicy"]
        assert any(
            thing["kind"] == "PeerAuthentication" and thing["spec"] == {"mtls": {"mode": "STRICT"}}
            for thing in inside
        )
        (meta,) = [
            thing["metadata"]
            for thing in overlay
            if thing["kind"] == "Namespace" and thing["metadata"]["name"] == namespace
        ]
        assert meta["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
