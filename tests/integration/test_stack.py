"""The one-machine stack with its real parts: what comes up, what stays, and that nothing is left behind."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import pytest
import redis

from flows.adapters.local import LocalPlatform
from flows.adapters.stack import Supervisor, beside, down, status, up
from flows.adapters.stack.files import MARK
from flows.adapters.stack.processes import members
from flows.domain.errors import DependencyDown, PortTaken
from flows.domain.routes import Routes
from flows.settings import Settings
from tests.platform import local_stack

LIGHT = ("postgres", "redis", "envoy", "prometheus", "alertmanager")


@pytest.fixture
def settings() -> Iterator[Settings]:
    with local_stack.local_settings() as settings:
        yield settings


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """All parts but Prefect, under a path with everything that a shell or a template could stumble over."""
    parent = tmp_path_factory.mktemp("it's a {folder} & more")
    for folder in (parent, *parent.parents[:2]):
        folder.chmod(0o755)  # pytest's are for their owner only; PostgreSQL runs as another user for root
    with local_stack.local_settings(state=parent / "state") as settings:
        up(settings, print, only=LIGHT)
        yield settings


def pids(settings: Settings) -> dict[str, int]:
    return {state.name: state.pid for state in Supervisor(settings).states()}


def query(settings: Settings, expression: str) -> list[dict[str, Any]]:
    url = f"{settings.prometheus_url}/api/v1/query"
    answer = httpx.get(url, params={"query": expression}, trust_env=False)
    results: list[dict[str, Any]] = answer.json()["data"]["result"]
    return results


def eventually(check: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := check()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert result
    return result


# -- a stack that is up -----------------------------------------------------------------------------------


def test_every_part_is_up_healthy_and_on_loopback_only(light: Settings) -> None:
    lines = {line.name: line for line in status(light)}
    for name in LIGHT:
        assert (lines[name].healthy, lines[name].log.exists()) == (True, True), name
    assert (lines["prefect"].state, lines["prefect"].healthy) == ("DOWN", False)
    listening = [
        connection
        for process in members(light.state)
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    assert {connection.laddr.port for connection in listening} >= {
        light.ports.gateway,
        light.ports.postgres,
        light.ports.redis,
        light.ports.prometheus,
        light.ports.alertmanager,
    }


def test_a_second_up_recognises_the_stack_and_starts_nothing(light: Settings) -> None:
    before = pids(light)
    begun = time.monotonic()
    up(light, print, only=LIGHT)
    assert pids(light) == before
    assert time.monotonic() - begun < 5


def test_both_databases_are_there_behind_a_password(light: Settings) -> None:
    for url in (light.registry_url, light.prefect_database_url.replace("+asyncpg", "")):
        connection = psycopg2.connect(url)
        try:
            with connection.cursor() as cursor:
                cursor.execute("create extension if not exists pg_trgm")
                cursor.execute("select usesuper from pg_user where usename = current_user")
                assert cursor.fetchone() == (False,)
        finally:
            connection.close()
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(light.registry_url.split("?")[0], passfile="/nowhere")
    assert light.password_file.stat().st_mode & 0o077 == 0


def test_redis_holds_no_command_that_writes_elsewhere(light: Settings) -> None:
    with redis.Redis.from_url(light.redis_url) as client:
        client.xadd("samples:test", {"data": "{}"})
        assert client.xlen("samples:test") == 1
        with pytest.raises(redis.ResponseError, match="unknown command"):
            client.execute_command("CONFIG", "SET", "dir", "/")


def test_prometheus_scrapes_the_gateway_every_second(light: Settings) -> None:
    eventually(lambda: query(light, 'up{job="gateway"} == 1'))
    first = query(light, 'timestamp(up{job="gateway"})')[0]["value"][1]
    eventually(lambda: query(light, 'timestamp(up{job="gateway"})')[0]["value"][1] != first, seconds=3)


def test_prometheus_loads_the_rules_of_this_data_plane_only(light: Settings) -> None:
    answer = httpx.get(f"{light.prometheus_url}/api/v1/rules", trust_env=False).json()
    loaded = {Path(group["file"]).name for group in answer["data"]["groups"]}
    folder = light.repository / "monitoring" / "rules"
    assert loaded == {file.name for file in folder.glob("*.yml")} - {"traffic-istio.yml"}


def test_an_alert_reaches_the_receiver_with_its_token(light: Settings) -> None:
    heard: list[tuple[str | None, dict[str, Any]]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.append((self.headers["authorization"], json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    with http.server.HTTPServer(("127.0.0.1", light.ports.alerts), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        labels = {"alertname": "Errors", "model": "flights", "version": "2", "action": "rollback"}
        alert = {"labels": labels, "startsAt": datetime.now(UTC).isoformat()}
        url = f"http://127.0.0.1:{light.ports.alertmanager}/api/v2/alerts"
        begun = time.monotonic()
        httpx.post(url, json=[alert], trust_env=False).raise_for_status()
        eventually(lambda: heard)
        waited = time.monotonic() - begun
        server.shutdown()
        thread.join()
    authorization, notification = heard[0]
    assert authorization == f"Bearer {light.alerts_token_file.read_text()}"
    assert notification["alerts"][0]["labels"] == labels
    assert waited < 5


def test_a_killed_part_is_started_again(light: Settings) -> None:
    eventually(lambda: Supervisor(light).state("redis").state == "RUNNING")
    first = pids(light)["redis"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pids(light)["redis"] not in (0, first))
    eventually(lambda: {line.name: line.healthy for line in status(light)}["redis"])


# -- down and up again ------------------------------------------------------------------------------------


def test_data_routes_and_release_servers_survive_down_and_up(settings: Settings, tmp_path: Path) -> None:
    only = ("postgres", "redis", "envoy", "prometheus")
    up(settings, print, only=only)
    with psycopg2.connect(settings.registry_url) as connection, connection.cursor() as cursor:
        cursor.execute("create table kept (value text)")
        cursor.execute("insert into kept values ('still here')")
    connection.close()
    with redis.Redis.from_url(settings.redis_url) as client:
        client.set("kept", "still here")
    platform = LocalPlatform(settings, Supervisor(settings))
    release = local_stack.release(tmp_path, "flights", 1)
    platform.start(release, local_stack.spec("flights"))
    platform.route("flights", Routes({"flights-v1": 100}))
    scraped = 'up{job="servers",release="flights-v1",model="flights",version="1"}'
    eventually(lambda: query(settings, scraped))

    down(settings)
    assert members(settings.state) == []
    assert all(line.state == "DOWN" for line in status(settings))
    assert platform.running() == {"flights-v1"}

    said: list[str] = []
    up(settings, said.append, only=only)
    assert any(line.startswith("flights-v1: ready again") for line in said)
    answer = httpx.post(f"{settings.gateway_url}/models/flights/predict", json={}, trust_env=False)
    assert (answer.status_code, answer.headers["x-model-version"]) == (200, "1")
    assert platform.routes("flights") == Routes({"flights-v1": 100})
    with psycopg2.connect(settings.registry_url) as connection, connection.cursor() as cursor:
        cursor.execute("select value from kept")
        assert cursor.fetchone() == ("still here",)
    connection.close()
    with redis.Redis.from_url(settings.redis_url) as client:
        assert client.get("kept") == b"still here"


def test_down_finds_everything_after_supervisord_was_killed(settings: Settings) -> None:
    up(settings, print, only=("postgres", "redis", "envoy"))
    os.kill(Supervisor(settings).pid(), signal.SIGKILL)
    eventually(lambda: not Supervisor(settings).alive())
    assert len(members(settings.state)) >= 3
    said: list[str] = []
    down(settings, said.append)
    assert members(settings.state) == []
    assert any("left behind" in line for line in said)


def test_up_replaces_what_a_killed_supervisord_left(settings: Settings) -> None:
    up(settings, print, only=("redis", "envoy"))
    before = pids(settings)
    os.kill(Supervisor(settings).pid(), signal.SIGKILL)
    eventually(lambda: not Supervisor(settings).alive())
    up(settings, print, only=("redis", "envoy"))
    assert set(pids(settings).values()) & set(before.values()) == set()
    assert all(line.healthy for line in status(settings) if line.name in ("redis", "envoy"))


def test_down_of_a_stack_that_never_was_says_so(settings: Settings) -> None:
    said: list[str] = []
    down(settings, said.append)
    assert said == ["nothing of the stack is running"]
    assert not settings.state.exists()


def test_a_stack_ends_nobody_elses_processes(settings: Settings) -> None:
    with local_stack.local_settings() as other:
        up(other, print, only=["redis"])
        # A person who works with this stack has its settings in the shell; that is no mark.
        shell = subprocess.Popen(["sleep", "60"], env={**os.environ, **settings.environment()})
        try:
            up(settings, print, only=["redis"])
            os.kill(Supervisor(settings).pid(), signal.SIGKILL)
            down(settings)
            assert shell.poll() is None
            assert [line.healthy for line in status(other) if line.name == "redis"] == [True]
        finally:
            shell.kill()
            shell.wait()


WORKER = """
import pathlib, signal, subprocess, sys, time

