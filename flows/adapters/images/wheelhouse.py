"""Collects the model server's Python dependencies as wheels, outside the image build.

The build itself then needs no network and no index settings: it installs exactly the wheels of
`requirements.txt`, each by version and SHA-256. The image has this machine's Python (`PYTHON`), since what a
model's packages were checked with at registration is what must run. It may be an older patch release of it
(Debian's 3.11.2) than the one whose markers pip resolves here, so dependencies that only such an interpreter
has (`async-timeout` of redis) are looked up in the wheels' own metadata and collected too.
"""

from __future__ import annotations

import email.parser
import hashlib
import re
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from flows.adapters.images.commands import run
from flows.domain.errors import ImageFailed

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Of this machine and of its images."""
OLDEST = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
"""The wheel's own; a package may carry others' deeper inside."""
CUDA = ("nvidia-", "cuda-")
"""How the names of packages begin that only a GPU needs."""
PIP_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class TorchSource:
    """Where torch comes from. `script` is `infra/images/torch.sh`, `digests` its list of builds."""

    script: Path
    digests: Path
    index: str = "https://download.pytorch.org/whl/cpu"
    """Package index of the builds for CPUs; empty: pip's own settings alone."""
    fallback: bool = True
    """Whether an image for CPUs may have another build, and CUDA with it, where the index gives none."""


def dependencies_of(
    project: Path, extras: Sequence[str] = (), without: Sequence[str] = (), *, base: bool = True
) -> tuple[str, ...]:
    """The `dependencies` of a `pyproject.toml`: what the model server needs; with `extras`, those too.

    `without` names packages that are left out; without `base` the extras come alone. Raises ImageFailed
    when there is no such extra.
    """
    content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    known = content.get("optional-dependencies", {})
    unknown = sorted(set(extras) - set(known))
    if unknown:
        raise ImageFailed(f"{project} has no extra {unknown[0]!r}; it has {', '.join(sorted(known))}")
    wanted = [*(content["dependencies"] if base else ()), *(one for extra in extras for one in known[extra])]
    return tuple(one for one in wanted if canonicalize_name(Requirement(one).name) not in without)


def collect(
    folder: Path,
    requirements: Sequence[str],
    constraints: Path,
    *,
    device: str,
    torch: TorchSource | None = None,
    progress: Callable[[str], None],
) -> None:
    """Fill `folder` with wheels, `requirements.txt` that pins each, and `pip/` with pip's own wheel.

    A folder that was filled from the same input is left as it is. Without `torch`, and for requirements that
    do not name it, pip's own settings decide alone. Raises ImageFailed, also for an image for CPUs that would
    carry CUDA without need.
    """
    inputs = _digest_of_inputs(requirements, constraints, device, torch)
    stamp = folder / "inputs.sha256"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == inputs:
        return
    progress("image: collecting the Python dependencies as wheels")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "pip").mkdir(parents=True)
    if requirements:
        pinned = partial / "constraints.txt"
        shutil.copyfile(constraints, pinned)
        if torch is not None and "torch" in {
            canonicalize_name(Requirement(one).name) for one in requirements
        }:
            _fetch_torch(partial, device, torch)
            _pin(pinned, partial)
        wanted = list(requirements)
        while wanted:
            _pip(partial, wanted, pinned)
            wanted = missing_for_oldest(partial)
        if device == "cpu":
            _refuse_cuda(partial, torch is None or torch.fallback, progress)
        _pip(partial / "pip", ["pip"], pinned, "--no-deps")
    (partial / "requirements.txt").write_text(lock(partial), encoding="utf-8")
    (partial / stamp.name).write_text(inputs, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def lock(folder: Path) -> str:
    """One line a wheel, in the form that `pip install --require-hashes` takes."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    return "".join(lines)


def missing_for_oldest(folder: Path) -> list[str]:
    """Requirements of the wheels in `folder` that the oldest supported interpreter has and no wheel meets."""
    present = {parse_wheel_filename(wheel.name)[0] for wheel in folder.glob("*.whl")}
    missing: dict[str, str] = {}
    for wheel in sorted(folder.glob("*.whl")):
        for text in _requires(wheel):
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate(dict(OLDEST)):
                continue
            name = canonicalize_name(requirement.name)
            if name not in present:
                missing[name] = f"{requirement.name}{requirement.specifier}"
    return [missing[name] for name in sorted(missing)]


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if METADATA.fullmatch(name)]
        if len(names) != 1:
            raise ImageFailed(f"{wheel.name} is not a wheel: it has {len(names)} METADATA files")
        text = archive.read(names[0]).decode("utf-8")
    return [str(value) for value in email.parser.Parser().parsestr(text).get_all("Requires-Dist", [])]


def _pip(folder: Path, requirements: Sequence[str], constraints: Path, *options: str) -> None:
    command: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", folder]
    command += ["--quiet", "--find-links", folder, "--constraint", constraints, *options, *requirements]
    run(command, what="collecting the Python dependencies of the image", timeout=PIP_TIMEOUT_SECONDS)


def _fetch_torch(folder: Path, device: str, torch: TorchSource) -> None:
    pip: list[str | Path] = [sys.executable, "-m", "pip", "download", "--dest", folder]
    run(
        [torch.script, torch.digests, device, *pip],
        what=f"fetching torch for {'GPUs' if device == 'cuda' else 'CPUs'}",
        timeout=PIP_TIMEOUT_SECONDS,
        environment={
            "MODELSERVE_TORCH_INDEX": torch.index,
            "MODELSERVE_TORCH_FALLBACK": str(torch.fallback).lower(),
        },
    )


def _pin(constraints: Path, folder: Path) -> None:
    """Hold torch to the build that was fetched, to the letter: `==2.13.0` would also mean `2.13.0+cpu`."""
    (wheel,) = folder.glob("torch-*.whl")
    version = parse_wheel_filename(wheel.name)[1]
    lines = [line for line in constraints.read_text(encoding="utf-8").splitlines() if line[:7] != "torch=="]
    constraints.write_text("\n".join([*lines, f"torch==={version}"]) + "\n", encoding="utf-8")


def _refuse_cuda(folder: Path, allowed: bool, progress: Callable[[str], None]) -> None:
    """Gigabytes that no CPU uses, to be scanned, pushed and pulled: only where nothing else is to be had."""
    wheels = {parse_wheel_filename(wheel.name)[:2]: wheel for wheel in folder.glob("*.whl")}
    cuda = sorted(name for name, _ in wheels if name.startswith(CUDA))
    if not cuda:
        return
    size = sum(wheel.stat().st_size for (name, _), wheel in wheels.items() if name in cuda) / 1e6
    what = f"{len(cuda)} packages of CUDA ({cuda[0]}, …; {size:.0f} MB packed)"
    cure = "let MODELSERVE_TORCH_INDEX name an index of torch's builds for CPUs that can be reached"
    if any(name == "torch" and version.local == "cpu" for name, version in wheels):
        raise ImageFailed(f"an image for CPUs would carry {what}, which a dependency brings; leave that out")
    if not allowed:
        raise ImageFailed(f"an image for CPUs would carry {what}: {cure}")
    progress(f"image: no build of torch for CPUs was to be had, so this image carries {what}; {cure}")


def _digest_of_inputs(
    requirements: Sequence[str], constraints: Path, device: str, torch: TorchSource | None
) -> str:
    source = [] if torch is None else [torch.index, str(torch.fallback), torch.digests.read_text("utf-8")]
    text = "\n".join([*sorted(requirements), device, *source, sys.version])
    return hashlib.sha256(text.encode() + constraints.read_bytes()).hexdigest()
