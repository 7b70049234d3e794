"""What a server takes from its environment; everything about the model itself stands in `model.yaml`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_OWN_SECRET = secrets.token_hex(32)


class Settings(BaseSettings):
    """Read once at start from variables with the prefix `SERVING_`."""

    model_config = SettingsConfigDict(env_prefix="SERVING_", frozen=True, extra="forbid")

    bundle: str = Field(min_length=1)
    """Folder of the release as a path or an fsspec URI (`s3://…`)."""
    bundle_sha256: str | None = None
    """sha256 of the bundle's manifest.json; a bundle with another one is refused."""
    model: str | None = None
    """Name the bundle must carry; default: the name in its model.yaml."""
    version: str = Field(default="0", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """The release's version, as metrics and the header X-Model-Version name it."""
    host: str = "0.0.0.0"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 lets the system choose."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that answer; more than one share the port and one /metrics."""
    redis_url: str | None = None
    """Cache, drift samples and rate limits; without it the three are off."""
    secret: SecretStr | None = Field(default=None, min_length=16)
    """From it come the keys of X-Feedback-Id and of the cache; all replicas of a model share it. Without one
    every start makes its own, which its workers share: outcomes are then only taken where the answer came
    from, until the next start."""
    personal_key: SecretStr | None = Field(default=None, min_length=16)
    """Secret with which personal columns marked `hash` are hashed in samples; a model that needs it does
    not start without it."""
    database_url: str | None = None
    """PostgreSQL with the state of /batch-predict jobs; without it jobs are refused."""
    jobs_uri: str | None = None
    """fsspec folder for the input and result chunks of jobs; without it jobs are refused."""
    jobs_input_uris: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """JSON list of folders that a job's `input_uri` may be in, beside the folder `inputs` of jobs_uri."""
    jobs_lease_seconds: float = Field(default=30.0, ge=1)
    """A replica that has not been heard of for that long loses its job to another one."""
    shadow_url: str | None = None
    """Base URL of the release that gets copies of requests; its answers are compared and thrown away."""
    shadow_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the requests that are copied."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """Most time between SIGTERM and exit; a third of it (5 s at most) new requests are still taken."""
    api_keys_file: Path | None = None
    """One key a line, `name:key`; when set, every route but the probes needs one."""
    rate_limit: int = Field(default=0, ge=0)
    """Requests a second and client over all replicas; 0 is no limit. Without Redis, or while it is slow, each
    process counts by itself."""
    forwarded_clients: bool = False
    """Count requests to an address in X-Forwarded-For; only behind a proxy that sets it."""
    forwarded_proxies: int = Field(default=1, ge=1, le=10)
    """How many proxies of ours a request comes through. Each adds whom it got it from, so that the client is
    the address that many places from the right; what stands before that he has written himself."""
    fast_path: bool = True
    """Answer the hot routes before FastAPI; off is the same in all but speed."""
    access_log: bool = False
    """Log every request, not only those that failed."""
    stuck_seconds: float = Field(default=300.0, gt=0)
    """A model call that takes longer fails the liveness probe."""
    keep_alive_seconds: float = Field(default=120.0, gt=0)
    """Connections on which nothing was asked for that long are closed."""
    header_seconds: float = Field(default=20.0, gt=0)
    """Connections that have not sent a whole request head after this are closed."""
    compress_bytes: int = Field(default=65536, ge=0)
    """Answers with more bytes are compressed (zstd, gzip, deflate) for clients that accept it."""
    cors_origins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """JSON list of origins (`https://app.example.com`, or `*`) whose pages may read the answers."""
    otlp_endpoint: str | None = None
    """OTLP/HTTP endpoint for traces; needs the extra `tracing`."""

    @property
    def shared_secret(self) -> bytes:
        """The secret, or one of this start's own, which the supervisor hands to its workers."""
        given = self.secret.get_secret_value() if self.secret is not None else _OWN_SECRET
        return given.encode()

    @property
    def keeps_jobs(self) -> bool:
        return self.database_url is not None and self.jobs_uri is not None

    @property
    def job_inputs(self) -> list[str]:
        """Every folder that a job's `input_uri` may be in."""
        own = [] if self.jobs_uri is None else [f"{self.jobs_uri.rstrip('/')}/inputs"]
        return [*own, *self.jobs_input_uris]
