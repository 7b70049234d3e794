"""Packages of models, with the real pip over an index in a folder: locked once, the same everywhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from flows.adapters.packages import LOCK, Lock, Packages
from flows.domain.errors import PackagesRefused
from tests.integration.small_wheels import write_wheel

OWN = ("orjson", "pydantic")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    write_wheel(folder, "plussing", "1.0", "def plus(x): return x + 1\n")
    write_wheel(folder, "plussing", "2.0", "def plus(x): return x + 2\n")
    write_wheel(folder, "leaning", "1.0", "import plussing, orjson\n", ["plussing<2", "orjson"])
    write_wheel(folder, "older", "1.0", "", ["orjson<3"])
    write_wheel(folder, "elsewhere", "1.0", "", tag="cp311-cp311-win_amd64")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    from importlib.metadata import version

    for name in ("orjson",):
        write_wheel(folder, name, version(name), "never installed: the server has its own\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def packages(tmp_path: Path, index: Path) -> Packages:
    assert index.is_dir()
    pins = tmp_path / "constraints.txt"
    pins.write_text("# pins\nplussing==1.0\n")
    return Packages(tmp_path / "wheels", tmp_path / "environments", OWN, {"plain": ("plussing",)}, pins)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def locked(
    packages: Packages, model: Path, text: str, name: str = "requirements.txt", kind: str = "handler"
) -> list[str]:
    (model / name).write_text(text)
    return [line.split(" ")[0] for line in packages.lock(model, Path("churn"), kind).lines]


def test_every_package_is_locked_by_version_and_digest(packages: Packages, model: Path) -> None:
    assert locked(packages, model, "leaning  # a comment\n\n") == ["leaning==1.0", "plussing==1.0"]
    lines = packages.lock(model, model, "handler").lines
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    assert locked(packages, model, "plussing") == ["plussing==2.0"]
    assert locked(packages, model, "orjson\n") == [], "the server has it"
    assert locked(packages, model, "") == []


def test_a_kind_of_runtime_brings_its_packages(packages: Packages, model: Path) -> None:
    assert locked(packages, model, "", kind="plain") == ["plussing==1.0"], "this project's pin"
    assert locked(packages, model, "plussing>1", kind="plain") == ["plussing==2.0"], "the model's own wish"


def test_a_project_file_and_the_lock_of_uv_are_read(packages: Packages, model: Path) -> None:
    project = '[project]\nname = "churn"\nversion = "1"\ndependencies = ["plussing"]\n'
    assert locked(packages, model, project, "pyproject.toml") == ["plussing==2.0"]
    lock = '[[package]]\nname = "churn"\nversion = "1"\nsource = { virtual = "." }\n'
    lock += (
        '[[package]]\nname = "plussing"\nversion = "1.0"\nsource = { registry = "https://index.example" }\n'
    )
    assert locked(packages, model, lock, "uv.lock") == ["plussing==1.0"]
    with pytest.raises(PackagesRefused, match=r"uv\.lock: plussing comes from .*git"):
        locked(packages, model, lock.replace("registry", "git"), "uv.lock")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "nowhere==7",
            r"nowhere==7: no wheel of it for Python 3\.\d+ on this platform is in the index",
        ),
        ("plussing==9", r"plussing==9: no wheel of it"),
        ("elsewhere", r"elsewhere: no wheel of it for Python"),
        (
            "orjson==2.0",
            r"churn/requirements\.txt:1: orjson==2\.0 conflicts with the server's own orjson 3\.\d+",
        ),
        (
            "older",
            r"cannot be installed together: older 1\.0 wants orjson<3; the server has its own orjson 3\.\d+",
        ),
        ("plussing==1.0\nleaning\nplussing>=2", r"cannot be installed together|Double requirement|conflict"),
        ("plussing @ https://example.org/plussing-1.0.whl", r":1: 'plussing @ https.* is a path or a URL"),
        ("https://example.org/plussing-1.0.whl", "is a path or a URL"),
        ("git+https://example.org/plussing", "is a path or a URL"),
        ("./plussing", "is a path or a URL"),
        ("plussing-1.0-py3-none-any.whl", "is a path or a URL"),
        ("-e .", "is an option"),
        ("-r other.txt", "is an option"),
        ("--extra-index-url https://example.org", "is an option; .* pip's own configuration"),
        ("plussing ==", "is no requirement"),
    ],
)
def test_bad_input_is_one_line(packages: Packages, model: Path, line: str, message: str) -> None:
    with pytest.raises(PackagesRefused, match=message) as raised:
        locked(packages, model, line + "\n")
    assert "\n" not in str(raised.value)


def answer(python: str, code: str) -> str:
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()


def test_a_process_has_the_servers_packages_and_the_models_and_no_others(
    packages: Packages, model: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (model / "requirements.txt").write_text("leaning\n")
    lock = packages.lock(model, model, "handler")
    python = packages.python(lock)
    code = "import leaning, plussing, orjson, pydantic; print(plussing.plus(1), orjson.loads(b'3'))"
    assert answer(python, code) == "2 3"
    missing = (
        "import importlib.util as u; print([n for n in ('prefect', 'sklearn', 'pip') if u.find_spec(n)])"
    )
    assert answer(python, missing) == "[]"
    (model / "requirements.txt").write_text("plussing==2.0\n")
    other = packages.python(packages.lock(model, model, "handler"))
    assert answer(other, "import plussing; print(plussing.plus(1))") == "3"
    # Made once: neither the index nor the network is asked again.
    for wheel in index.iterdir():
        wheel.unlink()
    assert packages.python(lock) == python
    assert {file.name for file in packages.wheels(lock).iterdir()} == {
        *("leaning-1.0-py3-none-any.whl", "plussing-1.0-py3-none-any.whl", "requirements.txt"),
    }


def test_another_wheel_under_the_same_version_is_refused(
    packages: Packages, model: Path, index: Path
) -> None:
    (model / "requirements.txt").write_text("plussing==1.0\n")
    lock = packages.lock(model, model, "handler")
    write_wheel(index, "plussing", "1.0", "print('other')\n")
    with pytest.raises(PackagesRefused, match="DO NOT MATCH THE HASHES"):
        packages.wheels(lock)
    assert [file for file in (index.parent / "wheels").iterdir() if file.name != ".lock"] == []


def test_the_lock_of_another_python_is_refused(packages: Packages, model: Path) -> None:
    (model / LOCK).write_text("# Python 2.7. Old.\nplussing==1.0 --hash=sha256:0\n")
    with pytest.raises(PackagesRefused, match=r"locked for Python 2\.7, the image has 3\.11"):
        packages.of_bundle(model, "3.11")
    with pytest.raises(PackagesRefused, match=r"registered for Python 2\.7"):
        packages.python(Lock((model / LOCK).read_text()))
