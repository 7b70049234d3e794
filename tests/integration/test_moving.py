"""A state folder that was moved: what names its own files by whole paths names them where they are now."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flows.adapters.packages.environments import environment
from flows.adapters.packages.own import own_packages
from flows.adapters.stack import moving
from flows.settings import Settings


@pytest.fixture
def moved(tmp_path: Path) -> Settings:
    """A folder with an environment and a program that starts it, moved after it was last up."""
    old = Settings(state=tmp_path / "old")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "requirements.txt").write_text("")
    python = environment(old.state / "environments", own_packages(("orjson",)), "none", wheels)
    old.programs_folder.mkdir()
    (old.programs_folder / "flights-v1.sh").write_text(f"#!/bin/sh\nexec {python} -c 'import orjson'\n")
    moving.settled(old)
    new = Settings(state=tmp_path / "new")
    old.state.rename(new.state)
    return new


def test_a_server_finds_its_packages_after_the_folder_was_moved(moved: Settings) -> None:
    script = moved.programs_folder / "flights-v1.sh"
    old = moving.moved_from(moved)
    assert old is not None
    for _ in range(2):  # a start that was interrupted does it again
        moving.rewrite(moved, old)
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moving.settled(moved)
    assert moving.moved_from(moved) is None
