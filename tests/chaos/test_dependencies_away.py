"""What a promotion leans on is away for a minute: nobody notices, and it ends as it would have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from flows.domain.promotion import Promotion, State
from tests.chaos.world import World

pytestmark = pytest.mark.timeout(400)

BRIEFLY, LONG = 15, 60
"""Seconds. The long outage outlasts every patience that a client has; the short one is in `make test`."""
OUTAGES = [BRIEFLY, pytest.param(LONG, marks=pytest.mark.thorough)]
LAST_SIGHT_SECONDS = 8
"""The window that was under way when sight was lost may still end well, and let one step pass."""


def now(world: World, version: int) -> Promotion:
    found = world.promotion(version)
    assert found is not None
    return found


@contextmanager
def suspended(world: World, part: str) -> Iterator[None]:
    """It does not even refuse: connections hang, which is the harder way to be away."""
    process = world.part(part)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def moved_away(folder: Path) -> Iterator[None]:
    """The artifact store is gone, like a share that is not mounted."""
    aside = folder.with_name(f"{folder.name}-away")
    folder.rename(aside)
    try:
        yield
    finally:
        if folder.exists():  # somebody wrote meanwhile: nothing of it may be lost
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    target = aside / path.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(target)
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir()
            folder.rmdir()
        aside.rename(folder)


@pytest.mark.parametrize("seconds", OUTAGES)
def test_prometheus_hangs(world: World, seconds: int) -> None:
    story = world.story(f"Prometheus hangs for {seconds} s")
    version, _ = world.promote()
    world.at_weight(version, 10)
    story.strikes()
    with suspended(world, "prometheus"):
        time.sleep(LAST_SIGHT_SECONDS)
        weight = now(world, version).weight
        time.sleep(seconds - LAST_SIGHT_SECONDS)
        assert now(world, version).weight == weight, "weights moved without anybody seeing"
    story.ends(version, State.PROMOTED, serving=version)


@pytest.mark.parametrize("seconds", OUTAGES)
def test_postgresql_is_stopped(world: World, seconds: int) -> None:
    before, story = world.stable, world.story(f"PostgreSQL stopped for {seconds} s")
    version, _ = world.promote()
    world.at_weight(version, 10)
    story.strikes()
    weights = world.weights()
    with world.without("postgres"):
        time.sleep(seconds)
        assert world.weights() == weights, "weights moved while nobody could write down why"
    ended = world.ended(version, 150)
    serving = version if ended.state is State.PROMOTED else before
    story.ends(version, State.PROMOTED, State.FAILED, serving=serving)


def away(world: World, part: str) -> AbstractContextManager[None]:
    """Each in its own way of being away."""
    if part == "redis":
        return suspended(world, part)
    if part == "artifacts":
        return moved_away(world.settings.state / part)
    return world.without(part)


NO_VERDICT_NEEDS = ("prefect", "redis", "alertmanager", "artifacts")


@pytest.mark.parametrize(
    ("parts", "seconds"),
    [
        pytest.param(NO_VERDICT_NEEDS, BRIEFLY, id="together"),
        pytest.param(NO_VERDICT_NEEDS, LONG, id="together, long", marks=pytest.mark.thorough),
        *(pytest.param((part,), LONG, id=part, marks=pytest.mark.thorough) for part in NO_VERDICT_NEEDS),
    ],
)
def test_parts_that_no_verdict_needs(world: World, parts: tuple[str, ...], seconds: int) -> None:
    story = world.story(f"{', '.join(parts)} away for {seconds} s")
    version, _ = world.promote()
    world.at_weight(version, 10)
    story.strikes()
    with ExitStack() as gone:
        for part in parts:
            gone.enter_context(away(world, part))
        time.sleep(seconds)
    story.ends(version, State.PROMOTED, serving=version)