folder = pathlib.Path(sys.argv[1])
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
flow = subprocess.Popen([sys.executable, "-c", sys.argv[2], str(folder)])
while len(signals) < 2:  # swallows the first one, as Prefect's does
    flow.poll()
    time.sleep(0.05)
(folder / "worker").write_text("left after its flow" if flow.poll() == 0 else "left its flow behind")
"""
FLOW = """
import pathlib, signal, sys, time

folder = pathlib.Path(sys.argv[1])

def restore(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal would end it here
    time.sleep(1)
    (folder / "flow").write_text("traffic is back")
    sys.exit(0)

signal.signal(signal.SIGTERM, restore)
(folder / "started").write_text("")
time.sleep(60)
"""


def test_a_worker_is_stopped_after_its_flows_have_put_the_traffic_back(
    settings: Settings, tmp_path: Path
) -> None:
    up(settings, print, only=["redis"])
    supervisor = Supervisor(settings)
    supervisor.define("pretended", [sys.executable, "-c", WORKER, str(tmp_path), FLOW], {}, stop_seconds=30)
    supervisor.load(["pretended"])
    supervisor.start("pretended")
    eventually((tmp_path / "started").exists)
    supervisor.stop("pretended", with_children=True)
    assert (tmp_path / "flow").read_text() == "traffic is back"
    assert (tmp_path / "worker").read_text() == "left after its flow"


# -- what can go wrong ------------------------------------------------------------------------------------


def test_a_taken_port_is_named_with_its_holder_before_anything_starts(settings: Settings) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", settings.ports.redis))
        holder.listen()
        with pytest.raises(PortTaken) as refused:
            up(settings, print, only=("redis", "envoy"))
    name = psutil.Process().name()
    assert str(refused.value) == (
        f"port {settings.ports.redis} is taken by {name} (pid {os.getpid()}); "
        "stop it or set MODELSERVE_PORTS__REDIS"
    )
    assert members(settings.state) == []


def test_a_part_that_cannot_start_is_named_with_its_own_words_and_all_is_stopped(
    settings: Settings,
) -> None:
    obstacle = settings.state / "prometheus" / "data"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("not a folder")
    with pytest.raises(DependencyDown) as refused:
        up(settings, print, only=("redis", "envoy", "prometheus"))
    message = str(refused.value)
    assert message.startswith("prometheus did not become healthy")
    assert "not a directory" in message
    assert "\n" not in message
    assert members(settings.state) == []


def test_a_part_of_a_running_stack_that_cannot_start_leaves_the_others_up(settings: Settings) -> None:
    up(settings, print, only=["redis"])
    obstacle = settings.state / "prometheus" / "data"
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("not a folder")
    with pytest.raises(DependencyDown, match="prometheus"):
        up(settings, print, only=("redis", "prometheus"))
    assert [line.healthy for line in status(settings) if line.name == "redis"] == [True]


def test_a_late_part_takes_nothing_out_that_serves(settings: Settings, tmp_path: Path) -> None:
    """After a restart of the machine Prometheus cannot start: users must not lose their answers for it."""
    up(settings, print, only=("envoy",))
    platform = LocalPlatform(settings, Supervisor(settings))
    release = local_stack.release(tmp_path, "flights", 1)
    platform.start(release, local_stack.spec("flights"))
    platform.route("flights", Routes({"flights-v1": 100}))
    down(settings)
    obstacle = settings.state / "prometheus" / "data"
    shutil.rmtree(obstacle, ignore_errors=True)
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("not a folder")
    with pytest.raises(DependencyDown, match=r"prometheus did not.*what serves goes on.*modelserve up"):
        up(settings, print, only=("envoy", "prometheus"))
    url = f"{settings.gateway_url}/models/flights/predict"
    answer = httpx.post(url, json={"instances": [{"distance": 1}]}, timeout=10)
    assert answer.status_code == 200
    obstacle.unlink()
    up(settings, print, only=("envoy", "prometheus"))
    assert all(line.healthy for line in status(settings) if line.name in ("envoy", "prometheus"))


def test_a_slow_part_is_waited_for_and_said(settings: Settings) -> None:
    """On a busy machine a part needs more than its time, and is not stopped for it while it lives."""
    slow = settings.model_copy(update={"start_timeout_seconds": 0.001})
    said: list[str] = []
    up(slow, said.append, only=["postgres"])
    assert any("postgres: late" in line for line in said)
    assert [line.healthy for line in status(settings) if line.name == "postgres"] == [True]


def test_a_state_folder_too_deep_for_sockets_still_works(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with local_stack.local_settings(state=deep) as settings:
        up(settings, print, only=["postgres"])
        assert not settings.sockets.is_relative_to(deep)
        assert settings.sockets.stat().st_mode & 0o066 == 0
        psycopg2.connect(settings.registry_url).close()


NON_ROOT = """
import os, sys
from flows.adapters.stack import down, status, up
from flows.settings import Settings
from tests.platform import local_stack

settings = Settings()
up(settings, print, only=("postgres", "redis", "envoy"))
healthy = sorted(line.name for line in status(settings) if line.healthy)
down(settings)
print("AS", os.getuid(), healthy)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs as an ordinary user already")
def test_an_ordinary_user_can_run_the_stack(settings: Settings) -> None:
    python = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    if not python.exists():
        pytest.skip(f"{python}, an interpreter that other users may execute, is not installed")
    settings.state.mkdir()
    os.chown(settings.state, 65534, 65534)
    variables = {**settings.environment(), "MODELSERVE_PYTHON": str(python)}
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    finished = subprocess.run(
        [str(python), "-W", "ignore", "-c", NON_ROOT],
        env={
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(settings.state),
            "PYTHONPATH": os.pathsep.join([str(settings.repository), *libraries]),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        },
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "AS 65534 ['envoy', 'postgres', 'redis']" in finished.stdout


# -- Prefect ----------------------------------------------------------------------------------------------


def test_the_bootstrap_runs_between_the_prefect_server_and_its_worker(settings: Settings) -> None:
    seen: dict[str, Any] = {}

    def bootstrap(given: Settings) -> None:
        seen["health"] = httpx.get(f"{given.prefect_url}/health", trust_env=False).json()
        state = Supervisor(given).state("worker")
        seen["worker"] = state.pid if state else 0
        made = httpx.post(
            f"{given.prefect_url}/work_pools/",
            json={"name": given.work_pool, "type": "process"},
            trust_env=False,
        )
        seen["pool"] = made.status_code

    up(settings, print, bootstrap=bootstrap, only=["worker"])
    assert seen == {"health": True, "worker": 0, "pool": 201}
    workers = httpx.post(
        f"{settings.prefect_url}/work_pools/{settings.work_pool}/workers/filter", json={}, trust_env=False
    ).json()
    assert [(worker["name"], worker["status"]) for worker in workers] == [("local", "ONLINE")]
    variables = psutil.Process(pids(settings)["worker"]).environ()
    assert variables["PREFECT_API_URL"] == settings.prefect_url
    assert variables[MARK] == str(settings.state)
    assert not httpx.get(settings.prefect_ui_url, trust_env=False, follow_redirects=True).is_error
    database = settings.prefect_database_url.replace("+asyncpg", "")
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("select name from work_pool")
        assert cursor.fetchall() == [(settings.work_pool,)]
    connection.close()
    down(settings)
    assert members(settings.state) == []


def test_what_runs_beside_the_stack_is_nobodys_child_and_ends_with_it(settings: Settings) -> None:
    """As the download of the scanner's database: whoever has called `up` is long gone."""
    settings.logs.mkdir(parents=True)
    beside(settings, "scanner", ["sh", "-c", 'echo "state $MODELSERVE_STATE"; exec sleep 600'])
    log = settings.logs / "scanner.log"
    eventually(lambda: log.read_text() == f"state {settings.state}\n")
    (process,) = eventually(lambda: [one for one in members(settings.state) if one.name() == "sleep"])
    assert psutil.Process().pid not in {parent.pid for parent in process.parents()}
    down(settings)
    assert members(settings.state) == []
