"""Environments for servers that run as processes: what the image has, and nothing else of this machine.

An environment is a virtual one with the wheels of a lock in it; the server's own packages are linked from
where they are installed already, so that it takes a second and no space.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from importlib.metadata import Distribution
from pathlib import Path

from flows.domain.errors import PackagesRefused
from flows.places import PACKAGES, project

INSTALL_SECONDS = 1800.0
IN_A_CHECKOUT = project() == PACKAGES
"""Servers run in the project's folder, and there they find the package `serving`; else it is linked too."""


def environment(root: Path, own: Mapping[str, Distribution], digest: str, wheels: Path) -> str:
    """The path of the interpreter of the environment `digest`, which is made when it is not there.

    Raises PackagesRefused when a wheel cannot be installed.
    """
    root.mkdir(parents=True, exist_ok=True)
    server_package = [] if IN_A_CHECKOUT else [str(PACKAGES)]
    versions = sorted(f"{name}=={one.version}" for name, one in own.items())
    stamp = "\n".join([sys.executable, *versions, *server_package])
    server = root / f"server-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    folder = root / f"{server.name.removeprefix('server-')}-{digest}"
    with (root / ".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not server.is_dir():
            _whole(server, lambda partial: _link(partial, own))
        if not folder.is_dir():
            _whole(folder, lambda partial: _make(partial, server, wheels))
    return str(folder / "bin" / "python")


def _whole(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder that appears complete or not at all."""
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        make(partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _link(folder: Path, own: Mapping[str, Distribution]) -> None:
    if not IN_A_CHECKOUT:
        (folder / "serving").symlink_to(PACKAGES / "serving")
    for one in own.values():
        tops = {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(str(one.locate_file(top))).resolve())


def _make(folder: Path, server: Path, wheels: Path) -> None:
    venv.create(folder, symlinks=True, with_pip=False)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "server.pth").write_text(f"{server}\n")
    if not (wheels / "requirements.txt").read_text().strip():
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--require-hashes",
    ]
    command += ["--disable-pip-version-check", "--no-warn-script-location", "--root-user-action=ignore"]
    command += ["--find-links", str(wheels), "--target", str(packages)]
    done = subprocess.run(
        [*command, "--requirement", str(wheels / "requirements.txt")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise PackagesRefused(f"the model's packages cannot be installed: {lines[0][:400]}")
