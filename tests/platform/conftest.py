"""The platforms under the contract: every adapter, each over the real thing that it drives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.adapters.local import LocalPlatform
from flows.adapters.memory import MemoryPlatform
from flows.adapters.stack import Supervisor, up
from flows.domain.platform import Platform
from flows.domain.release import Release, parse_release_name
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec
from flows.settings import Settings
from tests.platform import local_stack


@dataclass
class Harness:
    """What the contract needs to know about a platform under test."""

    platform: Platform
    again: Callable[[], Platform]
    """Another adapter object over the same platform, as another process would have one."""
    healthy: Callable[[str, int], Release]
    """A release whose server becomes ready."""
    broken: Callable[[str, int], Release]
    """A release whose server never does."""
    spec: Callable[[str], ModelSpec]


@pytest.fixture(scope="session")
def local_settings() -> Iterator[Settings]:
    """A stack with nothing but a gateway, for the whole session."""
    with local_stack.local_settings() as settings:
        up(settings, print, only=["envoy"])
        yield settings


@pytest.fixture
def local(local_settings: Settings) -> Iterator[LocalPlatform]:
    """The local platform over a real Envoy, empty at the start of each test."""
    platform = LocalPlatform(local_settings, Supervisor(local_settings))
    yield platform
    for model in ("flights", "digits"):
        platform.route(model, Routes())
    for name in platform.running():
        platform.stop(Release(*parse_release_name(name), "", ""))


@pytest.fixture
def memory_harness() -> Harness:
    platform = MemoryPlatform()

    def broken(model: str, version: int) -> Release:
        release = Release(model, version, "memory://", "0" * 64)
        platform.broken.add(release.name)
        return release

    return Harness(
        platform=platform,
        again=lambda: platform,
        healthy=lambda model, version: Release(model, version, "memory://", "0" * 64),
        broken=broken,
        spec=local_stack.spec,
    )


@pytest.fixture
def local_harness(local: LocalPlatform, local_settings: Settings, tmp_path: Path) -> Harness:
    return Harness(
        platform=local,
        again=lambda: LocalPlatform(local_settings, Supervisor(local_settings)),
        healthy=lambda model, version: local_stack.release(tmp_path, model, version),
        broken=lambda model, version: local_stack.release(tmp_path, model, version, never_ready=True),
        spec=lambda model: local_stack.spec(model, start_seconds=1),
    )


@pytest.fixture(params=["memory", "local"])
def harness(request: pytest.FixtureRequest) -> Harness:
    """Each platform in turn. To add one: write `<name>_harness` and put the name into the list."""
    harness: Harness = request.getfixturevalue(f"{request.param}_harness")
    return harness
