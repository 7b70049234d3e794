"""What the story on a cluster stands on, as far as it runs without one: real API calls, rules and rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from flows.demo import traffic
from flows.demo.traffic_rows import Selection
from flows.domain.routes import Routes
from flows.domain.spec import parse_spec
from serving.models.flights import data, train
from tests.free_ports import free_ports
from tests.manifests.test_manifests import restricted
from tests.manifests.test_network_policies import (
    DNS,
    GATEWAY,
    MONITORING,
    PREFECT,
    PROGRAMS,
    SERVER,
    End,
    network_policies,
    passes,
    pod,
)
from tests.manifests.validate import ROOT, TRIAL, problems_of
from tests.platform import fake_kubernetes
from tests.platform.fake_kubernetes import FakeKubernetes
from tests.platform.kubernetes_world import DIGEST, kubernetes_platform, put_servers
from tests.platform.promotion_world import (
    CLIENT,
    CONFIG_MAP_BYTES,
    FLOWS,
    MODEL,
    POLICY,
    ROWS,
    World,
    model_folder,
    read_settings,
    some_rows,
    users,
)
from tests.platform.real_kubernetes import Admin

IMAGE = f"kind-registry:5000/modelserve/flows@{DIGEST}"
RULES = ROOT / "monitoring" / "rules" / "traffic-istio.yml"


def test_the_policy_is_one_that_the_flows_take(tmp_path: Path) -> None:
    path = model_folder(tmp_path / MODEL) / "model.yaml"
    policy = parse_spec(path.read_text(), str(path)).promotion
    assert {name: getattr(policy, name) for name in POLICY} == POLICY | {"steps": (10, 50, 100)}
    assert policy.weights.outputs == 0, "what the policy does not name stays the model's own"
    assert (path.parent / "handler.py").is_file()


def test_the_rows_fit_into_a_config_map_and_are_ones_to_replay(tmp_path: Path) -> None:
    live = data.between(data.prepared(tmp_path), train.LIVE_SINCE, train.LIVE_UNTIL)
    file = some_rows(live, tmp_path / "rows.parquet")
    assert file.stat().st_size < CONFIG_MAP_BYTES / 2
    rows = list(Selection().rows(file))
    assert len(rows) == ROWS
    assert rows == sorted(rows, key=lambda row: row.at)
    (instance,) = json.loads(rows[0].body)["instances"]
    spec = yaml.safe_load((ROOT / "serving/models/flights/model.yaml").read_text())
    assert set(instance) == {column["name"] for column in spec["signature"]["inputs"]}
    # Version 3 is sick by what these name: without them there would be nothing to reject.
    assert any(json.loads(row.body)["instances"][0]["carrier"] == "MQ" for row in rows)


def test_the_users_are_a_pod_that_the_namespace_admits() -> None:
    things = users(IMAGE, b"rows")
    assert [problem for thing in things for problem in problems_of(thing)] == []
    pod = things[1]["spec"]["template"]["spec"]
    assert restricted(pod) == []
    program, _, module, *options = pod["containers"][0]["command"]
    assert (program, module) == ("python", "flows.demo.traffic")
    given = traffic._parser().parse_args(options)
    assert (given.model, given.repeat, given.rows) == (MODEL, True, Path("/rows/rows.parquet"))


def test_the_policies_of_the_cluster_let_everything_through_that_the_story_needs() -> None:
    """Of the overlay `kind`. Its services are pods, which a policy may name by address or by namespace."""
    policies = network_policies(TRIAL)
    services = (End(address="10.244.1.7"), End("managed"))

    def reached(source: End, port: int) -> bool:
        return any(passes(policies, source, service, port, "TCP") for service in services)

    for program in PROGRAMS:
        assert [port for port in (5432, 6379, 8333) if not reached(program, port)] == []
        assert passes(policies, program, PREFECT, 4200, "TCP")
        assert passes(policies, program, SERVER, 8080, "TCP")
    assert reached(SERVER, 6379)
    assert not reached(SERVER, 8333), "servers have their bundle in their image"
    assert passes(policies, pod(FLOWS, name=CLIENT), GATEWAY, 80, "TCP")
    assert passes(policies, pod(FLOWS, name=CLIENT), DNS, 53, "UDP")
    assert not passes(policies, pod(FLOWS, name=CLIENT), GATEWAY, 8443, "TCP")
    assert passes(policies, MONITORING, SERVER, 15020, "TCP")


class Gateway(ThreadingHTTPServer):
    """Istio's gateway as Prometheus sees it: each scrape shows sixty more requests, split by the weights."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Scrape)
        self.weights: dict[str, int] = {}
        self.counts: Counter[tuple[str, str]] = Counter()

    def exposition(self) -> str:
        for release, weight in self.weights.items():
            self.counts[release, "503" if release == "flights-v3" else "200"] += weight * 60 // 100
        return "# TYPE istio_requests_total counter\n" + "".join(
            f'istio_requests_total{{reporter="source",source_workload="istio-ingressgateway",'
            f'destination_service_name="{release}",response_code="{code}"}} {count}\n'
            for (release, code), count in self.counts.items()
        )


