"""`make setup` on other machines: which Python, what apt is asked, and what is said where there is no apt.

The programs of such a machine are played, up to the point where something would be installed; a whole run
needs a whole machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COREUTILS = ("bash", "dirname", "id", "sed", "grep", "cat", "cut", "sha256sum", "env", "mktemp", "rm", "head")


class Machine:
    """A PATH of its own, and a checkout that holds the setup alone."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in COREUTILS:
            found = shutil.which(name)
            assert found, name
            (self._bin / name).symlink_to(found)
        self._setup = folder / "checkout" / "infra" / "local" / "setup"
        self._setup.parent.mkdir(parents=True)
        shutil.copy(ROOT / "infra" / "local" / "setup", self._setup)

    def program(self, name: str, script: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def python(self, name: str, version: str, *, venv: bool = True) -> None:
        """An interpreter that answers what the setup asks; without `venv` as Debian's own is."""
        supported = 0 if version in ("3.11", "3.12", "3.13") else 1
        answers = f"*print*) echo {version} ;; *ensurepip*) exit {int(not venv)} ;; *) exit {supported} ;;"
        self.program(name, f'case "$2" in {answers} esac')

    def apt(self, plan: str = "") -> None:
        """An apt that has nothing installed, plans as given, and cannot go on."""
        self.program("dpkg-query", "exit 1")
        self.program("apt-get", f'case "$*" in *--simulate*) printf "{plan}"; exit {int(not plan)} ;; esac')

    def set_up(self) -> tuple[int, str, str]:
        done = subprocess.run(
            [self._setup],
            env={"PATH": str(self._bin), "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def asked(stdout: str) -> list[str]:
    (line,) = [line for line in stdout.splitlines() if "that are missing" in line]
    return line.partition("missing: ")[2].removesuffix("\033[0m").split()


@pytest.mark.parametrize(
    ("there", "package"),
    [
        ({"python3": "3.13"}, "python3.13-venv"),
        ({"python3": "3.12"}, "python3.12-venv"),
        ({"python3": "3.11", "python3.13": "3.13"}, "python3.11-venv"),
        ({"python3": "3.10", "python3.11": "3.11", "python3.12": "3.12"}, "python3.12-venv"),
        ({"python3": "3.14", "python3.13": "3.13"}, "python3.13-venv"),
        ({"python3": "3.14"}, "python3-venv"),
        ({}, "python3-venv"),
    ],
)
def test_the_python_that_is_there_is_taken_with_its_own_venv(
    machine: Machine, there: dict[str, str], package: str
) -> None:
    for name, version in there.items():
        machine.python(name, version, venv=False)
    machine.apt()
    code, stdout, stderr = machine.set_up()
    assert code == 1
    assert "apt cannot install" in stderr
    assert [name for name in asked(stdout) if name.startswith("python")] == (
        [package] if package != "python3-venv" else ["python3", "python3-venv"]
    )


def test_a_python_that_can_make_environments_needs_no_package(machine: Machine) -> None:
    machine.python("python3", "3.12")
    machine.apt()
    assert not [name for name in asked(machine.set_up()[1]) if name.startswith("python")]


def test_apt_is_not_let_remove_what_somebody_has(machine: Machine) -> None:
    machine.python("python3", "3.13")
    machine.apt("Remv docker-ce [1]\\nInst podman (5.4 Debian)\\n")
    code, stdout, stderr = machine.set_up()
    assert code == 1
    assert "apt would remove docker-ce" in stderr
    assert "installs" not in stdout


def test_another_system_is_told_what_to_have_and_what_works_without(machine: Machine) -> None:
    machine.python("python3", "3.14")
    for name in ("git", "curl", "podman"):
        machine.program(name, "")
    code, _, stderr = machine.set_up()
    assert code == 1
    listed = stderr.splitlines()[1]
    for name in (
        "python3.11, 3.12 or 3.13",
        "prometheus",
        "promtool",
        "redis-server",
        "buildah",
        "mmdebstrap",
    ):
        assert name in listed
    assert not {"git", "curl", "podman"} & set(listed.replace(",", " ").split())
    assert "pytest tests/domain tests/serving" in stderr
    assert "command not found" not in stderr


def test_the_setup_is_sound_bash() -> None:
    subprocess.run(["bash", "-n", ROOT / "infra" / "local" / "setup"], check=True)
    assert os.access(ROOT / "infra" / "images" / "torch.sh", os.X_OK)
