"""Limits that stand in several places agree: ingress, route, server; drain and request; ports."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from flows.domain.cluster.manifests import PORT, Cluster
from flows.settings import Settings as FlowsSettings
from serving.settings import Settings as ServingSettings
from serving.spec import LimitsSpec
from tests.manifests.validate import ROOT, built
from tests.manifests.variants import CLUSTER, rendered

Thing = dict[str, Any]


def annotations(name: str) -> dict[str, str]:
    (ingress,) = [t for t in built("production") if t["kind"] == "Ingress" and t["metadata"]["name"] == name]
    return dict(ingress["metadata"]["annotations"])


def limits() -> dict[str, LimitsSpec]:
    """A server's own, for a model that says nothing and for every model of this repository."""
    found = {"default": LimitsSpec()}
    for path in sorted((ROOT / "serving" / "models").glob("*/model.yaml")):
        serving = yaml.safe_load(path.read_text()).get("serving", {})
        found[path.parent.name] = LimitsSpec.model_validate(serving.get("limits", {}))
    assert len(found) > 1
    return found


@pytest.mark.parametrize("model", limits())
def test_the_ingress_lets_through_what_a_server_accepts(model: str) -> None:
    sizes = {name: value for name, value in annotations("models").items() if "body-size" in name}
    assert len(sizes) == 2
    for value in sizes.values():
        megabytes = int(value.removesuffix("m"))
        assert megabytes * 2**20 >= limits()[model].max_body_bytes


@pytest.mark.parametrize("model", limits())
def test_the_gateway_waits_longer_than_a_server_works(model: str) -> None:
    """Else a user gets the gateway's 504 where the server's own answer, which names the deadline, was due."""
    assert limits()[model].timeout_seconds < CLUSTER.request_seconds
    assert limits()[model].body_seconds < CLUSTER.request_seconds


def test_each_hop_waits_longer_than_the_next() -> None:
    reads = {name: value for name, value in annotations("models").items() if "read-timeout" in name}
    assert len(reads) == 2
    route = CLUSTER.request_seconds + CLUSTER.wake_seconds
    for value in reads.values():
        assert int(value.removesuffix("s")) > route
    attributes = annotations("public")["alb.ingress.kubernetes.io/load-balancer-attributes"]
    balancer = int(re.search(r"idle_timeout.timeout_seconds=(\d+)", attributes).group(1))  # type: ignore[union-attr]
    assert balancer > max(int(value.removesuffix("s")) for value in reads.values())


def test_the_route_waits_as_long_as_the_local_gateway() -> None:
    assert FlowsSettings.model_fields["gateway_timeout_seconds"].default == Cluster().request_seconds


def test_a_pod_drains_longer_than_the_longest_request() -> None:
    for name, things in rendered().items():
        if not name.startswith("release-"):
            continue
        pod = things[0]["spec"]["template"]["spec"]
        drain = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert drain > CLUSTER.request_seconds
        own = int(environment(things[0])["SERVING_DRAIN_SECONDS"])
        assert pod["terminationGracePeriodSeconds"] > drain + own


def test_the_environment_is_the_servers_own_settings() -> None:
    known = {f"SERVING_{name.upper()}" for name in ServingSettings.model_fields}
    for name, things in rendered().items():
        if name.startswith("release-"):
            assert set(environment(things[0])) <= known
            assert environment(things[0])["SERVING_PORT"] == str(PORT)


def environment(deployment: Thing) -> dict[str, str | None]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value") for variable in container["env"]}
