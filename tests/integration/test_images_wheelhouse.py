"""The wheelhouse: pinned by digest, complete for the oldest interpreter that an image may have."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flows.adapters.images.wheelhouse import collect, dependencies_of, lock, missing_for_oldest
from flows.domain.errors import ImageFailed

ROOT = Path(__file__).parents[2]


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A real, installable wheel without code."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}/_vendor/other-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: other\nVersion: 1\n",
    }
    records = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**files, f"{info}/RECORD": records}.items():
            archive.writestr(file, content)
    return path


def test_the_dependencies_are_the_servers_and_not_the_control_planes() -> None:
    names = dependencies_of(ROOT / "pyproject.toml")
    assert {"fastapi", "torch"} <= set(names)
    assert not {"prefect", "pytest"} & set(names)


def test_the_flows_need_the_servers_dependencies_but_no_model_framework() -> None:
    names = dependencies_of(ROOT / "pyproject.toml", ("flows",), without=("torch",))
    assert {"prefect", "lightkube", "fsspec", "sqlalchemy<2.1"} <= set(names)
    assert "torch" not in names


def test_an_extra_is_added_by_name() -> None:
    names = dependencies_of(ROOT / "pyproject.toml", ("tracing",))
    assert {"torch", "opentelemetry-sdk"} <= set(names)
    with pytest.raises(ImageFailed, match=r"no extra 'tracking'; it has .*tracing"):
        dependencies_of(ROOT / "pyproject.toml", ("tracking",))


def test_what_only_an_older_interpreter_needs_is_found(tmp_path: Path) -> None:
    wheel(
        tmp_path,
        "client",
        "1.0",
        'backport>=4; python_full_version < "3.11.3"',
        'windows-only; sys_platform == "win32"',
        'tracing; extra == "tracing"',
        "Present.Name>=1",
    )
    wheel(tmp_path, "present_name", "1.0")
    assert missing_for_oldest(tmp_path) == ["backport>=4"]
    wheel(tmp_path, "backport", "4.1")
    assert missing_for_oldest(tmp_path) == []


def test_the_lock_installs_without_a_network_and_only_unchanged_wheels(tmp_path: Path) -> None:
    changed = wheel(tmp_path / "wheels", "first", "1.0", "second")
    wheel(tmp_path / "wheels", "second", "2.0")
    text = lock(tmp_path / "wheels")
    digest = hashlib.sha256(changed.read_bytes()).hexdigest()
    assert text.splitlines()[0] == f"first==1.0 --hash=sha256:{digest}"
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(text)

    def install(target: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--require-hashes", "--find-links", str(tmp_path / "wheels"), "--target", target]
        isolated = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null"}
        return subprocess.run(
            [*command, "--requirement", str(requirements)], capture_output=True, text=True, env=isolated
        )

    assert install(str(tmp_path / "good")).returncode == 0
    assert (tmp_path / "good" / "second-2.0.dist-info").is_dir()
    wheel(tmp_path / "wheels", "first", "1.0", "second", "evil")
    refused = install(str(tmp_path / "bad"))
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


def test_collecting_is_done_once_and_again_when_the_pins_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "index", "mine", "1.0")
    wheel(tmp_path / "index", "mine", "2.0")
    wheel(tmp_path / "index", "pip", "99.0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("mine==1.0\n")
    said: list[str] = []

    def fill() -> str:
        collect(tmp_path / "wheels", ["mine"], constraints, device="cpu", progress=said.append)
        return (tmp_path / "wheels" / "requirements.txt").read_text()

    assert fill().startswith("mine==1.0 ")
    assert (tmp_path / "wheels" / "pip" / "pip-99.0-py3-none-any.whl").is_file()
    fill()
    assert len(said) == 1
    constraints.write_text("mine==2.0\n")
    assert fill().startswith("mine==2.0 ")
    constraints.write_text("mine==3.0\n")
    with pytest.raises(ImageFailed, match="collecting the Python dependencies of the image") as error:
        fill()
    assert "Cannot install mine" in str(error.value)
    assert (tmp_path / "wheels" / "requirements.txt").read_text().startswith("mine==2.0 ")


def test_a_build_of_torch_that_knows_no_gpu_is_refused_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "index", "torch", "2.13.0+cpu")
    wheel(tmp_path / "index", "pip", "99.0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    with pytest.raises(ImageFailed, match="cannot use a GPU"):
        collect(
            tmp_path / "wheels",
            ["torch"],
            tmp_path / "constraints.txt",
            device="cuda",
            progress=lambda _: None,
        )
