"""A promotion that dies before or after any of its writes: nobody is hurt, and it can be run again.

Between any two writes a promotion is killed twice: once it is run again, once it is swept. `make test` keeps
the gaps at which the two have most to mend; `make chaos` does all of them. The flow's own process dies and
Prefect never hears of it, so the registry alone must tell what to do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from flows.adapters import stack
from flows.domain.promotion import Promotion, State, due
from flows.domain.release import Phase
from flows.steps.restore import restore
from flows.sweep import sweep_once
from flows.wiring import ControlPlane, control_plane
from tests.chaos.killed import Moment, promote_again, promote_and_die, write_sequence
from tests.chaos.world import MODEL, World

pytestmark = pytest.mark.timeout(300)

LEASE_SECONDS = 1.0
QUICK = """
promotion:
  steps: [50, 100]
  dwell_seconds: 1
  window_seconds: 0.5
  min_requests: 3
  max_absolute: 0.3
  deadline_seconds: 100
  post_watch_seconds: 0.5
"""

POINTS = (
    *("begin#1", "record_image#1", "note#1", "start#1", "note#2", "note#3", "note#4"),
    *("intend_route#1", "route#1", "record_weight#1", "store_window#1", "store_window#2"),
    *("intend_route#2", "route#2", "record_weight#2"),
    *("intend_route#3", "route#3", "crown#1"),
    *("intend_route#4", "route#4", "end#1", "settle#1"),
)
"""Of the windows only the first two, which are one with and one without a window before it."""


RUN_AGAIN, SWEPT = ("record_weight#1", "route#3"), ("route#2", "crown#1")
"""In `make test`: traffic has moved and no row says so; the route is meant and not there; the release serves
everybody and only the end is missing."""


def matrix(always: Sequence[str]) -> list[Any]:
    return [pytest.param(point, marks=() if point in always else pytest.mark.thorough) for point in POINTS]


@pytest.fixture(scope="module")
def plane(stack_world: World) -> Iterator[ControlPlane]:
    """Sees a run as gone after a second: the promotions here die by the dozen.

    The worker is away, and with it the sweep of every minute, which would be first now and then.
    """
    with stack_world.without("worker"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELSERVE_LEASE_SECONDS", str(LEASE_SECONDS))
        yield control_plane(stack_world.settings.model_copy(update={"lease_seconds": LEASE_SECONDS}))
        # Prefect has asked for a rollback for each of the dead: dozens of processes at once.
        stack_world.cancel_scheduled("rollback")


@pytest.fixture(scope="module")
def version(stack_world: World, plane: ControlPlane) -> int:
    """A release with a quick policy that has served once and was taken back, as each test leaves it."""
    version = stack_world.register(promotion=QUICK)
    assert promote_again(MODEL, version) == 0
    restore(plane, MODEL, "back to where the story begins")
    return version


@pytest.fixture
def before(stack_world: World, plane: ControlPlane, version: int) -> int:
    """The stable version before the story; the one under test serves nobody."""
    if stack_world.stable == version:
        restore(plane, MODEL, "back to where the story begins")
    assert stack_world.stable != version
    return stack_world.stable


def newest(plane: ControlPlane, version: int, begun: int) -> Promotion | None:
    found = [p for p in plane.registry.promotions(MODEL)[begun:] if p.version == version]
    return found[-1] if found else None


def at_peace(world: World, plane: ControlPlane) -> None:
    """Rows, route and servers say the same, and nothing is left to be done."""
    standing = plane.registry.standing(MODEL)
    assert (standing.promotion, standing.retreat, standing.canary) == (None, None, None)
    assert plane.platform.routes(MODEL) == due(standing) == standing.route
    names = {release.name for release in standing.releases if release.in_service}
    assert plane.platform.running() == names
    servers = [part.name for part in stack.status(world.settings) if part.name.startswith(f"{MODEL}-v")]
    assert sorted(servers) == sorted(names)


def kinds(plane: ControlPlane, promotion: Promotion) -> list[str]:
    return [event.kind for event in plane.registry.events(MODEL, promotion)]


def dies(plane: ControlPlane, version: int, point: str, moment: Moment) -> int:
    """The number of promotions before; the dead one's lease is over when this returns."""
    begun = len(plane.registry.promotions(MODEL))
    promote_and_die(MODEL, version, point, moment)
    time.sleep(LEASE_SECONDS * 2)
    return begun


@pytest.mark.thorough
@pytest.mark.usefixtures("before")
def test_the_points_are_those_of_the_code_path(version: int) -> None:
    found = [point for point in write_sequence(MODEL, version) if not _is_later_window(point)]
    assert found == list(POINTS)


def _is_later_window(point: str) -> bool:
    return point.startswith("store_window#") and int(point.partition("#")[2]) > 2


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("point", matrix(RUN_AGAIN))
def test_killed_before_a_write_and_run_again(
    stack_world: World, plane: ControlPlane, version: int, point: str
) -> None:
    story = stack_world.story(f"killed (kill -9) before {point}, run again")
    begun = dies(plane, version, point, "before")
    dead = newest(plane, version, begun)
    story.strikes()
    if dead is not None and dead.ended_at is None:
        windows = plane.registry.windows(dead)
        assert promote_again(MODEL, version) == 0
        again = newest(plane, version, begun)
        assert again is not None
        assert (again.id, again.state) == (dead.id, State.PROMOTED)
        assert plane.registry.windows(dead)[: len(windows)] == windows
        assert kinds(plane, dead).count("ended") == 1
        reached = [e.detail["weight"] for e in plane.registry.events(MODEL, dead) if e.kind == "weight"]
        assert reached == sorted(reached)
        assert set(reached) == {50, 100}
    elif dead is None:
        assert point == "begin#1"
        assert promote_again(MODEL, version) == 0
    else:
        assert (point, dead.state) == ("settle#1", State.PROMOTED)
    story.ends(version, State.PROMOTED, serving=version)
    sweep_once(plane)
    at_peace(stack_world, plane)


@pytest.mark.parametrize("point", matrix(SWEPT))
def test_killed_after_a_write_and_swept(
    stack_world: World, plane: ControlPlane, version: int, before: int, point: str
) -> None:
    story = stack_world.story(f"killed (kill -9) after {point}, swept")
    begun = dies(plane, version, point, "after")
    dead = newest(plane, version, begun)
    assert dead is not None
    story.strikes()
    certified = plane.registry.release(MODEL, version).phase is Phase.STABLE
    assert sweep_once(plane).problems == ()
    state, serving = (State.PROMOTED, version) if certified else (State.FAILED, before)
    assert story.ends(version, state, serving=serving).id == dead.id
    assert kinds(plane, dead).count("ended") == 1
    at_peace(stack_world, plane)
