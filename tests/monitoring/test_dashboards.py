"""Dashboards: generated, provisionable, and every query answered by a real Prometheus and a real registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flows.adapters.registry import Registry
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Window
from flows.domain.release import Release

DASHBOARDS = sorted((Path(__file__).parents[2] / "monitoring" / "dashboards").glob("*.json"))
RELEASES = (("flights", "1", 900), ("flights", "2", 100))
"""Model, version and how many requests a sample it answers."""
STEP_SECONDS, HISTORY_SECONDS = 5, 900


def exposition(now: float) -> str:
    """A quarter of an hour of what gateway, servers and control plane expose, in OpenMetrics text."""
    times = [now - HISTORY_SECONDS + step for step in range(0, HISTORY_SECONDS + 1, STEP_SECONDS)]
    lines: dict[str, list[str]] = {}

    def grow(name: str, labels: dict[str, str], pace: float) -> None:
        series(name, labels, lambda index: index * pace)

    def hold(name: str, labels: dict[str, str], value: float) -> None:
        series(name, labels, lambda _: value)

    def series(name: str, labels: dict[str, str], value: Callable[[int], float]) -> None:
        text = ",".join(f'{key}="{one}"' for key, one in labels.items())
        for index, at in enumerate(times):
            lines.setdefault(name, []).append(f"{name}{{{text}}} {value(index)} {at:.3f}")

    def histogram(name: str, labels: dict[str, str], bounds: tuple[str, ...], pace: float) -> None:
        for number, bound in enumerate(bounds, start=1):
            grow(f"{name}_bucket", {**labels, "le": bound}, pace * number / len(bounds))
        grow(f"{name}_count", labels, pace)
        grow(f"{name}_sum", labels, pace * 0.01)

    for model, version, pace in RELEASES:
        one = {"model": model, "version": version}
        for family, share in (("2", 0.98), ("4", 0.01), ("5", 0.01)):
            grow("traffic:requests:count", {**one, "class": family, "pod": "gateway"}, pace * share)
        for bound, share in (("0.01", 0.3), ("0.25", 0.99), ("+Inf", 1.0)):
            grow("traffic:latency:bucket", {**one, "le": bound, "pod": "gateway"}, pace * share)
        hold("modelserve_release_weight", one, pace / 10)
        grow("modelserve_requests_total", {**one, "route": "predict", "code": "200"}, pace)
        bounds = ("0.001", "0.01", "0.1", "+Inf")
        histogram("modelserve_request_duration_seconds", {**one, "route": "predict"}, bounds, pace)
        histogram("modelserve_queue_duration_seconds", one, bounds, pace)
        histogram("modelserve_inference_duration_seconds", one, bounds, pace / 4)
        histogram("modelserve_batch_rows", one, ("1", "4", "16", "+Inf"), pace / 4)
        for gauge in ("pending_rows", "in_flight_requests", "ready"):
            hold(f"modelserve_{gauge}", one, 1)
        # The rest of what a server binds at its start; without a cache or a shadow they stay at zero.
        for counter in (
            *("cache_hits", "cache_misses", "cache_errors", "shadow_sent", "shadow_dropped"),
            *("shadow_compared", "shadow_disagreed", "worker_restarts"),
        ):
            hold(f"modelserve_{counter}_total", one, 0)
        grow("modelserve_samples_sent_total", one, pace)
        hold("modelserve_samples_dropped_total", one, 0)
        for score in ("0.1", "0.9"):
            grow("modelserve_outputs_total", {**one, "bin": score}, pace / 2)
    hold("modelserve_model_frozen", {"model": "flights"}, 0)
    hold("modelserve_drift_score", {"model": "flights", "column": "temperature"}, 1.4)
    hold("modelserve_drift_last_success_timestamp_seconds", {"model": "flights"}, now - 60)
    hold("modelserve_sweep_last_success_timestamp_seconds", {}, now - 20)
    blocks = [f"# TYPE {name} unknown\n" + "\n".join(rows) for name, rows in lines.items()]
    return "\n".join(blocks) + "\n# EOF\n"


@pytest.fixture(scope="module")
def panels(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("panels")


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory,
    monitoring: Path,
    tool: Callable[[str], str],
    run_until_ready: Callable[..., Any],
    a_free_port: Callable[[], int],
) -> Iterator[str]:
    """A real Prometheus with our rules over a quarter of an hour of such series."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "series.txt").write_text(exposition(time.time()))
    command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics"]
    done = subprocess.run([*command, folder / "series.txt", folder / "data"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with _prometheus(folder, tool, monitoring, run_until_ready, a_free_port()) as url:
        _wait_for(url, "slo:unavailable:ratio6h")
        _wait_for(url, 'ALERTS{alertstate="firing"}')
        _wait_for(url, "rate(prometheus_notifications_sent_total[1m])")
        yield url


def _prometheus(
    folder: Path, tool: Callable[[str], str], monitoring: Path, run: Callable[..., Any], port: int
) -> Any:
    from contextlib import contextmanager

    rules = [str(monitoring / "rules" / name) for name in ("slo.yml", "canary.yml", "platform.yml")]
    target = f"127.0.0.1:{port}"
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"},
        "rule_files": rules,
        "scrape_configs": [{"job_name": "prometheus", "static_configs": [{"targets": [target]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9"]}]}]},
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))

    @contextmanager
    def started() -> Iterator[str]:
        command = [tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={target}"]
        with run(command, f"http://{target}/-/ready", folder / "log"):
            yield f"http://{target}"

    return started()


def _ask(url: str, query: str) -> list[Any]:
    arguments = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{url}/api/v1/query?{arguments}", timeout=30) as answer:
        result: list[Any] = json.load(answer)["data"]["result"]
    return result


def _wait_for(url: str, query: str) -> None:
    deadline = time.monotonic() + 60
    while not _ask(url, query):
        assert time.monotonic() < deadline, f"no answer to {query} within 60 s"
        time.sleep(0.5)


@pytest.fixture
def full_registry(registry: Registry, database_url: str) -> str:
    """A registry in which one promotion has been judged once."""
    window = Window(0.0, 15.0, 10, Counts(requests=100, errors=1), Counts(requests=900, errors=3))
    verdict = Verdict("hold", "errors", "not enough requests yet", evidence=1.5)
    registry.register(Release("flights", 2, "memory://bundle", "0" * 64), "name: flights")
    promotion = registry.begin("flights", 2, "a-run", deadline_seconds=60, lease_seconds=60)
    registry.store_window(promotion, 1, window.to_json(), verdict.to_json(), None, watching=False)
    registry.record_drift("flights", "drift", {})
    registry.claim_alert("fingerprint", datetime.now(UTC), "flights")
    return database_url


def test_every_panel_shows_something(panels: ModuleType, prometheus: str, full_registry: str) -> None:
    assert panels.empty_panels(prometheus, full_registry) == []


def test_an_empty_prometheus_and_an_empty_registry_are_noticed(
    panels: ModuleType,
    registry: Registry,
    database_url: str,
    tmp_path: Path,
    monitoring: Path,
    tool: Callable[[str], str],
    run_until_ready: Callable[..., Any],
    a_free_port: Callable[[], int],
) -> None:
    assert registry.models() is not None
    with _prometheus(tmp_path, tool, monitoring, run_until_ready, a_free_port()) as url:
        problems = panels.empty_panels(url, database_url)
    assert any(line.startswith("models.json: Requests by version: no series") for line in problems)
    assert any(line.startswith("promotion.json: Verdicts: no row") for line in problems)
    assert any(line.startswith("promotion.json: variable model: no series") for line in problems)
    asked = [query for query in panels.queries() if query not in set(panels.skipped())]
    # Only what Prometheus says of itself, and counts of things that may be none, have an answer here.
    assert len(asked) - len(problems) < 10


def test_a_query_that_does_not_parse_is_a_problem(
    panels: ModuleType, prometheus: str, tmp_path: Path
) -> None:
    dashboard = json.loads(DASHBOARDS[-1].read_text())
    dashboard["panels"][1]["targets"][0]["expr"] = "sum by (model ("
    (tmp_path / "broken.json").write_text(json.dumps(dashboard))
    assert any("parse error" in problem for problem in panels.empty_panels(prometheus, None, tmp_path))


def test_every_query_parses(panels: ModuleType, prometheus: str) -> None:
    """Those of the cluster's own series too, which no machine here can answer."""
    for query in panels.queries():
        if query.source == "prometheus":
            _ask(prometheus, panels.filled_in(query, ".*"))


def test_the_command_prints_what_it_did(monitoring: Path, prometheus: str, full_registry: str) -> None:
    command = [sys.executable, str(monitoring / "panels.py"), prometheus, full_registry]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) of (\d+) queries have an answer; (\d+) were not asked", done.stdout)
    assert found
    assert found[1] == found[2]
    assert int(found[1]) > 60


def test_a_dead_prometheus_is_one_line(monitoring: Path, a_free_port: Callable[[], int]) -> None:
    command = [sys.executable, str(monitoring / "panels.py"), f"http://127.0.0.1:{a_free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "does not answer" in done.stderr


def test_the_files_are_what_the_generator_writes(monitoring: Path) -> None:
    command = [sys.executable, str(monitoring / "generate_dashboards.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_provisioned(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"].startswith("modelserve-")
    assert "id" not in dashboard
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"].removeprefix("$") in variables
            text = target.get("expr") or target["rawSql"]
            for used in re.findall(r"\$\{?(\w+)", text):
                assert used in variables or used.startswith("__"), f"{panel['title']}: ${used}"


def test_only_normalised_series_are_shown(panels: ModuleType) -> None:
    for query in panels.queries():
        assert not re.search(r"\b(envoy|istio)_\w+", query.text), query
