"""The composition root: the only file that chooses adapters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flows.adapters.registry import Registry
from flows.domain.platform import Platform
from flows.settings import Settings

if TYPE_CHECKING:
    from flows.adapters.artifacts import ArtifactStore
    from flows.adapters.images import ImageBuilder
    from flows.adapters.prometheus import PrometheusCounters
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
    images: ImageBuilder
    scanner: Scanner
    counters: PrometheusCounters
    clock: Clock


def control_plane(settings: Settings | None = None) -> ControlPlane:
    """The parts that these settings ask for; nothing is contacted yet."""
    from flows.adapters.artifacts import ArtifactStore
    from flows.adapters.prometheus import PrometheusCounters

    chosen = settings or Settings()
    return ControlPlane(
        settings=chosen,
        registry=Registry(chosen.registry_url),
        platform=platform(chosen),
        artifacts=ArtifactStore(chosen.artifacts_uri),
        images=image_builder(chosen),
        scanner=scanner(chosen),
        counters=PrometheusCounters(chosen.prometheus_url),
        clock=time,
    )


def platform(settings: Settings) -> Platform:
    if settings.mode == "kubernetes":
        from flows.adapters.kubernetes import KubernetesPlatform
        from flows.domain.manifests import Cluster

        cluster = Cluster(
            request_seconds=settings.gateway_timeout_seconds,
            prometheus_url=settings.prometheus_url,
            tags_allowed=settings.image_tags_allowed,
        )
        return KubernetesPlatform(cluster=cluster)
    from flows.adapters.local import LocalPlatform
    from flows.adapters.stack import Supervisor

    containers = image_builder(settings).container
    return LocalPlatform(settings, Supervisor(settings), containers=containers)


def image_builder(settings: Settings) -> ImageBuilder:
    from flows.adapters.images import ImageBuilder, ImageRecipe

    return ImageBuilder(settings.image_storage, ImageRecipe.of_project(settings.repository))


def scanner(settings: Settings) -> Scanner:
    from flows.adapters.scanner import Scanner

    return Scanner(settings.image_storage / "trivy", settings.state / "scans")
