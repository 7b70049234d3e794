"""Metrics of one's own and segments, through a real Prometheus: the queries, the counts, the verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from flows.adapters.prometheus import PrometheusCounters
from flows.domain.errors import DependencyDown
from flows.domain.judge.counters import Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.spec import parse_spec
from tests.serving.server_runs import free_port

RULES = Path(__file__).parents[2] / "monitoring" / "rules" / "traffic-envoy.yml"
CANARY, STABLE = "flights-v2", "flights-v1"
SPEC = parse_spec(
    """
name: flights
signature:
  inputs: [{name: country, type: string, categories: [FR, MT]}]
  outputs: [{name: y, type: number}]
promotion:
  segments: [country]
  pause_seconds: 0
  require_metrics: false
  metrics:
    - name: refunds
      bad: shop_refunds_total{by="$release", shop!~"test|\\"x\\""}
      total: shop_orders_total{by="$release"}
      what: orders were refunded
    - name: empty
      bad: answers_total{model="$model", version="$version", kind="empty"}
      total: answers_total{model="$model", version="$version"}
""",
    "model.yaml",
)


class Page(ThreadingHTTPServer):
    """A gateway, a shop and two servers on one page of metrics."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.values: dict[str, int] = {}


class _Page(BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        body = "".join(f"{name} {value}\n" for name, value in self.server.values.items()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


class World:
    def __init__(self, folder: Path) -> None:
        self.page = Page()
        self.thread = threading.Thread(target=self.page.serve_forever, args=(0.05,))
        self.thread.start()
        port = free_port()
        target = {"targets": [f"127.0.0.1:{self.page.server_port}"]}
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "gateway", "static_configs": [target]}],
        }
        folder.joinpath("prometheus.yml").write_text(json.dumps(config))
        binary = shutil.which("prometheus")
        assert binary, "prometheus is not installed: apt-get install prometheus"
        command = [binary, "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"]
        with folder.joinpath("log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=log
            )
        self.url = f"http://127.0.0.1:{port}"
        self.counters = PrometheusCounters(self.url, fresh_seconds=4)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.page.shutdown()
        self.thread.join()
        self.page.server_close()

    def shows(self, values: dict[str, int]) -> Snapshot:
        """The snapshot once Prometheus has read these values, and its rules have."""
        self.page.values = values
        end = time.monotonic() + 60
        mark = values["page_mark"]
        while True:
            assert time.monotonic() < end, "Prometheus does not read the page"
            time.sleep(0.3)
            try:
                answer = httpx.get(
                    f"{self.url}/api/v1/query", params={"query": "page_mark"}, timeout=2
                ).json()
                read = [one["value"][1] for one in answer["data"]["result"]]
                if read != [str(mark)]:
                    continue
                time.sleep(2.2)
                return self.counters.snapshot([STABLE, CANARY], None, SPEC.promotion.metrics)
            except (httpx.HTTPError, DependencyDown):
                continue


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def page(mark: int, requests: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    upstream = 'envoy_cluster_upstream_rq{envoy_cluster_name="%s",envoy_response_code="200"}'
    return {"page_mark": mark} | {upstream % name: count for name, count in requests.items()} | more


def test_counters_of_others_and_segments_are_read_with_all_the_rest_and_judged(world: World) -> None:
    def segment(version: int, value: str) -> tuple[str, str]:
        labels = f'{{model="flights",version="{version}",segment="country={value}"}}'
        return f"modelserve_segment_requests_total{labels}", f"modelserve_segment_errors_total{labels}"

    def orders(release: str) -> str:
        return f'shop_orders_total{{by="{release}",shop="eu"}}'

    def refunds(release: str, shop: str) -> str:
        return f'shop_refunds_total{{by="{release}",shop="{shop}"}}'

    def answers(version: int, kind: str) -> str:
        return f'answers_total{{model="flights",version="{version}",kind="{kind}"}}'

    fr, mt, old = segment(2, "FR"), segment(2, "MT"), segment(1, "MT")
    before = world.shows(
        page(
            1,
            {STABLE: 1000, CANARY: 100},
            {
                orders(STABLE): 500,
                orders(CANARY): 10,
                fr[0]: 50,
                fr[1]: 1,
                mt[0]: 5,
                mt[1]: 0,
                old[0]: 50,
                old[1]: 0,
            }
            | {answers(1, "full"): 100, answers(2, "full"): 100},
        )
    )
    after = world.shows(
        page(
            2,
            {STABLE: 2000, CANARY: 400},
            {orders(STABLE): 900, orders(CANARY): 210, fr[0]: 250, fr[1]: 2, mt[0]: 65, mt[1]: 60}
            | {
                old[0]: 250,
                old[1]: 1,
                refunds(STABLE, "eu"): 4,
                refunds(CANARY, "eu"): 3,
                refunds(CANARY, "us"): 2,
            }
            | {
                refunds(CANARY, "test"): 77,
                answers(1, "full"): 300,
                answers(2, "full"): 150,
                answers(2, "empty"): 50,
            },
        )
    )
    window = difference(before, after, CANARY, STABLE, 25)
    assert window.observed, window.why
    assert window.stable is not None
    assert (window.canary.requests, window.stable.requests) == (300, 1000)
    assert window.canary.segments == {"country=FR": (1, 200), "country=MT": (60, 60)}
    assert window.stable.segments == {"country=MT": (1, 200)}
    assert window.canary.metrics == {"refunds": (5, 200), "empty": (50, 100)}
    assert window.stable.metrics == {"refunds": (4, 400), "empty": (0, 200)}
    verdict = judge(SPEC.promotion, [window])
    assert (verdict.kind, verdict.metric) == ("reject", "segments")
    assert "requests with country=MT failed on the canary (100 %)" in verdict.sentence
    empty = SPEC.promotion.model_copy(update={"segments": ()})
    verdict = judge(empty, [window])
    assert (verdict.kind, verdict.metric, verdict.canary_bad) == ("reject", "empty", 50)
