"""The cluster's Alertmanager configuration, run in a real Alertmanager that delivers to one local server."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

TOKEN = "a-token-from-a-file"


class Sink(ThreadingHTTPServer):
    """Keeps what Alertmanager sends: (receiver, bearer token, alert names)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, str, tuple[str, ...]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def receivers(self, alert: str) -> set[str]:
        return {receiver for receiver, _, names in self.seen if alert in names}


class _Handler(BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        names = tuple(alert["labels"]["alertname"] for alert in body["alerts"])
        token = self.headers.get("Authorization", "")
        self.server.seen.append((self.path.removeprefix("/"), token, names))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    server = Sink()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def local_copy(config: dict[str, Any], sink: Sink, token: Path) -> dict[str, Any]:
    """The same routes and inhibitions; receivers deliver to the sink; nobody waits for a group."""
    receivers = []
    for receiver in config["receivers"]:
        name = receiver["name"]
        webhooks = [dict(one) for one in receiver.get("webhook_configs", ())]
        if len(receiver) > 1 and not webhooks:
            webhooks = [{}]
        for webhook in webhooks:
            webhook["url"] = f"{sink.url}/{name}"
            if "http_config" in webhook:
                webhook["http_config"]["authorization"]["credentials_file"] = str(token)
        receivers.append({"name": name} | ({"webhook_configs": webhooks} if webhooks else {}))

    def hurried(route: dict[str, Any]) -> dict[str, Any]:
        return {**route, "group_wait": "0s", "routes": [hurried(one) for one in route.get("routes", ())]}

    return {
        "route": hurried(config["route"]),
        "inhibit_rules": config["inhibit_rules"],
        "receivers": receivers,
    }


@pytest.fixture
def alertmanager(
    tmp_path: Path,
    monitoring: Path,
    sink: Sink,
    tool: Callable[[str], str],
    run_until_ready: Callable[..., Any],
    a_free_port: Callable[[], int],
) -> Iterator[str]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    config = yaml.safe_load((monitoring / "alertmanager.yml").read_text())
    file = tmp_path / "alertmanager.yml"
    file.write_text(yaml.safe_dump(local_copy(config, sink, token)))
    port = a_free_port()
    command = [tool("prometheus-alertmanager"), f"--config.file={file}", f"--storage.path={tmp_path}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    with run_until_ready(command, f"http://127.0.0.1:{port}/-/ready", tmp_path / "log"):
        yield f"http://127.0.0.1:{port}"


def fire(url: str, *alerts: dict[str, str]) -> None:
    now = datetime.now(UTC).isoformat()
    body = json.dumps([{"labels": labels, "startsAt": now} for labels in alerts]).encode()
    request = urllib.request.Request(
        f"{url}/api/v2/alerts", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing was delivered within 20 s"
        time.sleep(0.05)


FAILING = {
    "alertname": "ReleaseFailing",
    "severity": "critical",
    "team": "models",
    "action": "rollback",
    "model": "flights",
    "version": "2",
}


def test_the_file_is_valid(tool: Callable[[str], str], monitoring: Path) -> None:
    done = subprocess.run(
        [tool("amtool"), "check-config", str(monitoring / "alertmanager.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_secret_stands_in_the_file(monitoring: Path) -> None:
    def walk(content: object, path: str = "") -> None:
        if isinstance(content, dict):
            for key, value in content.items():
                assert key not in {"credentials", "password", "routing_key", "service_key", "api_url"}, path
                walk(value, f"{path}/{key}")
        elif isinstance(content, list):
            for value in content:
                walk(value, path)

    walk(yaml.safe_load((monitoring / "alertmanager.yml").read_text()))


def test_a_rollback_reaches_the_receiver_with_its_token_and_then_people(
    alertmanager: str, sink: Sink
) -> None:
    fire(alertmanager, FAILING)
    until(lambda: sink.receivers("ReleaseFailing") >= {"rollback", "models-pager"})
    assert ("rollback", f"Bearer {TOKEN}", ("ReleaseFailing",)) in sink.seen
    assert sink.receivers("ReleaseFailing") == {"rollback", "models-pager"}


def test_alerts_go_to_the_team_and_by_severity(alertmanager: str, sink: Sink) -> None:
    fire(
        alertmanager,
        {"alertname": "Watchdog", "severity": "none", "team": "platform"},
        {"alertname": "SweepNotRunning", "severity": "critical", "team": "platform"},
        {"alertname": "CacheDown", "severity": "warning", "team": "platform"},
        {"alertname": "ModelSlowSlow", "severity": "warning", "team": "models", "model": "fraud"},
        {"alertname": "SomebodyElses", "severity": "warning"},
        {"alertname": "JustSaying", "severity": "info", "team": "platform"},
    )
    expected = {
        "Watchdog": {"heartbeat"},
        "SweepNotRunning": {"platform-pager"},
        "CacheDown": {"platform-channel"},
        "ModelSlowSlow": {"models-channel"},
        "SomebodyElses": {"tickets"},
    }
    until(lambda: all(sink.receivers(alert) for alert in expected))
    assert {alert: sink.receivers(alert) for alert in expected} == expected
    assert sink.receivers("JustSaying") == set()


def test_a_dead_cluster_silences_the_models_and_rolls_nothing_back(alertmanager: str, sink: Sink) -> None:
    fire(alertmanager, {"alertname": "ClusterDown", "severity": "critical", "team": "platform"})
    until(lambda: bool(sink.receivers("ClusterDown")))
    fire(alertmanager, FAILING, {"alertname": "CacheDown", "severity": "warning", "team": "platform"})
    until(lambda: bool(sink.receivers("CacheDown")))
    time.sleep(1)
    assert sink.receivers("ReleaseFailing") == set()


def test_a_page_silences_the_ticket_about_the_same_model_only(alertmanager: str, sink: Sink) -> None:
    fire(alertmanager, {**FAILING, "alertname": "ModelUnavailableFast"})
    until(lambda: bool(sink.receivers("ModelUnavailableFast")))
    budget = {"alertname": "ModelErrorBudgetBurning", "severity": "warning", "team": "models"}
    fire(alertmanager, {**budget, "model": "flights"}, {**budget, "model": "fraud"})
    until(lambda: bool(sink.receivers("ModelErrorBudgetBurning")))
    time.sleep(1)
    delivered = [names for receiver, _, names in sink.seen if receiver == "models-channel"]
    assert delivered == [("ModelErrorBudgetBurning",)]
