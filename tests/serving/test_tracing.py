"""Traces reach a collector, and the latency histogram names them: from a slow bucket to the spans."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.otlp_collector import Collector
from tests.serving.model_bundles import affine
from tests.serving.server_runs import ThreadedServer, free_port, threaded

BODY = {"instances": [[1, 2, 3, 4]]}
OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain; q=0.5"
"""What Prometheus asks for."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def traced(collector: Collector, tmp_path: Path) -> Iterator[ThreadedServer]:
    with threaded(affine(tmp_path), otlp_endpoint=collector.url) as server:
        yield server


def exemplars(text: str) -> dict[str, str]:
    """Bound of a bucket of /predict → the trace that it names."""
    lines = [
        line for line in text.splitlines() if line.startswith("modelserve_request_duration_seconds_bucket")
    ]
    found = (
        re.search(r'le="([^"]+)".*route="/predict".* # \{trace_id="([0-9a-f]{32})"\}', line) for line in lines
    )
    return {match[1]: match[2] for match in found if match}


def eventually(check: Callable[[], Any], seconds: float = 10) -> Any:
    until = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def test_a_request_joins_its_client_s_trace_and_the_histogram_names_it(
    traced: ThreadedServer, collector: Collector
) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with traced.client() as client:
        headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "mine"}
        assert client.post("/predict", json=BODY, headers=headers).status_code == 200
        answer = client.get("/metrics", headers={"accept": OPENMETRICS})
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert answer.text.endswith("# EOF\n")
        assert set(exemplars(answer.text).values()) == {trace}
        plain = client.get("/metrics", headers={"accept": "text/plain"})
        assert plain.headers["content-type"].startswith("text/plain")
        assert "trace_id" not in plain.text
        series = {line.partition("{")[0] for line in answer.text.splitlines() if not line.startswith("#")}
        before = {line.partition("{")[0] for line in plain.text.splitlines() if not line.startswith("#")}
        assert series == before, "a series has another name in the other format"
    traced.stop()
    (span,) = [span for span in collector.spans if span.name == "POST /predict"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    assert {a.key: a.value.string_value for a in span.attributes}["modelserve.request_id"] == "mine"


def test_a_trace_that_is_not_kept_is_not_named(traced: ThreadedServer) -> None:
    with traced.client() as client:
        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}
        assert client.post("/predict", json=BODY, headers=headers).status_code == 200
        answer = client.get("/metrics", headers={"accept": OPENMETRICS})
        assert answer.headers["content-type"].startswith("text/plain")
        assert exemplars(answer.text) == {}


def test_without_tracing_nothing_changes(affine_client: httpx.Client) -> None:
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    assert affine_client.post("/predict", json=BODY, headers=headers).status_code == 200
    answer = affine_client.get("/metrics", headers={"accept": OPENMETRICS})
    assert answer.headers["content-type"].startswith("text/plain")


def test_prometheus_stores_the_exemplar(traced: ThreadedServer, tmp_path: Path) -> None:
    """The real scraper, with the feature that infra/addons turns on."""
    program = shutil.which("prometheus")
    assert program is not None, "prometheus is not installed; `make setup` brings it"
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs:\n  - job_name: servers\n    scrape_interval: 1s\n    static_configs:\n"
        f"      - targets: ['{traced.url.removeprefix('http://')}']\n"
    )
    port = free_port()
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", "--enable-feature=exemplar-storage"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trace = "0af7651916cd43dd8448eb211c80319c"
    question = {
        "query": "modelserve_request_duration_seconds_bucket",
        "start": str(time.time() - 60),
        "end": str(time.time() + 60),
    }

    def stored() -> bool:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query_exemplars", params=question)
        except httpx.TransportError:
            return False
        if answer.status_code != 200:  # it listens before it is ready
            return False
        found = answer.json().get("data") or []
        return any(one["labels"]["trace_id"] == trace for series in found for one in series["exemplars"])

    try:
        with traced.client() as client:
            client.post("/predict", json=BODY, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
        assert eventually(stored, 20)
    finally:
        process.terminate()
        process.wait(20)
