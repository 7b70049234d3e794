"""The composition root: the only file that chooses adapters."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flows.adapters.registry import Registry
from flows.domain.errors import ArtifactCorrupt
from flows.domain.platform import Platform
from flows.domain.release import Release
from flows.places import PACKAGES
from flows.settings import Settings

if TYPE_CHECKING:
    from flows.adapters.artifacts import ArtifactStore
    from flows.adapters.images import ImageBuilder
    from flows.adapters.packages import Packages
    from flows.adapters.prometheus import PrometheusCounters
    from flows.adapters.published import Images, Scans
    from flows.adapters.scanner import Scanner


class Clock(Protocol):
    """The time, and waiting for it: what tests replace."""

    def time(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


@dataclass(frozen=True)
class ControlPlane:
    """Everything a flow works with."""

    settings: Settings
    registry: Registry
    platform: Platform
    artifacts: ArtifactStore
    images: Images
    scanner: Scans
    counters: PrometheusCounters
    clock: Clock


def control_plane(settings: Settings | None = None) -> ControlPlane:
    """The parts that these settings ask for; nothing is contacted yet."""
    from flows.adapters.prometheus import PrometheusCounters
    from flows.adapters.published import Published

    chosen = settings or Settings()
    registry = release_registry(chosen)
    images: Images
    scans: Scans
    if chosen.image_repository:
        images = scans = Published(registry, chosen.image_repository)
    else:
        images, scans = image_builder(chosen), scanner(chosen)
    return ControlPlane(
        settings=chosen,
        registry=registry,
        platform=platform(chosen),
        artifacts=artifact_store(chosen),
        images=images,
        scanner=scans,
        counters=PrometheusCounters(chosen.prometheus_url),
        clock=time,
    )


def platform(settings: Settings) -> Platform:
    if settings.mode == "kubernetes":
        from flows.adapters.kubernetes import KubernetesPlatform
        from flows.domain.cluster.manifests import Cluster

        cluster = Cluster(
            request_seconds=settings.gateway_timeout_seconds,
            prometheus_url=settings.prometheus_url,
            session_header=settings.session_header or None,
            tags_allowed=settings.image_tags_allowed,
        )
        return KubernetesPlatform(cluster=cluster)
    from flows.adapters.local import LocalPlatform
    from flows.adapters.stack import Supervisor

    containers = image_builder(settings).container
    interpreter = release_interpreter(settings)
    return LocalPlatform(settings, Supervisor(settings), containers=containers, interpreter=interpreter)


def release_interpreter(settings: Settings) -> Callable[[Release], str]:
    """For a release, the Python that its server runs in as a process."""
    from flows.adapters.packages import LOCK, Lock

    def interpreter(release: Release) -> str:
        if settings.python != sys.executable:
            return settings.python
        try:
            text = artifact_store(settings).text(release.bundle, LOCK)
        except ArtifactCorrupt:  # registered before bundles had a lock
            return settings.python
        return model_packages(settings).python(Lock(text))

    return interpreter


def model_packages(settings: Settings) -> Packages:
    from flows.adapters.images.wheelhouse import dependencies_of
    from flows.adapters.packages import KINDS, Packages

    project = settings.repository / "pyproject.toml"
    return Packages(
        settings.image_storage / "packages",
        settings.state / "environments",
        dependencies_of(project, _extras(settings)),
        {kind: dependencies_of(project, (kind,), base=False) for kind in KINDS},
        settings.repository / "constraints.txt",
    )


def _extras(settings: Settings) -> tuple[str, ...]:
    """Extras that all servers get."""
    tracing = ("tracing",) if settings.otlp_endpoint else ()
    return tuple(dict.fromkeys((*settings.image_extras, *tracing)))


def image_builder(settings: Settings) -> ImageBuilder:
    from flows.adapters.images import ImageBuilder, ImageRecipe

    recipe = ImageRecipe.of_project(
        settings.repository,
        packages=PACKAGES,
        extras=_extras(settings),
        torch_index=settings.torch_index,
        torch_fallback=settings.torch_fallback,
    )
    packages = model_packages(settings).of_bundle
    return ImageBuilder(settings.image_storage, recipe, packages=packages)


def release_registry(settings: Settings) -> Registry:
    return Registry(settings.registry_url)


def artifact_store(settings: Settings) -> ArtifactStore:
    from flows.adapters.artifacts import ArtifactStore

    return ArtifactStore(settings.artifacts_uri)


def registry_credentials(repository: str) -> tuple[str, str] | None:
    """User and password for pushing to a repository; None where the image tool's own settings decide."""
    found = re.match(r"\d+\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com/", repository)
    if found is None:
        return None
    import boto3

    from flows.adapters.ecr import Ecr

    login = Ecr(boto3.client("ecr", region_name=found[1])).login()
    return login.user, login.password


def flows_image_builder(settings: Settings) -> ImageBuilder:
    """Of the control plane's own image, for the cluster."""
    from flows.adapters.images import ImageBuilder, ImageRecipe

    return ImageBuilder(settings.image_storage, ImageRecipe.of_flows(settings.repository, PACKAGES))


def scanner(settings: Settings) -> Scanner:
    from flows.adapters.scanner import Scanner

    return Scanner(settings.image_storage / "trivy", settings.state / "scans")
