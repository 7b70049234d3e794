"""A control plane over a real registry and the platform in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.adapters.artifacts import ArtifactStore
from flows.adapters.memory import MemoryPlatform
from flows.adapters.registry import Registry
from flows.domain.promotion import Promotion, State
from flows.domain.release import Phase, Release
from flows.settings import Settings
from flows.wiring import ControlPlane
from tests.flows.drift_world import World, run_redis

SPEC = """
name: flights
signature:
  inputs: [{name: hour, type: integer}]
  outputs: [{name: late, type: boolean}]
"""


class Unused:
    """A part that the test must not touch."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"this test should not need {name!r}")


class Scanner(Unused):
    """Is ready for whatever a policy wants, and scans nothing."""

    def ready(self, policy: object, progress: object = None) -> None: ...


@pytest.fixture
def platform() -> MemoryPlatform:
    return MemoryPlatform()


@pytest.fixture
def plane(registry: Registry, platform: MemoryPlatform, tmp_path: Path) -> ControlPlane:
    unused: Any = Unused()
    scanner: Any = Scanner()
    return ControlPlane(
        settings=Settings(state=tmp_path / "state", lease_seconds=0.2, cooldown_seconds=60),
        registry=registry,
        platform=platform,
        artifacts=ArtifactStore((tmp_path / "artifacts").as_uri()),
        images=unused,
        scanner=scanner,
        counters=unused,
        clock=time,
    )


class Story:
    """Brings a model to where a test begins, through the registry's own doors."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def register(self, *versions: int, model: str = "flights") -> None:
        for version in versions:
            release = Release(model, version, f"file:///bundles/{model}/{version}", f"{version:064x}")
            self.plane.registry.register(release, SPEC.replace("flights", model))

    def release(self, version: int) -> Release:
        return self.plane.registry.release("flights", version)

    def start(self, version: int) -> None:
        from flows.domain.spec import parse_spec

        self.plane.platform.start(self.release(version), parse_spec(SPEC, "model.yaml"))

    def begin(self, version: int, weight: int, run: str = "", lease: float = 60) -> Promotion:
        """A promotion that has reached `weight` %."""
        from flows.domain.promotion import ramp

        registry = self.plane.registry
        promotion = registry.begin("flights", version, run or f"run-{version}", 3600, lease)
        self.start(version)
        with registry.turn("flights") as turn:
            routes = ramp(turn.standing(), weight)
            turn.intend_route(routes)
            self.plane.platform.route("flights", routes)
            turn.record_weight(promotion, weight)
        return registry.promotion(promotion.id)

    def promoted(self, version: int) -> Promotion:
        """A promotion that has ended well."""
        from flows.domain.promotion import settled

        promotion = self.begin(version, 100)
        with self.plane.registry.turn("flights") as turn:
            turn.crown(promotion)
            standing = turn.standing()
            routes = settled(standing.stable, standing.previous)
            turn.intend_route(routes)
            self.plane.platform.route("flights", routes)
            turn.end(promotion, State.PROMOTED, "certified")
        return promotion

    def phases(self) -> dict[int, Phase]:
        return {r.version: r.phase for r in self.plane.registry.releases("flights")}

    def weights(self) -> dict[str, int]:
        return {n: w for n, w in self.plane.platform.routes("flights").weights.items() if w}


@pytest.fixture
def story(plane: ControlPlane) -> Story:
    return Story(plane)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from run_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def world(plane: ControlPlane, tmp_path: Path, redis_url: str) -> Iterator[World]:
    world = World(plane, tmp_path / "bundles", redis_url)
    yield world
    world.client.close()
