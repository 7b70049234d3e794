"""Every connection that the system needs passes its network policies, at both ends; others do not.

Evaluates the policies as a network plugin does: a pod that any policy selects for a direction is closed in
that direction except for what the policies that select it let through.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.manifests.validate import OVERLAYS, built

Thing = dict[str, Any]
NETWORKS = {"staging": "10.10.0.0/16", "production": "10.20.0.0/16"}


@dataclass(frozen=True)
class End:
    """A pod (namespace and labels), or an address outside of the cluster."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def pod(namespace: str, **labels: str) -> End:
    return End(namespace, {f"app.kubernetes.io/{name}": value for name, value in labels.items()})


def flows_pod(name: str) -> End:
    return pod("modelserve-system", name=name)


SERVER = pod("modelserve", component="model-server")
GATEWAY = End("istio-ingress", {"istio": "ingressgateway"})
INTERCEPTOR = pod("keda", component="interceptor")
DNS, ISTIOD = End("kube-system"), End("istio-system")
PREFECT, MONITORING = End("prefect"), End("monitoring")
PROGRAMS = [flows_pod(name) for name in ("prefect-worker", "alert-receiver", "sweep", "drift", "flow-run")]
AWS = End(address="52.95.1.1")
METADATA = End(address="169.254.169.254")


def database(overlay: str) -> End:
    return End(address=str(ipaddress.ip_network(NETWORKS[overlay])[300]))


def needed(overlay: str) -> list[tuple[End, End, int, str]]:
    """What must work: from, to, port, protocol."""
    inside = database(overlay)
    found = [(end, DNS, 53, protocol) for end in [SERVER, *PROGRAMS] for protocol in ("UDP", "TCP")]
    found += [(end, ISTIOD, 15012, "TCP") for end in [SERVER, *PROGRAMS]]
    # S3, ECR and STS for both; the Kubernetes API for the programs is an address of the network as well.
    found += [(end, AWS, 443, "TCP") for end in [SERVER, *PROGRAMS]]
    found += [(end, inside, port, "TCP") for end in [SERVER, *PROGRAMS] for port in (5432, 6379)]
    found += [(end, inside, 443, "TCP") for end in PROGRAMS]
    found += [(end, PREFECT, 4200, "TCP") for end in PROGRAMS]
    found += [(end, MONITORING, 9090, "TCP") for end in PROGRAMS]
    found += [(end, GATEWAY, 80, "TCP") for end in PROGRAMS]
    found += [(end, SERVER, 8080, "TCP") for end in [*PROGRAMS, GATEWAY, INTERCEPTOR, SERVER]]
    found += [(MONITORING, SERVER, 15020, "TCP"), (MONITORING, flows_pod("alert-receiver"), 4300, "TCP")]
    return found


def refused(overlay: str) -> list[tuple[End, End, int, str]]:
    stranger = End("default", {"app.kubernetes.io/component": "model-server"})
    found = [(stranger, SERVER, 8080, "TCP"), (stranger, flows_pod("alert-receiver"), 4300, "TCP")]
    found += [(MONITORING, SERVER, 8080, "TCP"), (End("nginx-ingress"), SERVER, 8080, "TCP")]
    found += [(pod("keda", component="operator"), SERVER, 8080, "TCP")]
    found += [(end, METADATA, port, "TCP") for end in [SERVER, *PROGRAMS] for port in (80, 443)]
    found += [(SERVER, PREFECT, 4200, "TCP"), (SERVER, MONITORING, 9090, "TCP"), (SERVER, AWS, 80, "TCP")]
    other = database(next(name for name in OVERLAYS if name != overlay))
    found += [(end, other, 5432, "TCP") for end in [SERVER, *PROGRAMS]]
    found += [(MONITORING, flows_pod("prefect-worker"), 8080, "TCP")]
    # A pod that nobody thought of may ask for names, and no more.
    unforeseen = pod("modelserve", component="unforeseen")
    found += [(GATEWAY, unforeseen, 8080, "TCP"), (unforeseen, AWS, 443, "TCP")]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_connection_that_is_needed_passes(overlay: str) -> None:
    policies = network_policies(overlay)
    assert [flow for flow in needed(overlay) if not passes(policies, *flow)] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_other_does(overlay: str) -> None:
    policies = network_policies(overlay)
    assert [flow for flow in refused(overlay) if passes(policies, *flow)] == []


def network_policies(overlay: str) -> list[Thing]:
    return [thing for thing in built(overlay) if thing["kind"] == "NetworkPolicy"]


def passes(policies: list[Thing], source: End, target: End, port: int, protocol: str) -> bool:
    return lets(policies, "egress", source, target, port, protocol) and lets(
        policies, "ingress", target, source, port, protocol
    )


def lets(policies: list[Thing], direction: str, subject: End, other: End, port: int, protocol: str) -> bool:
    if subject.address:
        return True
    selecting = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == subject.namespace
        and direction.capitalize() in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], subject.labels)
    ]
    peers = "to" if direction == "egress" else "from"
    return not selecting or any(
        {"port": port, "protocol": protocol} in rule["ports"]
        and any(is_peer(peer, subject.namespace, other) for peer in rule[peers])
        for spec in selecting
        for rule in spec.get(direction, [])
    )


def is_peer(peer: Thing, own_namespace: str, other: End) -> bool:
    if "ipBlock" in peer:
        if not other.address:
            return False
        address = ipaddress.ip_address(other.address)
        block = peer["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(hole) for hole in block.get("except", [])
        )
    if other.address:
        return False
    if "namespaceSelector" in peer:
        there = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        there = other.namespace == own_namespace
    return there and selects(peer.get("podSelector", {}), other.labels)


def selects(selector: Thing, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "this test knows no other selector"
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