class Scrape(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(self.server.exposition().encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def prometheus(gateway: Gateway, tmp_path: Path) -> Iterator[str]:
    """A real one, with the rules that ship, scraping that gateway."""
    (port,) = free_ports(1)
    target = {"targets": [f"127.0.0.1:{gateway.server_port}"], "labels": {"pod": "istio-ingressgateway-1"}}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "gateway", "static_configs": [target]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed: apt-get install prometheus"
    url = f"127.0.0.1:{port}"
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address={url}"]
    command.append(f"--storage.tsdb.path={tmp_path / 'data'}")
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _ready(f"http://{url}/-/ready"):
            assert running.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "Prometheus did not start"
            time.sleep(0.1)
        yield f"http://{url}"
    finally:
        running.terminate()
        running.wait()


def _ready(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def test_the_story_is_read_from_route_and_counters(
    gateway: Gateway, prometheus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The platform's own writes over HTTP, and the rules that ship: what the story will read on a cluster."""
    monkeypatch.setitem(fake_kubernetes.KINDS, ("", "configmaps"), "ConfigMap")
    fake = FakeKubernetes()
    with (
        kubernetes_platform(fake, tmp_path, monkeypatch.setenv) as platform,
        httpx2.Client(base_url=fake.url) as http,
    ):
        world = World(Admin(http, tmp_path / "kubeconfig"), {"MODELSERVE_PROMETHEUS_URL": prometheus}, 30)

        receiver = {"spec": {"template": {"spec": {"containers": [{"image": IMAGE}]}}}}
        named = {"metadata": {"name": "alert-receiver", "namespace": FLOWS}}
        world.admin.call("POST", f"/apis/apps/v1/namespaces/{FLOWS}/deployments", receiver | named)
        world.deploy_users(b"rows")
        world.deploy_users(b"rows")  # as a second run would
        place = f"/apis/apps/v1/namespaces/{FLOWS}/deployments/{CLIENT}"
        pod = world.admin.call("GET", place)["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"] == IMAGE

        put_servers(fake, "flights-v2", "flights-v3")
        platform.route(MODEL, Routes({"flights-v2": 50, "flights-v3": 50}))
        gateway.weights = {"flights-v2": 50, "flights-v3": 50}
        assert world.weights() == gateway.weights
        world.until(lambda: world.counted(3, ',class="5"') > 0, "failures of the sick release")
        with pytest.raises(AssertionError):
            world.only_this_one_is_asked(2, others=(3,))

        # The route says so, but requests still arrive: not believed.
        platform.route(MODEL, Routes({"flights-v2": 100, "flights-v3": 0}))
        with pytest.raises(AssertionError, match="everybody is on v2"):
            replace(world, patience_seconds=8).only_this_one_is_asked(2, others=(3,))

        gateway.weights = {"flights-v2": 100}
        world.only_this_one_is_asked(2, others=(3,))
        judged = world.counted(2)  # first, since everything grows
        assert world.counted_by_the_mesh(2) >= judged > 0
        assert world.counted(2, ',class="5"') == 0

        world.remove_users()
        assert not world.admin.exists(place)


def test_the_settings_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "runner.env").write_text("A=1\nURL=postgresql://a:b@c/d?e=f\n")
    assert read_settings(tmp_path / "runner.env") == {"A": "1", "URL": "postgresql://a:b@c/d?e=f"}
