"""The verbs tell the truth: about a stack that is elsewhere, that is not there, that is down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.free_ports import stack_variables

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has no stack yet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELSERVE_")}
    return {
        **kept,
        "HOME": str(tmp_path / "home"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "COLUMNS": "200",
    }


def modelserve(*words: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flows.terminal.cli import main; main()", *words]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("verb", [("status",), ("down",), ("history", "flights"), ("rollback", "flights")])
def test_without_a_stack_a_verb_says_where_it_looked_and_makes_nothing(
    tmp_path: Path, home: dict[str, str], verb: tuple[str, ...]
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    done = modelserve(*verb, folder=folder, environment=home)
    assert done.returncode == 1
    assert "no stack was found: MODELSERVE_STATE is not set" in done.stderr
    assert "modelserve up" in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "verb",
    [("history", "flights"), ("promote", "flights", "1"), ("experiment", "flights", "1", "2"), ("sweep",)],
)
def test_a_stack_that_is_down_is_said_at_once(
    tmp_path: Path, home: dict[str, str], verb: tuple[str, ...]
) -> None:
    (tmp_path / ".modelserve").mkdir()
    done = modelserve(*verb, folder=tmp_path, environment=home)
    assert done.returncode == 1
    assert "the stack is not running" in done.stderr
    assert "modelserve up" in done.stderr
    assert "PostgreSQL" not in done.stderr


def test_status_of_a_stack_that_is_down_is_no_success(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / ".modelserve").mkdir()
    done = modelserve("status", folder=tmp_path, environment=home)
    assert done.returncode == 1
    assert "parts are down" in done.stderr


def test_the_last_stack_is_found_from_another_folder(tmp_path: Path, home: dict[str, str]) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    ports = stack_variables(tmp_path, 29000)
    del ports["MODELSERVE_STATE"]
    remembering = (
        "from pathlib import Path; from flows.terminal import state_folder;"
        "state_folder.remember(Path('.modelserve').absolute())"
    )
    (here / ".modelserve").mkdir()
    subprocess.run(
        [sys.executable, "-c", remembering], cwd=here, env={**home, "PYTHONPATH": str(ROOT)}, check=True
    )
    done = modelserve("status", folder=elsewhere, environment={**home, **ports})
    assert f"state folder {here / '.modelserve'}" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_the_exit_codes_of_a_followed_promotion_are_in_its_help(tmp_path: Path, home: dict[str, str]) -> None:
    done = modelserve("promote", "--help", folder=tmp_path, environment=home)
    said = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "0 promoted; 3 its deadline came without proof" in said
    assert "1 everything else" in said


@pytest.mark.parametrize("options", [("--hotfix",), ("--hotfix", "--reason", " "), ("--reason", "why")])
def test_a_hotfix_says_why_and_for_whom(
    tmp_path: Path, home: dict[str, str], options: tuple[str, ...]
) -> None:
    (tmp_path / ".modelserve").mkdir()
    own = {**home, "MODELSERVE_STATE": str(tmp_path / ".modelserve"), "USER": "ada"}
    done = modelserve("promote", "flights", "1", *options, folder=tmp_path, environment=own)
    assert done.returncode == 2
    assert "--reason" in done.stderr
    assert "hotfix" in done.stderr
