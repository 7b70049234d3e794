"""Releases that must not be promoted: one line, exit code 1, and the traffic stays where it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flows.domain.promotion import State
from flows.domain.release import Phase
from tests.chaos.world import HANDLER, MODEL, World

pytestmark = pytest.mark.timeout(300)

BREAKS_AT_LOAD = HANDLER.replace(
    "return json", 'raise ValueError("the weights are of another model")\n    json'
)
FAILS_SOME = HANDLER.replace(
    "return [{",
    'if any(row["x"] % 7 == 5 for row in rows):\n        raise ValueError("never seen")\n    return [{',
)


def refused(world: World, version: int, state: State) -> str:
    """Promote it from the shell; what the user reads."""
    before, story = world.stable, world.story(f"a release that must not pass: v{version}")
    done = world.modelserve("promote", MODEL, str(version), "--watch", check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    story.ends(version, state, serving=before)
    assert version not in {r.version for r in world.plane.registry.standing(MODEL).releases if r.in_service}
    return " ".join((done.stdout + done.stderr).split())


def test_a_golden_request_that_is_answered_otherwise(world: World) -> None:
    said = refused(world, world.register(answer=6.5), State.REJECTED)
    assert "rejected" in said
    assert "6.5" in said


@pytest.mark.thorough
def test_a_server_that_never_becomes_ready(world: World) -> None:
    said = refused(world, world.register(handler=BREAKS_AT_LOAD), State.FAILED)
    assert "the weights are of another model" in said


@pytest.mark.thorough
def test_an_artifact_that_is_not_what_was_registered(world: World) -> None:
    version = world.register()
    release = world.plane.registry.release(MODEL, version)
    (model,) = (world.settings.state / "artifacts").rglob(f"*/{release.bundle.rsplit('/', 1)[1]}/model.json")
    model.write_text('{"factor": 3}')
    said = refused(world, version, State.FAILED)
    assert "model.json" in said
    assert "sha256" in said


@pytest.mark.thorough
def test_prefects_own_command_fails_when_the_release_fails_users(world: World) -> None:
    """It passes its golden request, and raises on a seventh of what users send."""
    before = world.stable
    version = world.register(handler=FAILS_SOME)
    command = [sys.executable, "-m", "prefect", "deployment", "run", "promote/promote", "--watch"]
    command += ["-p", f"model={MODEL}", "-p", f"version={version}"]
    done = subprocess.run(
        command, env=world.variables, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    ended = world.ended(version)
    assert ended.state is State.REJECTED
    assert ended.reason is not None
    assert "requests failed on the canary" in ended.reason
    world.serving(before)
    assert world.plane.registry.release(MODEL, version).phase is Phase.REJECTED


@pytest.mark.thorough
def test_prefects_own_command_succeeds_with_a_good_release_and_a_second_one_is_refused(world: World) -> None:
    version, other = world.register(), world.register()
    command = [sys.executable, "-m", "prefect", "deployment", "run", "promote/promote", "--watch"]
    command += ["-p", f"model={MODEL}", "-p", f"version={version}"]
    first = subprocess.Popen(
        command, env=world.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        world.at_weight(version, 10)
        second = world.modelserve("promote", MODEL, str(other), "--watch", check=False)
        assert second.returncode == 1
        assert f"{MODEL} v{version} is being promoted" in second.stderr
        said, _ = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 0, said
    world.serving(version)
