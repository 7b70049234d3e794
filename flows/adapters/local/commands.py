"""How a release's server is run: the command and the environment, as a process or as a container."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from flows.adapters.local.records import Record
from flows.domain.errors import DependencyDown, ImageFailed
from flows.domain.manifests import server_environment
from flows.domain.release import Release
from flows.domain.spec import ModelSpec
from flows.settings import LOOPBACK, Settings


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
        "SERVING_JOBS_URI": f"{settings.artifacts_uri}/jobs",
        "PYTHONUNBUFFERED": "1",
    }


def command(
    settings: Settings, release: Release, variables: Mapping[str, str], mark: Mapping[str, str]
) -> list[str]:
    """The program that supervisord keeps alive. `mark` makes a container's processes part of the stack.

    Raises ImageFailed when a container is wanted and the release has no image, DependencyDown when the
    container runtime is not installed.
    """
    if settings.runtime == "process":
        return [settings.python, "-m", "serving", "serve"]
    if release.image is None:
        raise ImageFailed(
            f"{release.name} has no image, which runtime {settings.runtime} needs; "
            "promote it so that one is built, or set MODELSERVE_RUNTIME=process"
        )
    runtime = shutil.which(settings.runtime)
    if runtime is None:
        raise DependencyDown(
            f"{settings.runtime} is not installed; install it or set MODELSERVE_RUNTIME=process"
        )
    given = [part for name in sorted({**variables, **mark}) for part in ("--env", name)]
    folders = [folder for folder in _local_folders(settings) if folder.exists()]
    mounts = [part for folder in folders for part in ("--volume", f"{folder}:{folder}")]
    # The host's network: the gateway, Redis and PostgreSQL are on loopback. The limits and runc are what
    # podman needs on hosts that do not let it raise them.
    special = ["--runtime", "runc"] if settings.runtime == "podman" and shutil.which("runc") else []
    replace = ["--replace"] if settings.runtime == "podman" else []
    return [
        *(runtime, *special, "run", "--rm", *replace),
        *("--name", container_name(settings, release.name), "--network", "host"),
        *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"),
        *("--label", f"modelserve.state={settings.state}"),
        *given,
        *mounts,
        release.image,
    ]


def container_name(settings: Settings, release: str) -> str:
    """One name a stack and release: two stacks on one machine do not meet."""
    return f"modelserve-{hashlib.sha256(str(settings.state).encode()).hexdigest()[:8]}-{release}"


def _local_folders(settings: Settings) -> list[Path]:
    """Folders of this machine that a server writes to: the chunks of its jobs."""
    parts = urlsplit(settings.artifacts_uri)
    return [Path(parts.path) / "jobs"] if parts.scheme in ("", "file") else []


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
