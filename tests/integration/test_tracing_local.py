"""Tracing of the one-machine stack: one trace from Envoy into the model server, and none unless asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows.adapters.local import LocalPlatform
from flows.adapters.stack import Supervisor, up
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import parse_spec
from flows.settings import Settings
from serving.inference.bundle import seal
from tests.otlp_collector import Collector
from tests.platform import local_stack

MODEL = """
name: doubles
signature:
  inputs: [{name: x, type: number}]
  outputs: [{name: y, type: number}]
serving: {runtime: {kind: handler}}
resources: {start_seconds: 60, drain_seconds: 1}
"""
HANDLER = """
def load(folder, device):
    return 2

def predict(model, rows):
    return [{"y": row["x"] * model} for row in rows]
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def joined(collector: Collector) -> list[tuple[Any, Any]]:
    """Spans of the gateway, each with the server's span of the same trace."""
    servers = [span for span in collector.spans if span.name == "POST /predict"]
    return [
        (span, server)
        for server in servers
        for span in collector.spans
        if span.trace_id == server.trace_id and span is not server
    ]


def test_one_trace_goes_through_gateway_and_server(collector: Collector, tmp_path: Path) -> None:
    bundle = tmp_path / "doubles-v1"
    bundle.mkdir()
    (bundle / "model.yaml").write_text(MODEL)
    (bundle / "handler.py").write_text(HANDLER)
    release = Release("doubles", 1, str(bundle), seal(bundle))
    with local_stack.local_settings(python=sys.executable, otlp_endpoint=collector.url) as settings:
        up(settings, print, only=("redis", "envoy"))
        platform = LocalPlatform(settings, Supervisor(settings))
        platform.start(release, parse_spec(MODEL, "model.yaml"))
        platform.route("doubles", Routes({"doubles-v1": 100}))
        url = f"{settings.gateway_url}/models/doubles/predict"
        answer = httpx.post(url, json={"instances": [21]}, headers={"x-request-id": "mine"}, trust_env=False)
        assert answer.json() == {"predictions": [42]}
        assert answer.headers["x-request-id"] == "mine", "tracing must not rewrite the client's request id"
        until = time.monotonic() + 20
        while not (pairs := joined(collector)):
            assert time.monotonic() < until, f"spans of {[span.name for span in collector.spans]} only"
            time.sleep(0.1)
    ((gateway, server),) = pairs
    assert server.parent_span_id == gateway.span_id
    given = {attribute.key: attribute.value.string_value for attribute in gateway.attributes}
    assert given["upstream_cluster"] == "doubles-v1"


def test_no_endpoint_no_tracing(tmp_path: Path) -> None:
    from flows.adapters.stack.files import render

    settings = Settings(state=tmp_path)
    values = {"ports": settings.ports, "folder": str(tmp_path), "access_log": "access.log"}
    text = render("envoy.yaml.j2", **values, collector=None)
    assert "opentelemetry" not in text
    assert set(yaml.safe_load(text)["static_resources"]) == {"listeners"}
