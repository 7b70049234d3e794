"""Everything that can be configured, in one frozen object read once (in `flows/wiring.py`).

Each field is the environment variable `MODELSERVE_<FIELD>`; a port is `MODELSERVE_PORTS__<PART>`. Fields
that name an address may stay empty in local mode: they are then derived from the ports. The module reads
the environment only when `Settings()` is called, and does no other input or output.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.places import project

LOOPBACK = "127.0.0.1"
PREFIX = "MODELSERVE_"
UNUSABLE_IN_STATE = '\n"#%;*?[]'
SOCKET_PATH_LIMIT = 100
"""Linux refuses unix sockets whose path is longer than 107 bytes; room is left for the file's name."""


class Ports(BaseModel):
    """TCP ports of the one-machine stack. All of them are bound to loopback only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway: int = Field(default=10000, ge=1, le=65535)
    """Envoy: `http://127.0.0.1:<gateway>/models/<model>/predict`."""
    gateway_admin: int = Field(default=9901, ge=1, le=65535)
    """Envoy's admin interface: `/config_dump`, `/stats/prometheus`."""
    prefect: int = Field(default=4200, ge=1, le=65535)
    """Prefect server, API and UI."""
    prometheus: int = Field(default=9090, ge=1, le=65535)
    alertmanager: int = Field(default=9093, ge=1, le=65535)
    alerts: int = Field(default=4300, ge=1, le=65535)
    """The alert receiver (`flows.alerting.receiver`), which Alertmanager calls."""
    redis: int = Field(default=6379, ge=1, le=65535)
    postgres: int = Field(default=5432, ge=1, le=65535)
    releases: int = Field(default=20000, ge=1024, le=65000)
    """First port tried for a release's server; each release takes the next free one."""


