"""What people and alerts do at three in the morning: twice, in a hurry, while something else is under way."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest

from flows.domain.promotion import State
from tests.chaos.world import MODEL, PROMOTION, ROOT, World

COOL_DOWN_SECONDS = 20


def promoted(world: World) -> int:
    """A release that has earned its place a moment ago, with the one before it behind it."""
    version, _ = world.promote()
    assert world.ended(version).state is State.PROMOTED
    return version


def test_a_rollback_that_is_typed_again_and_again_takes_the_last_release_out_never(world: World) -> None:
    before = world.stable
    promoted(world)
    story = world.story("rollback typed three times")
    story.strikes()
    assert "was taken out" in world.modelserve("rollback", MODEL).stdout
    for _ in range(2):
        again = world.modelserve("rollback", MODEL, check=False)
        assert again.returncode == 1
        assert f"v{before} is the last release that serves" in again.stdout
    story.settles("nothing more to roll back", serving=before)


@pytest.mark.thorough
def test_a_model_that_was_retired_comes_back_by_name(world: World) -> None:
    before = world.stable
    story = world.story("retired and brought back")
    story.strikes()
    world.modelserve("retire", MODEL, "--yes")
    assert world.weights() == {}
    assert "was brought back" in world.modelserve("rollback", MODEL, "--to", str(before)).stdout
    story.settles("brought back", serving=before, hurts=True)


def test_a_rollback_leads_to_no_release_that_has_proven_nothing(world: World) -> None:
    """Not to one that was only registered, nor, unless it passes on the spot, to one that was rejected."""
    before = world.stable
    registered, wrong, good = world.register(), world.register(answer=7.0), world.register()
    world.begin(wrong)
    assert world.ended(wrong).state is State.REJECTED
    world.begin(good)
    world.at_weight(good, 10)
    world.modelserve("abort", MODEL)
    assert world.ended(good).state is State.ABORTED
    story = world.story("rollback --to a release without proof")
    story.strikes()
    for version in (registered, wrong, good):
        refused = world.modelserve("rollback", MODEL, "--to", str(version), check=False)
        assert refused.returncode == 1
        assert "has never been stable, or was rejected" in refused.stderr
    for version, why in ((registered, "was never built"), (wrong, "failed sample 1")):
        refused = world.modelserve("rollback", MODEL, "--to", str(version), "--unproven", check=False)
        assert refused.returncode == 1
        assert why in refused.stderr
        world.serving(before)
    world.modelserve("rollback", MODEL, "--to", str(good), "--unproven")
    story.settles("scanned, asked, and then taken", serving=good)


@pytest.mark.thorough
def test_an_alert_that_was_put_off_is_answered_when_the_cool_down_is_over(world: World) -> None:
    before = world.stable
    version = promoted(world)
    story = world.story("the stable's server dies during the cool-down")
    assert world.plane.registry.cool_down(MODEL, COOL_DOWN_SECONDS)
    story.strikes()
    from flows.adapters import stack

    stack.Supervisor(world.settings).stop(f"{MODEL}-v{version}")
    story.settles("answered late", serving=before, seconds=240, hurts=True)

    def told() -> list[str]:
        return [event.detail["outcome"] for event in world.plane.registry.events(MODEL, kinds=("alert",))]

    # Users are back before the flow that brought them back has written down that it did.
    world.until(lambda: told()[-2:] == ["cooling-down", "rolled-back"], 60, "the alert's answer on record")


@pytest.mark.thorough
def test_a_start_in_which_one_part_fails_leaves_users_served(world: World) -> None:
    before = world.stable
    data = world.settings.state / "prometheus" / "data"
    world.modelserve("down")
    kept = data.with_name("kept")
    data.rename(kept)
    data.write_text("not a folder")
    try:
        failed = world.modelserve("up", check=False)
        assert failed.returncode == 1
        assert "what serves goes on" in failed.stderr
        url = f"{world.settings.gateway_url}/models/{MODEL}/predict"
        story = world.story("a start in which Prometheus fails")
        story.strikes()
        assert httpx.post(url, json={"instances": [{"x": 3}]}, timeout=10).json() == {"predictions": [6.0]}
        time.sleep(5)  # users go on meanwhile
    finally:
        data.unlink()
        shutil.move(kept, data)
        world.modelserve("up")
    story.settles("served throughout", serving=before)


def test_an_experiment_that_is_killed_gives_its_split_back(world: World) -> None:
    stable = world.stable
    version = promoted(world)
    story = world.story("an experiment's process is killed")
    command = [sys.executable, "-c", "from flows.terminal.cli import main; main()", "experiment", MODEL]
    command += [str(stable), str(version), "--look-seconds", "1"]
    shell = subprocess.Popen(command, cwd=ROOT, env=world.variables, stdout=subprocess.DEVNULL)
    try:
        world.until(lambda: len(world.weights()) == 2, 60, "the experiment to split the traffic")
        story.strikes()
    finally:
        shell.send_signal(signal.SIGKILL)
        shell.wait()
    story.settles("swept", serving=version, seconds=240)


def test_starting_a_promotion_twice_is_one_promotion(world: World) -> None:
    version = world.register(PROMOTION)
    story = world.story("a promotion started twice")
    story.strikes()
    first, second = world.begin(version), world.begin(version)
    assert first == second
    story.ends(version, State.PROMOTED, serving=version)
