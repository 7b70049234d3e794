"""Real requests through a real Envoy, read by a real Prometheus with the real rules: the counts are exact."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import envoy
import httpx
import pytest

from flows.adapters.prometheus import PrometheusCounters
from flows.domain.errors import DependencyDown
from flows.domain.judge.counters import Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Window, unobserved

RULES = Path(__file__).parents[2] / "monitoring" / "rules" / "traffic-envoy.yml"
CANARY, STABLE = "flights-v2", "flights-v1"
QUICK = PromotionPolicy(dwell_seconds=4, window_seconds=2, deadline_seconds=600, require_metrics=False)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def eventually(check: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


class Upstream(BaseHTTPRequestHandler):
    """Answers 200, is a little slow for /slow, does not fit for /misfit, and answers /hang too late."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "slow" in self.path:
            time.sleep(0.3)
        if "hang" in self.path:
            time.sleep(1)
        self.send_response(422 if "misfit" in self.path else 404 if "lost" in self.path else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        del format, args


class World:
    """Envoy with two releases, v2 without a server, and a Prometheus that scrapes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
        self.thread = threading.Thread(target=self.upstream.serve_forever, args=(0.05,))
        self.thread.start()
        self.gateway, self.admin, self.prometheus = free_port(), free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start_envoy()
        self.start_prometheus()
        self.counters = PrometheusCounters(f"http://127.0.0.1:{self.prometheus}", fresh_seconds=4)

    def start_envoy(self) -> None:
        self.folder.joinpath("envoy.json").write_text(json.dumps(self._envoy()))
        binary = Path(envoy.__file__).parent / "_bin" / "envoy"
        self._start("envoy", [str(binary), "-c", "envoy.json", "--base-id", str(self.admin), "-l", "error"])
        eventually(lambda: self._answers(f"http://127.0.0.1:{self.admin}/ready"))

    def start_prometheus(self) -> None:
        binary = shutil.which("prometheus")
        assert binary, "prometheus is not installed: apt-get install prometheus"
        scrape = {
            "job_name": "gateway",
            "metrics_path": "/stats/prometheus",
            "static_configs": [{"targets": [f"127.0.0.1:{self.admin}"]}],
        }
        times = {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"}
        config = {"global": times, "rule_files": [str(RULES)], "scrape_configs": [scrape]}
        self.folder.joinpath("prometheus.yml").write_text(json.dumps(config))
        self._start(
            "prometheus",
            [
                binary,
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{self.prometheus}",
                "--log.level=error",
            ],
        )
        eventually(lambda: self._answers(f"http://127.0.0.1:{self.prometheus}/-/ready"))

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        process.wait(20)

    def close(self) -> None:
        for name in list(self.processes):
            self.stop(name)
        self.upstream.shutdown()
        self.thread.join()
        self.upstream.server_close()

    def ask(self, release: str, times: int, path: str = "/predict") -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.gateway}", timeout=10) as client:
            for _ in range(times):
                client.get(path, headers={"x-release": release})

    def snapshot(self, earlier: Snapshot | None = None) -> Snapshot:
        """A trusted snapshot of a moment after this call began: every flush, scrape and rule has passed."""
        time.sleep(3.2)
        found: list[Snapshot] = []

        def trusted() -> bool:
            try:
                found.append(self.counters.snapshot([STABLE, CANARY], earlier))
            except DependencyDown:
                return False
            return not found[-1].doubt(4)

        eventually(trusted)
        return found[-1]

    def _start(self, name: str, command: list[str]) -> None:
        log = self.folder.joinpath(f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        log.close()

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            return httpx.get(url, timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def _envoy(self) -> dict[str, object]:
        def address(port: int) -> dict[str, object]:
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        def cluster(name: str, port: int) -> dict[str, object]:
            endpoint = {"endpoint": {"address": address(port)}}
            return {
                "name": name,
                "type": "STATIC",
                "connect_timeout": "0.5s",
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            }

        def route(name: str, **mirror: object) -> dict[str, object]:
            header = {"name": "x-release", "string_match": {"exact": name}}
            return {"match": {"prefix": "/", "headers": [header]}, "route": {"cluster": name, **mirror}}

        types = "type.googleapis.com/envoy.extensions.filters."
        connections = {
            "@type": f"{types}network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "gateway",
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "models",
                        "domains": ["*"],
                        "routes": [
                            route(STABLE, request_mirror_policies=[{"cluster": f"{CANARY}@aside"}]),
                            route(CANARY),
                        ],
                    }
                ]
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{types}http.router.v3.Router"},
                }
            ],
        }
        connection_manager = {
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": connections,
        }
        return {
            "admin": {"address": address(self.admin)},
            "stats_flush_interval": "1s",
            "static_resources": {
                "listeners": [
                    {
                        "name": "gateway",
                        "address": address(self.gateway),
                        "filter_chains": [{"filters": [connection_manager]}],
                    }
                ],
                "clusters": [
                    cluster(STABLE, self.upstream.server_port),
                    cluster(CANARY, free_port()),
                    cluster(f"{CANARY}@aside", self.upstream.server_port),
                ],
            },
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("prometheus"))
    yield world
    world.close()


def test_counts_are_those_of_the_requests_and_a_canary_without_servers_is_rejected(world: World) -> None:
    before = world.snapshot()
    world.ask(STABLE, 90)
    world.ask(STABLE, 10, "/slow")
    world.ask(CANARY, 12)
    window = difference(before, world.snapshot(before), CANARY, STABLE, 10)
    assert window.observed, window.why
    assert window.stable is not None
    # The copies that Envoy mirrored are in no count.
    assert (window.stable.requests, window.stable.errors, window.stable.timed) == (100, 0, 100)
    # A busy machine may make an ordinary request slow as well.
    assert 10 <= window.stable.slow[0.25] <= 15
    assert window.stable.slow[5.0] == 0
    assert (window.canary.requests, window.canary.errors) == (12, 12)
    verdict = judge(QUICK, [window])
    assert (verdict.kind, verdict.metric) == ("reject", "errors")
    assert verdict.sentence.startswith("12 of 12 requests failed on the canary (100 %)")


def test_requests_that_do_not_fit_and_requests_that_are_never_answered_are_counted(world: World) -> None:
    before = world.snapshot()
    world.ask(STABLE, 20)
    world.ask(STABLE, 4, "/misfit")
    world.ask(STABLE, 3, "/lost")
    for _ in range(5):
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"http://127.0.0.1:{world.gateway}/hang", headers={"x-release": STABLE}, timeout=0.2)
    window = difference(before, world.snapshot(before), CANARY, STABLE, 10)
    assert window.observed, window.why
    stable = window.stable
    assert stable is not None
    # Another address says nothing of the release; five were sent and never answered.
    assert (stable.requests, stable.predicted, stable.refused) == (27, 20, 4)
    assert stable.sent == 32


def test_a_gateway_that_restarts_counts_from_zero(world: World) -> None:
    before = world.snapshot()
    world.stop("envoy")

    def down() -> bool:
        return "does not answer Prometheus" in world.counters.snapshot([STABLE, CANARY], before).doubt(4)

    eventually(down)
    gap = difference(before, world.counters.snapshot([STABLE, CANARY], before), CANARY, STABLE, 10)
    assert not gap.observed
    world.start_envoy()
    world.ask(STABLE, 7)
    world.ask(CANARY, 1)
    window = difference(before, world.snapshot(before), CANARY, STABLE, 10)
    assert window.observed, window.why
    assert window.stable is not None
    assert (window.stable.requests, window.canary.requests) == (7, 1)


def test_an_outage_of_prometheus_loses_no_request_and_old_samples_are_not_believed(world: World) -> None:
    before = world.snapshot()
    world.ask(STABLE, 5)
    world.stop("prometheus")
    with pytest.raises(DependencyDown):
        world.counters.snapshot([STABLE, CANARY], before)
    gap = unobserved(before.at, before.at + 3, 10, "Prometheus does not answer")
    world.ask(STABLE, 20)
    world.ask(CANARY, 3)
    time.sleep(5)
    world.start_prometheus()
    after = world.snapshot(before)
    window = difference(before, after, CANARY, STABLE, 10)
    assert window.observed, window.why
    assert window.stable is not None
    assert (window.stable.requests, window.canary.requests) == (25, 3)
    replayed = [Window.from_json(json.loads(json.dumps(one.to_json()))) for one in (gap, window)]
    assert judge(QUICK, replayed) == judge(QUICK, [gap, window])


def test_the_last_hours_traffic_for_the_plan(world: World) -> None:
    """Of all that the tests before have sent: about 150 requests within a minute, some of them failed."""
    world.ask(STABLE, 20)
    eventually(lambda: world.counters.recent("flights")[0] > 0, 30)
    rps, errors = world.counters.recent("flights")
    assert 0.1 < rps < 50
    assert 0 <= errors < 0.5