class Settings(BaseSettings):
    """The configuration of the control plane. Relative paths are taken from the working directory."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", populate_by_name=True
    )

    mode: Literal["local", "kubernetes"] = "local"
    """Who starts servers and splits traffic: this machine, or a cluster."""
    state: Path = Path(".modelserve")
    """Folder of the local stack: data, logs, generated configuration, secrets."""
    runtime: Literal["process", "podman", "docker"] = "process"
    """How the local platform runs a release: a process from this Python, or a container of its image."""
    ports: Ports = Ports()
    registry_url: str = ""
    """PostgreSQL URL of the registry. Empty: the local stack's database `modelserve`."""
    redis_url: str = ""
    """Redis for caches and request samples. Empty: the local stack's."""
    prometheus_url: str = ""
    """Prometheus' HTTP API. Empty: the local stack's."""
    prefect_url: str = ""
    """Prefect's API (ends in `/api`). Empty: the local stack's."""
    gateway_url: str = ""
    """Where users' requests enter. Empty: the local stack's."""
    artifacts_uri: str = ""
    """fsspec URI under which bundles, job chunks and reports are kept. Empty: `<state>/artifacts`."""
    images_folder: Path | None = None
    """Where images are built: the base of all images, and what is on it. None: `<state>/images`."""
    bundle_limit_bytes: int = Field(default=20_000_000_000, gt=0)
    """A larger model is not registered: it is uploaded, packed and pulled with each release."""
    image_repository: str = ""
    """Where published images of releases are (`HOST/NAME`, without a tag). A promotion on a cluster takes the
    image that was built, scanned and pushed there, by digest. Empty: the promotion builds one itself."""
    image_extras: tuple[str, ...] = ()
    """Extras of this project that images of releases get as well: `["onnx"]`, `["tracing"]`."""
    torch_index: str = "https://download.pytorch.org/whl/cpu"
    """Package index of torch's builds for CPUs, for `make setup` and images. Empty: pip's own alone."""
    torch_fallback: bool = True
    """Where that index gives none: take pip's own build, with CUDA in images for CPUs. False: fail."""
    otlp_endpoint: str = ""
    """OTLP/HTTP collector (`http://HOST:4318`) for traces of the local gateway and servers. Empty: none."""
    python: str = sys.executable
    """The interpreter that runs supervised Python programs."""
    work_pool: str = "local"
    """The Prefect work pool that runs the flows."""
    lease_seconds: float = Field(default=30, gt=0)
    """A promotion whose run has not been heard of for this long is nobody's: the sweep restores it."""
    cooldown_seconds: float = Field(default=600, ge=0)
    """After an alert has rolled a model back, further alerts do not, for this long."""
    notify: str = Field(default="", repr=False)
    """Who is told when a promotion ends, waits or needs somebody: URLs of Apprise (`mailto://…`, `slack://…`,
    https://appriseit.com/services/), separated by blanks. They hold secrets. Empty: nobody."""
    image_tags_allowed: bool = False
    """Let the cluster run images by tag instead of by digest; for test clusters without a registry."""
    personal_hashes: bool = True
    """Whether servers have a key for columns marked `personal: hash` (`SERVING_PERSONAL_KEY`; here and on our
    clusters they do). False: a model with such columns is refused when it is registered."""
    alerts_host: str = LOOPBACK
    """Address that the alert receiver binds; `0.0.0.0` in a pod."""
    gateway_timeout_seconds: float = Field(default=60, gt=0)
    """How long the gateway waits for a release's answer before it says 504."""
    gateway_shows: tuple[str, ...] = ()
    """Paths of servers that the local gateway shows beside those for users: `["docs", "openapi.json"]`. On a
    cluster they are in `gateway-may-call-models`."""
    session_header: str = ""
    """On a cluster, requests with the same value of this header go to the same server of a release (a
    consistent hash). Empty: to the server with the fewest requests."""
    start_timeout_seconds: float = Field(default=180, gt=0)
    """How long a part of the local stack may take to become healthy."""

    @field_validator("state")
    @classmethod
    def _state_is_absolute(cls, state: Path) -> Path:
        path = os.path.abspath(state.expanduser())
        if found := sorted(set(UNUSABLE_IN_STATE) & set(path)):
            raise ValueError(f"the path {path!r} holds {' '.join(found)}, which supervisord cannot name")
        return Path(path)

    @model_validator(mode="after")
    def _derive_addresses(self) -> Self:
        local = {
            "registry_url": self._database_url("postgresql", "modelserve"),
            "redis_url": f"redis://{LOOPBACK}:{self.ports.redis}/0",
            "prometheus_url": f"http://{LOOPBACK}:{self.ports.prometheus}",
            "prefect_url": f"http://{LOOPBACK}:{self.ports.prefect}/api",
            "gateway_url": f"http://{LOOPBACK}:{self.ports.gateway}",
            "artifacts_uri": (self.state / "artifacts").as_uri(),
        }
        missing = [name for name in local if not getattr(self, name)]
        if self.mode == "local":
            for name in missing:
                object.__setattr__(self, name, local[name])
        elif missing:
            names = ", ".join(PREFIX + name.upper() for name in missing)
            raise ValueError(f"mode 'kubernetes' needs {names}")
        return self

    def _database_url(self, scheme: str, database: str) -> str:
        passfile = quote(str(self.password_file), safe="/")
        return f"{scheme}://modelserve@{LOOPBACK}:{self.ports.postgres}/{database}?passfile={passfile}"

    @property
    def prefect_database_url(self) -> str:
        return self._database_url("postgresql+asyncpg", "prefect")

    @property
    def prefect_ui_url(self) -> str:
        return self.prefect_url.removesuffix("/api")

    def run_url(self, run: object) -> str:
        """The page of a flow run in the Prefect UI."""
        return f"{self.prefect_ui_url}/runs/flow-run/{run}"

    @property
    def repository(self) -> Path:
        """The checkout, or what a wheel has of it: the folder that holds `infra/` and `prefect.yaml`."""
        return project()

    @property
    def password_file(self) -> Path:
        """libpq password file of the local PostgreSQL, so that no URL carries a password."""
        return self.state / "secrets" / "postgres-passwords"

    @property
    def alerts_token_file(self) -> Path:
        """Bearer token that Alertmanager shows to the alert receiver."""
        return self.state / "secrets" / "alerts-token"

    @property
    def server_secret_file(self) -> Path:
        """What all servers of this state folder derive the keys of request ids and caches from."""
        return self.state / "secrets" / "server-secret"

    @property
    def personal_key_file(self) -> Path:
        """With what servers hash personal columns. Another one makes other hashes of the same people."""
        return self.state / "secrets" / "personal-key"

    @property
    def image_storage(self) -> Path:
        return self.images_folder or self.state / "images"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def gateway_folder(self) -> Path:
        """Envoy watches this folder: `clusters.json` and `routes.json` are the data plane's state."""
        return self.state / "gateway"

    @property
    def releases_folder(self) -> Path:
        """One JSON file a release that has servers: port, digest, runtime."""
        return self.state / "releases"

    @property
    def scrape_folder(self) -> Path:
        """Prometheus reads its list of model servers from here (file_sd)."""
        return self.state / "prometheus" / "targets"

    @property
    def programs_folder(self) -> Path:
        """One supervisord section and one start script a program."""
        return self.state / "programs"

    @property
    def sockets(self) -> Path:
        """Folder of unix sockets: in the state folder, or in the temporary one when that path is too long."""
        inside = self.state / "run"
        if len(str(inside).encode()) + len("/supervisor.sock") <= SOCKET_PATH_LIMIT:
            return inside
        digest = hashlib.sha256(str(self.state).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"modelserve-{os.getuid()}-{digest}"

    def environment(self) -> dict[str, str]:
        """Environment variables from which a child process builds equal settings."""
        variables = {}
        for name, value in self.model_dump(mode="json").items():
            if isinstance(value, dict):
                for part, port in value.items():
                    variables[f"{PREFIX}{name.upper()}__{part.upper()}"] = json.dumps(port)
            elif isinstance(value, list):
                variables[PREFIX + name.upper()] = json.dumps(value)
            elif value is not None:
                variables[PREFIX + name.upper()] = str(value)
        return variables

    def prefect_environment(self) -> dict[str, str]:
        """What a Prefect client, worker or flow needs to find the server without touching `~/.prefect`."""
        return {
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_HOME": str(self.state / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # The server's answer when its database is slow for a moment; by itself a client gives up at once.
            "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        }
