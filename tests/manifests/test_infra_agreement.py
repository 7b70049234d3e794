"""What k8s/ expects of the cluster is what infra/ makes: secrets, facts, namespaces, pools, versions."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.manifests.validate import OVERLAYS, ROOT, built
from tests.manifests.variants import RESOURCES, rendered

Thing = dict[str, Any]
ADDONS, CLUSTER = ROOT / "infra" / "addons", ROOT / "infra" / "cluster"


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Thing]:
    return built(request.param)


def block(text: str, name: str) -> str:
    """The body of `name = { … }`."""
    start = re.search(rf"^\s*{name}\s*=\s*{{", text, re.MULTILINE)
    assert start is not None, f"no {name}"
    depth, place = 1, start.end()
    while depth:
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        place += 1
    return text[start.end() : place - 1]


def keys(body: str) -> set[str]:
    """Names that are assigned at the outermost level."""
    found, depth = set(), 0
    for line in body.splitlines():
        if depth == 0 and (match := re.match(r'\s*"?([\w-]+)"?\s*=', line)):
            found.add(match.group(1))
        depth += line.count("{") + line.count("(") - line.count("}") - line.count(")")
    return found


def test_every_external_secret_exists(overlay: list[Thing]) -> None:
    text = (CLUSTER / "secrets.tf").read_text()
    made = {
        f"modelserve/{name}"
        for name in keys(block(text, "database_roles")) | keys(block(text, "other_secrets"))
    }
    wanted = {
        entry["remoteRef"]["key"]
        for thing in overlay
        if thing["kind"] == "ExternalSecret"
        for entry in thing["spec"]["data"]
    }
    assert wanted
    assert wanted <= made


def test_every_cluster_fact_exists() -> None:
    facts = keys(block((ADDONS / "namespaces.tf").read_text(), "cluster_facts"))
    from flows.settings import Settings

    needed = {"MODELSERVE_RESULTS_URI", "PREFECT_API_URL", "SERVING_JOBS_URI", "AWS_REGION"}
    addresses = {"registry_url", "redis_url", "prometheus_url", "prefect_url", "gateway_url", "artifacts_uri"}
    assert addresses <= set(Settings.model_fields)
    secrets = {"registry_url", "redis_url"}  # come from the Secret `modelserve-flows`
    needed |= {f"MODELSERVE_{name.upper()}" for name in addresses - secrets}
    assert needed <= facts


def test_every_namespace_that_is_named_exists(overlay: list[Thing]) -> None:
    made = keys(block((ADDONS / "namespaces.tf").read_text(), "namespaces")) | {"kube-system"}
    named = {thing["metadata"]["namespace"] for thing in overlay if "namespace" in thing["metadata"]}
    text = str(overlay)
    named |= set(re.findall(r"'kubernetes.io/metadata.name': '([\w-]+)'", text))
    named |= set(re.findall(r"cluster\.local/ns/([\w-]+)/sa/", text))
    assert named <= made


def test_the_pools_are_the_node_groups(overlay: list[Thing]) -> None:
    text = "".join(path.read_text() for path in CLUSTER.glob("*.tf"))
    for resources in RESOURCES.values():
        assert re.search(rf"\b{resources.get('pool', 'cpu')}\b", text)
    assert "modelserve.ai/pool" in text
    used = set(re.findall(r"'modelserve.ai/pool': '(\w+)'", str(overlay) + str(rendered())))
    assert used == {"system", "cpu", "gpu"}


@pytest.mark.parametrize(
    ("chart", "least"), [("keda", (2, 17)), ("keda-add-ons-http", (0, 14)), ("istiod", (1, 27))]
)
def test_the_charts_are_new_enough(chart: str, least: tuple[int, int]) -> None:
    text = (ADDONS / "charts.tf").read_text()
    line = next(line for line in text.splitlines() if re.match(rf"\s*{chart}\s*=", line))
    version = re.search(r'version = "(\d+)\.(\d+)', line)
    assert version is not None
    assert (int(version.group(1)), int(version.group(2))) >= least


def test_the_gateway_and_the_store_have_the_names_that_we_use() -> None:
    assert (
        "labels: {istio: ingressgateway}"
        in (ADDONS / "values" / "istio-ingressgateway.yaml.tftpl").read_text()
    )
    assert re.search(r"^\s*istio-ingressgateway\s*=", (ADDONS / "charts.tf").read_text(), re.MULTILINE)
    charts = "".join(path.read_text() for path in (ADDONS / "charts").rglob("*") if path.is_file())
    assert "aws-secrets-manager" in charts
