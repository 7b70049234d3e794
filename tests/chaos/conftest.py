"""One world for all stories of a session: starting a stack costs more than a story."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from flows.adapters import stack
from tests.chaos.world import MODEL, Ending, World, running_world

ENDING = "ending"


@pytest.fixture(scope="session")
def stack_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("chaos")) as world:
        yield world


@pytest.fixture
def world(stack_world: World, request: pytest.FixtureRequest) -> Iterator[World]:
    """The world with a settled stable release, before and after."""
    if not all(part.healthy for part in stack.status(stack_world.settings)):
        stack_world.modelserve("up")
    standing = stack_world.plane.registry.standing(MODEL)
    assert standing.promotion is None, "the test before left a promotion open"
    told = len(stack_world.endings)
    yield stack_world
    # A property of the report reaches the process that writes the table, whichever one played the story.
    for ending in stack_world.endings[told:]:
        request.node.user_properties.append((ENDING, asdict(ending)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Fault, final state, seconds to safety, user requests failed."""
    endings = [
        Ending(**value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, value in report.user_properties
        if name == ENDING
    ]
    if not endings:
        return
    width = max(len(ending.fault) for ending in endings)
    terminalreporter.section("what became of each fault")
    for ending in endings:
        terminalreporter.write_line(
            f"{ending.fault:<{width}}  {ending.seconds:6.1f} s  {ending.failed} failed  {ending.state}"
        )
