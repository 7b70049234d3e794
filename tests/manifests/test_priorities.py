"""Who is scheduled first on a full node: users, then the way back, then housekeeping, which evicts nobody."""

from __future__ import annotations

import json
from typing import Any

import hcl2
import pytest
import yaml

from tests.infra.test_terraform import unquoted
from tests.manifests.validate import OVERLAYS, ROOT, TRIAL, built
from tests.manifests.variants import rendered

SERVING, CONTROL, HOUSEKEEPING = "modelserve-serving", "modelserve-control", "modelserve-housekeeping"
MAY_WAIT = {"archive", "drift", "drift-due", "train"}
OF_PODS = {
    "prefect-worker": CONTROL,
    "alert-receiver": CONTROL,
    "sweep": CONTROL,
    "drift": HOUSEKEEPING,
}


def made_by_terraform() -> dict[str, dict[str, Any]]:
    content = unquoted(hcl2.loads((ROOT / "infra" / "addons" / "priorities.tf").read_text()))
    classes: dict[str, dict[str, Any]] = content["locals"][0]["priorities"]
    return classes


def made_by_the_trial() -> dict[str, dict[str, Any]]:
    return {
        thing["metadata"]["name"]: {
            "value": thing["value"],
            "default": thing["globalDefault"],
            "preempts": thing["preemptionPolicy"],
            "description": thing["description"],
        }
        for thing in built(TRIAL)
        if thing["kind"] == "PriorityClass"
    }


def test_the_classes_are_in_this_order_and_the_same_everywhere() -> None:
    classes = made_by_terraform()
    assert classes == made_by_the_trial()
    assert classes[SERVING]["value"] > classes[CONTROL]["value"] > 0 > classes[HOUSEKEEPING]["value"]
    assert classes[HOUSEKEEPING]["preempts"] == "Never"
    # Charts name no class: the gateway, istiod, KEDA and Prometheus have the one of who serves.
    assert [name for name, one in classes.items() if one["default"]] == [SERVING]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_of_ours_has_the_class_of_its_work(name: str) -> None:
    found = {}
    for thing in built(name):
        assert thing["kind"] != "PriorityClass", "Terraform makes them, before the first pod"
        job = thing.get("spec", {}).get("jobTemplate", {}).get("spec", {}) if "spec" in thing else {}
        pod = (job or thing.get("spec", {})).get("template", {}).get("spec", {})
        if "containers" in pod:
            found[thing["metadata"]["name"]] = pod.get("priorityClassName")
    assert found == OF_PODS


def test_servers_come_first() -> None:
    servers = [thing for things in rendered().values() for thing in things if thing["kind"] == "Deployment"]
    assert servers
    assert {one["spec"]["template"]["spec"]["priorityClassName"] for one in servers} == {SERVING}


def test_flow_runs_that_may_wait_do() -> None:
    """All of them decided alike once: a sweep every minute and a drift check had servers evicted."""
    template = json.loads((ROOT / "k8s/base/flows/prefect/base-job-template.json").read_text())
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "{{ priority_class }}"
    default = template["variables"]["properties"]["priority_class"]["default"]
    given = {
        one["name"]: one["work_pool"].get("job_variables", {}).get("priority_class", default)
        for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    }
    assert given.keys() > MAY_WAIT
    assert given == {name: HOUSEKEEPING if name in MAY_WAIT else CONTROL for name in given}
