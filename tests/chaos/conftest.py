"""One world for all stories of a session: starting a stack costs more than a story."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.adapters import stack
from tests.chaos.world import MODEL, Ending, World, running_world

ENDINGS = pytest.StashKey[list[Ending]]()


@pytest.fixture(scope="session")
def stack_world(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("chaos")) as world:
        pytestconfig.stash[ENDINGS] = world.endings
        yield world


@pytest.fixture
def world(stack_world: World) -> World:
    """The world with a settled stable release, before and after."""
    if not all(part.healthy for part in stack.status(stack_world.settings)):
        stack_world.modelserve("up")
    standing = stack_world.plane.registry.standing(MODEL)
    assert standing.promotion is None, "the test before left a promotion open"
    return stack_world


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Fault, final state, seconds to safety, user requests failed."""
    endings = config.stash.get(ENDINGS, [])
    if not endings:
        return
    width = max(len(ending.fault) for ending in endings)
    terminalreporter.section("what became of each fault")
    for ending in endings:
        terminalreporter.write_line(
            f"{ending.fault:<{width}}  {ending.seconds:6.1f} s  {ending.failed} failed  {ending.state}"
        )
