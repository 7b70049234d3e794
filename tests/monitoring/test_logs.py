"""Logs: what programs write is what the collector takes apart, and an answer's id leads to its line."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.serving.model_bundles import people, person
from tests.serving.server_runs import process

REPOSITORY = Path(__file__).parents[2]
COLLECTOR = (REPOSITORY / "monitoring" / "loki" / "collector.alloy").read_text()
RULES = yaml.safe_load((REPOSITORY / "monitoring" / "loki" / "rules.yml").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def block(name: str) -> str:
    """The body of the one stage of this name."""
    (body,) = re.findall(rf"stage\.{name} \{{\n(.*?)\n    \}}", COLLECTOR, re.DOTALL)
    return str(body)


def keys(name: str) -> set[str]:
    return set(re.findall(r"^\s+(\w+)\s+= \"", block(name), re.MULTILINE))


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server, started as the image starts it, writes about a request that it fails."""
    folder = tmp_path_factory.mktemp("bundle") / "people"
    with process(people(folder), model="people") as server, httpx.Client(base_url=server.url) as client:
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        answer = client.post("/predict", json={"instances": [person("poison")]}, headers=headers)
        assert answer.status_code == 500
        assert client.get("/healthz").status_code == 200
        request = answer.headers["x-request-id"]
    lines = [json.loads(text) for text in server.log.splitlines() if text.startswith("{")]
    (found,) = [one for one in lines if one.get("request_id") == request and "status" in one]
    assert isinstance(found, dict)
    return found


def test_the_id_of_an_answer_leads_to_its_line(line: dict[str, Any]) -> None:
    assert line["status"] == 500
    assert line["model"] == "people"
    assert line["version"] == "7"
    assert line["level"] == "warning"


def test_the_collector_takes_what_the_server_writes(line: dict[str, Any]) -> None:
    assert keys("json") <= line.keys()
    assert keys("labels") | keys("structured_metadata") <= keys("json") | {"trace_id"}
    source = re.search(r'source += "(\w+)"\n +format += "RFC3339Nano"', block("timestamp"))
    assert source
    assert datetime.fromisoformat(line[source[1]]).utcoffset() is not None
    expression = re.search(r"expression = `([^`]+)`", block("regex"))
    assert expression
    found = re.search(expression[1], line["traceparent"])
    assert found
    assert found["trace_id"] == TRACE


def test_probes_are_dropped_and_requests_are_not(line: dict[str, Any]) -> None:
    dropped = re.search(r"expression +=\s`([^`]+)`\n +drop_counter_reason", COLLECTOR)
    assert dropped
    probe = {**line, "route": "/healthz", "status": 200}
    assert re.search(dropped[1], json.dumps(probe, separators=(",", ":")))
    for other in (line, {**probe, "status": 503}, {**line, "status": 200}):
        assert not re.search(dropped[1], json.dumps(other, separators=(",", ":")))


def test_ids_are_no_labels() -> None:
    """Each value of a label is a stream of its own: an id as label would make one a request."""
    assert keys("labels") == {"level"}
    assert keys("structured_metadata") == {"request_id", "trace_id"}


def test_the_gateways_write_the_same_fields() -> None:
    """On one machine and on the mesh; the mesh's line leads to the trace as well."""
    local = (REPOSITORY / "infra" / "local" / "envoy.yaml.j2").read_text()
    mesh = (REPOSITORY / "infra" / "addons" / "values" / "istiod.yaml.tftpl").read_text()
    section = re.search(r"FileAccessLog\n.*?json_format:\n(.*?)\n\{%", local, re.DOTALL)
    assert section
    here = dict(re.findall(r'(\w+): "(%[^"]+%)"', section[1]))
    values = yaml.safe_load(re.sub(r"\$\{[^}]+\}", "1", mesh))
    (provider,) = [one for one in values["meshConfig"]["extensionProviders"] if one["name"] == "gateway-log"]
    there = dict(provider["envoyFileAccessLog"]["logFormat"]["labels"])
    assert there.pop("traceparent") == "%REQ(TRACEPARENT)%"
    assert here == there
    assert {"at", "request_id"} <= keys("json") & there.keys()
    telemetry = REPOSITORY / "infra" / "addons" / "charts" / "platform" / "templates" / "telemetry.yaml"
    assert "providers: [{name: gateway-log}]" in telemetry.read_text()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_of_logs_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["labels"]["team"] in {"models", "platform"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"]
    anchor = alert["alert"].lower()
    assert alert["annotations"]["runbook_url"] == f"monitoring/runbook.md#{anchor}"
    runbook = (REPOSITORY / "monitoring" / "runbook.md").read_text()
    assert anchor in {heading.lower() for heading in re.findall(r"^## (.+)$", runbook, re.MULTILINE)}


def test_queries_select_by_labels_that_the_collector_sets() -> None:
    labels = keys("labels") | set(re.findall(r'target_label +=\s"(\w+)"', COLLECTOR))
    dashboard = json.loads((REPOSITORY / "monitoring" / "dashboards" / "models.json").read_text())
    asked = [alert["expr"] for alert in ALERTS]
    asked += [
        target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
        if target["datasource"]["type"] == "loki"
    ]
    assert len(asked) == len(ALERTS) + 2
    for query in asked:
        for selector in re.findall(r"(?<!\{)\{([^{}]+=[^{}]+)\}", query):
            assert set(re.findall(r"(\w+)\s*=~?", selector)) <= labels, query
