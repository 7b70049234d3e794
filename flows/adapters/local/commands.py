"""How a release's server is run: the command and the environment, as a process or as a container."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from flows.adapters.local.records import Record
from flows.adapters.local.secrets import kept
from flows.domain.cluster.manifests import server_environment
from flows.domain.errors import DependencyDown, ImageFailed
from flows.domain.release import Release
from flows.domain.spec import ModelSpec
from flows.settings import LOOPBACK, Settings

Containers = Callable[[Release, str], tuple[list[str], str]]
"""For a release and a low-level runtime: the command that runs containers, and the name of the image."""
DRAIN_SECONDS = 3
"""Shorter than in a cluster: the platform has waited for the gateway's requests, and nobody else asks."""
IMAGE_USER = 65532
"""The user of the images (`serving/Containerfile`)."""


def environment(settings: Settings, release: Release, spec: ModelSpec, record: Record) -> dict[str, str]:
    """What the server is told: the same words as in a cluster, with this machine's addresses."""
    inside = settings.runtime != "process"
    return {
        **server_environment(release, spec),
        **({} if inside else {"SERVING_BUNDLE": release.bundle}),
        "SERVING_HOST": LOOPBACK,
        "SERVING_PORT": str(record.port),
        "SERVING_REDIS_URL": settings.redis_url,
        "SERVING_DATABASE_URL": _with_password(settings.registry_url) if inside else settings.registry_url,
        "SERVING_SECRET": kept(settings.server_secret_file),
        "SERVING_PERSONAL_KEY": kept(settings.personal_key_file),
        "SERVING_JOBS_URI": f"{settings.artifacts_uri}/jobs",
        "SERVING_DRAIN_SECONDS": str(DRAIN_SECONDS),
        **({"SERVING_OTLP_ENDPOINT": settings.otlp_endpoint} if settings.otlp_endpoint else {}),
        "PYTHONUNBUFFERED": "1",
    }


def process(python: str) -> list[str]:
    """The server in an interpreter of this machine."""
    return [python, "-m", "serving", "serve"]


def container(
    settings: Settings,
    release: Release,
    containers: Containers,
    variables: Mapping[str, str],
    mark: Mapping[str, str],
) -> list[str]:
    """The server from the release's image, in the foreground, so that supervisord keeps it alive.

    `mark` makes the container's processes part of the stack. Raises ImageFailed when the release has no
    image, DependencyDown when the container runtime is not installed.
    """
    if release.image is None:
        raise ImageFailed(
            f"{release.name} has no image, which runtime {settings.runtime} needs; "
            "promote it so that one is built, or set MODELSERVE_RUNTIME=process"
        )
    if shutil.which(settings.runtime) is None:
        raise DependencyDown(
            f"{settings.runtime} is not installed; install it or set MODELSERVE_RUNTIME=process"
        )
    run, image = containers(release, "runc")
    name = container_name(settings, release.name)
    jobs = _jobs_folder(settings)
    rootless = ["--userns", f"keep-id:uid={IMAGE_USER},gid={IMAGE_USER}"] if os.geteuid() else []
    return [
        *run,
        "--rm",
        *(["--replace", *rootless] if settings.runtime == "podman" else []),
        # The host's network: gateway, Redis and PostgreSQL are on loopback. The limits are what podman
        # needs on hosts that do not let it raise them.
        *("--name", name, "--network", "host", "--read-only", "--tmpfs", "/tmp"),
        *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"),
        *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
        # By name only: the values, some of them secret, stay out of the process list.
        *(part for variable in sorted({**variables, **mark}) for part in ("--env", variable)),
        *(("--volume", f"{jobs}:{jobs}") if jobs is not None else ()),
        image,
    ]


def prepare_container(settings: Settings) -> None:
    """Make the folder for the chunks of jobs, which the image's user writes to."""
    jobs = _jobs_folder(settings)
    if jobs is not None:
        jobs.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(jobs, IMAGE_USER, IMAGE_USER)


def container_name(settings: Settings, release: str) -> str:
    """One name a stack and release: two stacks on one machine do not meet."""
    return f"modelserve-{hashlib.sha256(str(settings.state).encode()).hexdigest()[:8]}-{release}"


def _jobs_folder(settings: Settings) -> Path | None:
    """The folder of this machine that servers write to; None when artifacts are kept elsewhere."""
    parts = urlsplit(settings.artifacts_uri)
    return Path(parts.path) / "jobs" if parts.scheme in ("", "file") else None


def _with_password(url: str) -> str:
    """A container cannot read the password file of this machine: put the password into the URL."""
    parts = urlsplit(url)
    passfile = parse_qs(parts.query).get("passfile")
    if not passfile:
        return url
    password = Path(passfile[0]).read_text().strip().rsplit(":", 1)[1]
    return parts._replace(
        netloc=f"{parts.username}:{password}@{parts.hostname}:{parts.port}", query=""
    ).geturl()
