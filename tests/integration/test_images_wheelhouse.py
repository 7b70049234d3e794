"""The wheelhouse: pinned by digest, complete for the oldest interpreter that an image may have."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.adapters.images import ImageRecipe
from flows.adapters.images.wheelhouse import (
    PYTHON,
    TorchSource,
    collect,
    dependencies_of,
    lock,
    missing_for_oldest,
)
from flows.adapters.packages.own import own_packages
from flows.domain.errors import ImageFailed
from flows.settings import Settings

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
        f'backport>=4; python_full_version < "{PYTHON}.3"',
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


class Index(SimpleHTTPRequestHandler):
    """A package index over HTTP, as pip reads it: a folder a project, with links to its files."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of two indexes: `/cpu` has both builds of torch, `/pypi` the one with CUDA, and pip."""
    both = tmp_path / "served" / "cpu" / "torch"
    plain = tmp_path / "served" / "pypi"
    wheel(both, "torch", "2.13.0+cpu")
    wheel(both, "torch", "2.13.0", "nvidia-cublas")
    wheel(plain / "torch", "torch", "2.13.0", "nvidia-cublas")
    wheel(plain / "nvidia-cublas", "nvidia_cublas", "13.0")
    wheel(plain / "pip", "pip", "99.0")
    wheel(plain / "accelerated", "accelerated", "1.0", "nvidia-cublas")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(tmp_path / "served"))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/pypi")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        yield address
        server.shutdown()
        thread.join()


def source(folder: Path, index: str, *, fallback: bool = True) -> TorchSource:
    """Torch by the digests of the test's own builds."""
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("served/*/torch/*.whl")}
    text = " ".join(["torch==2.13.0", *(f"--hash=sha256:{digest}" for digest in sorted(digests))])
    (folder / "torch.txt").write_text(f"{text}\n")
    return TorchSource(ROOT / "infra" / "images" / "torch.sh", folder / "torch.txt", index, fallback)


def gather(
    folder: Path, torch: TorchSource, device: str = "cpu", wanted: Sequence[str] = ("torch",)
) -> tuple[list[str], list[str]]:
    """The lock of an image for the device, without digests, and what was said meanwhile."""
    (folder / "constraints.txt").write_text("torch==2.13.0\n")
    said: list[str] = []
    collect(
        folder / "wheels",
        wanted,
        folder / "constraints.txt",
        device=device,
        torch=torch,
        progress=said.append,
    )
    lines = (folder / "wheels" / "requirements.txt").read_text().splitlines()
    return [line.partition(" ")[0] for line in lines], said


def test_an_image_for_cpus_has_the_build_for_cpus(indexes: str, tmp_path: Path) -> None:
    locked, said = gather(tmp_path, source(tmp_path, f"{indexes}/cpu"))
    assert locked == ["torch==2.13.0+cpu"]
    assert len(said) == 1


def test_an_image_for_gpus_never_has_it_though_its_version_is_the_higher_one(
    indexes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{indexes}/cpu")
    locked, _ = gather(tmp_path, source(tmp_path, f"{indexes}/cpu"), "cuda")
    assert locked == ["nvidia-cublas==13.0", "torch==2.13.0"]
    shutil.rmtree(tmp_path / "served" / "pypi" / "torch")
    (tmp_path / "served" / "cpu" / "torch" / "torch-2.13.0-py3-none-any.whl").unlink()
    shutil.rmtree(tmp_path / "wheels")
    with pytest.raises(ImageFailed, match=r"fetching torch for GPUs: .*Could not find a version"):
        gather(tmp_path, source(tmp_path, f"{indexes}/cpu"), "cuda")


@pytest.mark.parametrize("index", ["http://127.0.0.1:1/cpu", "{indexes}/pypi", ""])
def test_without_a_build_for_cpus_pips_own_is_taken_with_a_word(
    indexes: str, tmp_path: Path, index: str
) -> None:
    """Nobody listens, the index has only the other build, and none is wanted."""
    locked, said = gather(tmp_path, source(tmp_path, index.format(indexes=indexes)))
    assert locked == ["nvidia-cublas==13.0", "torch==2.13.0"]
    assert re.search(
        r"no build of torch for CPUs .* 1 packages of CUDA \(nvidia-cublas.*TORCH_INDEX", said[-1]
    )


@pytest.mark.parametrize("index", ["http://127.0.0.1:1/cpu", "{indexes}/pypi", ""])
def test_a_fallback_can_be_forbidden(indexes: str, tmp_path: Path, index: str) -> None:
    with pytest.raises(ImageFailed, match=r"MODELSERVE_TORCH_(FALLBACK|INDEX)"):
        gather(tmp_path, source(tmp_path, index.format(indexes=indexes), fallback=False))
    assert not (tmp_path / "wheels").exists()


def test_cuda_that_a_dependency_brings_is_refused_beside_the_build_for_cpus(
    indexes: str, tmp_path: Path
) -> None:
    torch = source(tmp_path, f"{indexes}/cpu")
    with pytest.raises(ImageFailed, match=r"would carry 1 packages of CUDA .*which a dependency brings"):
        gather(tmp_path, torch, wanted=["torch", "accelerated"])


def test_a_build_whose_digest_is_not_listed_is_not_taken(indexes: str, tmp_path: Path) -> None:
    torch = source(tmp_path, f"{indexes}/cpu")
    for folder in (tmp_path / "served").glob("*/torch"):
        for path in folder.iterdir():
            wheel(folder, "torch", path.name.split("-")[1], "changed")
    with pytest.raises(ImageFailed, match="DO NOT MATCH THE HASHES"):
        gather(tmp_path, torch)


def test_the_listed_builds_are_of_the_pinned_version_and_the_settings_agree() -> None:
    images = ROOT / "infra" / "images"
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    listed = re.search(r"^torch==(\S+) ", (images / "torch.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert listed is not None
    assert listed[1] == pinned[1], "list the digests of the new version in infra/images/torch.txt"
    assert f"${{MODELSERVE_TORCH_INDEX-{TorchSource.index}}}" in (images / "torch.sh").read_text()
    fields = Settings.model_fields
    assert fields["torch_index"].default == TorchSource.index
    assert fields["torch_fallback"].default is TorchSource.fallback


def test_the_control_plane_brings_neither_torch_nor_cuda() -> None:
    """What its image installs, followed through the metadata of what is installed here."""
    recipe = ImageRecipe.of_flows(ROOT)
    names = set(own_packages(recipe.dependencies))
    assert recipe.torch is None
    assert {"prefect", "evidently"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia", "cuda", "triton"))}


def test_the_control_plane_imports_no_torch() -> None:
    code = (
        "import importlib, pkgutil, sys, flows\n"
        "sys.modules['torch'] = None  # whoever imports it fails\n"
        "names = [one.name for one in pkgutil.walk_packages(flows.__path__, 'flows.')]\n"
        "for name in names: '.migrations' in name or importlib.import_module(name)\n"
        "print(len(names))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 80
