"""One world for all stories of a session: starting a stack costs more than a story."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.adapters import stack
from tests.chaos.world import MODEL, Ending, World, running_world

ENDINGS = pytest.StashKey[list[Ending]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--turn",
        metavar="N/M",
        help="of the tests marked thorough only every M-th, from the N-th on (1/2 and 2/2 are all of them)",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--turn`, leave out the thorough tests whose turn it is not."""
    wanted = config.getoption("--turn")
    if not wanted:
        return
    number, turns = (int(part) for part in wanted.split("/"))
    if not 1 <= number <= turns:
        raise pytest.UsageError(f"--turn {wanted}: N is between 1 and M")
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    others = [item for place, item in enumerate(thorough) if place % turns != number - 1]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


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
