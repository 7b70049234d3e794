"""Every manifest that ships is valid, and the checks that say so can fail."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from flows.adapters.kubernetes.skeletons import read_skeletons
from flows.domain.cluster.manifests import CLUSTER_ENVIRONMENT, release_manifests
from flows.domain.spec import parse_spec
from tests.manifests.validate import OVERLAYS, ROOT, built, problems_of, with_component
from tests.manifests.variants import CLUSTER, release, rendered

Thing = dict[str, Any]
RENDERED = rendered()
ISTIOD = ROOT / "infra" / "addons" / "values" / "istiod.yaml.tftpl"


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


def test_the_monitors_find_targets_and_give_the_labels_that_the_rules_read(overlay: list[Thing]) -> None:
    """Only declared ports become targets: a sidecar declares 15090, and nobody declares the agent's 15020."""
    endpoints = {
        thing["metadata"]["name"]: thing["spec"]["podMetricsEndpoints"][0]
        for thing in overlay
        if thing["kind"] == "PodMonitor"
    }
    assert {one["portNumber"] for one in endpoints.values()} == {15090}
    for monitor, job in {"istio-gateway": "gateway", "keda-interceptor": "interceptor"}.items():
        assert {"targetLabel": "job", "replacement": job} in endpoints[monitor]["relabelings"]
        # The proxy's own word for `pod` must not win over the operator's.
        assert "honorLabels" not in endpoints[monitor]
    servers = endpoints["model-servers"]
    assert [one["replacement"] for one in servers["relabelings"]] == ["$1:15020"]
    assert servers["honorLabels"] is True


@pytest.mark.parametrize("name", ["split", "ab-by-cookie", "canary-at-zero"])
def test_a_route_answers_a_version_that_it_does_not_hold(name: str) -> None:
    """After the versions that it holds, before all that ignores the header; as in the local gateway."""
    (service,) = RENDERED[f"route-{name}"]
    entries = service["spec"]["http"]
    names = [entry["name"] for entry in entries]
    place = names.index("modelserveai-no-such-version")
    assert names[:place] == ["modelserveai-feedback", "modelserveai-version-1", "modelserveai-version-2"]
    assert not any(other.startswith("modelserveai-version-") for other in names[place:])
    entry = entries[place]
    assert entry["match"][0]["headers"] == {"x-model-version": {"regex": ".*"}}
    answer = entry["directResponse"]
    body = json.loads(answer["body"]["string"])
    assert answer["status"] == body["status"] == 404
    assert "no such version" in body["detail"]
    assert entry["headers"]["response"]["set"]["Content-Type"] == "application/problem+json"


def entered(entry: Thing) -> str:
    """The host by which an entry's only release is entered, through the interceptor or not."""
    (target,) = entry["route"]
    asked = target.get("headers", {}).get("request", {}).get("set", {}).get("Host")
    return str(asked or target["destination"]["host"])


def test_outcomes_go_where_the_rules_do_not_count() -> None:
    """The rule's own pattern takes the release's Service and not the one beside it."""
    rule = (ROOT / "monitoring" / "rules" / "traffic-istio.yml").read_text()
    patterns = set(re.findall(r'destination_service_name=~"([^"]+)"', rule))
    assert len(patterns) == 1
    counted = re.compile(patterns.pop())
    for name, things in RENDERED.items():
        for thing in things:
            if thing["kind"] == "Service":
                aside = thing["metadata"]["name"].endswith("-aside")
                assert (counted.fullmatch(thing["metadata"]["name"]) is None) == aside
            if thing["kind"] == "VirtualService" and name != "route-nobody":
                entry = thing["spec"]["http"][0]
                assert entry["match"] == [{"uri": {"exact": "/models/flights/feedback"}}]
                assert entry["rewrite"] == {"uri": "/feedback"}
                assert entered(entry) == "flights-v1-aside.modelserve.svc.cluster.local"


@pytest.mark.parametrize("name", ["split", "ab-by-cookie", "canary-at-zero", "mirror", "to-a-sleeper"])
def test_who_names_a_version_goes_where_the_rules_do_not_count(name: str) -> None:
    (service,) = [thing for thing in RENDERED[f"route-{name}"] if thing["kind"] == "VirtualService"]
    prefix = "modelserveai-version-"
    pinned = [entry for entry in service["spec"]["http"] if entry["name"].startswith(prefix)]
    assert pinned
    for entry in pinned:
        version = entry["name"].removeprefix(prefix)
        assert entry["match"][0]["headers"] == {"x-model-version": {"exact": version}}
        assert entered(entry) == f"flights-v{version}-aside.modelserve.svc.cluster.local"


def test_tracing_is_off_until_its_component_is_named(overlay: list[Thing]) -> None:
    assert not [thing for thing in overlay if thing["kind"] == "Telemetry"]
    things = with_component("tracing")
    assert [problem for thing in things for problem in problems_of(thing)] == []
    provider = re.search(r"- name: (\w+)\n +opentelemetry:", ISTIOD.read_text())
    assert provider
    tracing = [thing["spec"]["tracing"][0] for thing in things if thing["kind"] == "Telemetry"]
    assert [one["providers"] for one in tracing] == [[{"name": provider[1]}]] * 2
    (endpoint,) = [thing for thing in things if thing["metadata"]["name"] == "modelserve-tracing"]
    source, holder, key = CLUSTER_ENVIRONMENT["SERVING_OTLP_ENDPOINT"]
    assert (source, holder) == ("configMapKeyRef", endpoint["metadata"]["name"])
    assert endpoint["data"][key].startswith("http://otel-collector.tracing.svc")


def test_a_limit_that_a_model_asks_for_reaches_its_servers() -> None:
    """Nothing ever set one on a deployed release: whoever wanted a limit had to edit a Deployment."""
    text = (
        "name: flights\nsignature: {inputs: [{name: a, type: number}], outputs: [{name: b, type: number}]}\n"
    )

    def told(access: str) -> dict[str, Any]:
        asked = parse_spec(text + access, "model.yaml")
        deployment = release_manifests(release(), asked, CLUSTER, read_skeletons())[0]
        [server] = deployment["spec"]["template"]["spec"]["containers"]
        return {variable["name"]: variable.get("value") for variable in server["env"]}

    limited = told("access: {per_second: 20}\n")
    assert limited["SERVING_RATE_LIMIT"] == "20"
    assert (limited["SERVING_FORWARDED_CLIENTS"], limited["SERVING_FORWARDED_PROXIES"]) == ("true", "3")
    assert "SERVING_RATE_LIMIT" not in told("")
    assert "SERVING_JOBS_INPUT_URIS" in told("")
