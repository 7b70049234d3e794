"""Who may call whom in the mesh, as its authorization policies say: the ingress, the flows, and nobody else.

Evaluates the policies as Istio does: a DENY that matches refuses; where any ALLOW policy selects the
workload, one of them must match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.manifests.validate import OVERLAYS, built

Thing = dict[str, Any]
GATEWAY = "cluster.local/ns/istio-ingress/sa/istio-ingressgateway"
FLOWS = "cluster.local/ns/modelserve-system/sa/modelserve-flows"
SERVER = "cluster.local/ns/modelserve/sa/modelserve-server"
INTERCEPTOR = "cluster.local/ns/keda/sa/keda-add-ons-http-interceptor"
NGINX = "cluster.local/ns/nginx-ingress/sa/nginx-ingress"
WORKER = "cluster.local/ns/modelserve-system/sa/modelserve-worker"
STRANGER = "cluster.local/ns/default/sa/default"
UNKNOWN = ""
"""Without mutual TLS there is no identity."""

IN_FRONT = {"istio": "ingressgateway"}
MODEL = {"app.kubernetes.io/component": "model-server"}
ASLEEP = {"app.kubernetes.io/component": "interceptor"}
RECEIVER = {"app.kubernetes.io/name": "alert-receiver"}


@dataclass(frozen=True)
class Call:
    source: str
    namespace: str
    labels: dict[str, str] = field(hash=False)
    path: str
    port: int = 8080
    method: str = "POST"


ALLOWED = [
    Call(NGINX, "istio-ingress", IN_FRONT, "/models/flights/predict", 80),
    Call(FLOWS, "istio-ingress", IN_FRONT, "/models/flights/predict", 80),
    Call(GATEWAY, "modelserve", MODEL, "/predict"),
    Call(GATEWAY, "modelserve", MODEL, "/feedback"),
    Call(GATEWAY, "modelserve", MODEL, "/v2/models/flights/infer"),
    Call(GATEWAY, "modelserve", MODEL, "/batch-predict"),
    Call(GATEWAY, "modelserve", MODEL, "/batch-predict/0a/results", method="GET"),
    Call(INTERCEPTOR, "modelserve", MODEL, "/predict"),
    Call(GATEWAY, "keda", ASLEEP, "/predict"),
    Call(FLOWS, "modelserve", MODEL, "/predict"),
    Call(FLOWS, "modelserve", MODEL, "/readyz", method="GET"),
    Call(SERVER, "modelserve", MODEL, "/predict"),
    Call(UNKNOWN, "modelserve-system", RECEIVER, "/alerts", 4300),
    Call(UNKNOWN, "modelserve-system", RECEIVER, "/metrics", 4300, "GET"),
]
REFUSED = [
    *(Call(who, "modelserve", MODEL, "/predict") for who in (STRANGER, UNKNOWN, NGINX, WORKER)),
    *(Call(who, "modelserve", MODEL, "/metrics", method="GET") for who in (GATEWAY, INTERCEPTOR, SERVER)),
    *(
        Call(who, "modelserve", MODEL, path, method="GET")
        for who in (GATEWAY, INTERCEPTOR)
        for path in ("/docs", "/openapi.json", "/healthz", "/readyz", "/%6detrics", "/metrics/", "/")
    ),
    Call(SERVER, "modelserve", MODEL, "/feedback"),
    Call(GATEWAY, "modelserve", {"app.kubernetes.io/component": "unforeseen"}, "/predict"),
    *(Call(who, "istio-ingress", IN_FRONT, "/models/flights/predict", 80) for who in (STRANGER, UNKNOWN)),
    Call(NGINX, "istio-ingress", IN_FRONT, "/models/flights/metrics", 80, "GET"),
    Call(NGINX, "istio-ingress", IN_FRONT, "/elsewhere", 80, "GET"),
    *(Call(who, "keda", ASLEEP, "/predict") for who in (STRANGER, UNKNOWN, NGINX)),
    Call(STRANGER, "modelserve-system", {"app.kubernetes.io/name": "prefect-worker"}, "/", 8080, "GET"),
    Call(STRANGER, "modelserve-system", RECEIVER, "/alerts", 4300, "GET"),
]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ingress_and_the_flows_may_call_models(overlay: str) -> None:
    policies = authorization_policies(overlay)
    assert [call for call in ALLOWED if not allows(policies, call)] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_else_may(overlay: str) -> None:
    policies = authorization_policies(overlay)
    assert [call for call in REFUSED if allows(policies, call)] == []


def authorization_policies(overlay: str) -> list[Thing]:
    return [thing for thing in built(overlay) if thing["kind"] == "AuthorizationPolicy"]


def allows(policies: list[Thing], call: Call) -> bool:
    here = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == call.namespace
        and policy["spec"].get("selector", {}).get("matchLabels", {}).items() <= call.labels.items()
    ]
    by_action: dict[str, list[Thing]] = {"ALLOW": [], "DENY": []}
    for spec in here:
        by_action[spec.get("action", "ALLOW")].append(spec)
    if any(matches(spec, call) for spec in by_action["DENY"]):
        return False
    return not by_action["ALLOW"] or any(matches(spec, call) for spec in by_action["ALLOW"])


def matches(spec: Thing, call: Call) -> bool:
    return any(
        (not rule.get("from") or any(is_source(one["source"], call) for one in rule["from"]))
        and (not rule.get("to") or any(is_operation(one["operation"], call) for one in rule["to"]))
        for rule in spec.get("rules", [])
    )


def is_source(source: Thing, call: Call) -> bool:
    assert set(source) == {"principals"}, "this test knows no other source"
    return call.source in source["principals"]


def is_operation(operation: Thing, call: Call) -> bool:
    assert set(operation) <= {"ports", "methods", "paths", "notPaths"}, "this test knows no other operation"
    return (
        str(call.port) in operation.get("ports", [str(call.port)])
        and call.method in operation.get("methods", [call.method])
        and (not operation.get("paths") or fits(operation["paths"], call.path))
        and not fits(operation.get("notPaths", []), call.path)
    )


def fits(patterns: list[str], path: str) -> bool:
    """Exact, with a star at one end, or a template."""
    patterns = [one.replace("{**}", "*") for one in patterns]
    return any(re.fullmatch(".*".join(re.escape(part) for part in one.split("*")), path) for one in patterns)
