"""The programs that build images. Both read the same Containerfile and leave the same OCI layout.

`Buildah` works without a daemon, in a storage of its own under the cache folder. `Docker` speaks to an
engine that runs already, which keeps the images in its own storage; Skopeo copies them into the layout.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from flows.adapters.images.commands import run
from flows.domain.errors import ImageFailed

BUILD_TIMEOUT_SECONDS = 1800.0
LIMITS = {"nofile": (resource.RLIMIT_NOFILE, 1024), "nproc": (resource.RLIMIT_NPROC, 4096)}
"""Of the programs of a build: which limit, and what is enough for them."""
COPY_TIMEOUT_SECONDS = 900.0
QUICK_TIMEOUT_SECONDS = 60.0
COPY_TO_LAYOUT = ("skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers")


class Engine(Protocol):
    """Builds, keeps and removes images by tag."""

    name: str

    def build(
        self, containerfile: Path, target: str | None, arguments: Mapping[str, str], context: Path, tag: str
    ) -> None:
        """Build one stage of the Containerfile from the files in `context` and tag the result."""

    def pull(self, reference: str, tag: str) -> None:
        """Bring an image from its registry into the engine's storage under a local tag."""

    def exists(self, tag: str) -> bool:
        """Whether the storage holds an image of this tag."""

    def copy(self, tag: str, layout: Path, name: str) -> None:
        """Put the image into the OCI layout folder as `name`; layers that are there are not copied again."""

    def remove(self, tag: str) -> None:
        """Remove the tag and the layers that nobody else uses; nothing happens when there is none."""

    def prune(self) -> None:
        """Remove the build cache of images that exist no more."""

    def container(self, tag: str, runtime: str) -> tuple[list[str], str]:
        """A command that runs containers (`… run` options go after it), and the image's name for it."""


class Buildah:
    """Builds as this user, without a daemon; `podman` runs the very same images."""

    name = "buildah"

    def __init__(self, cache: Path) -> None:
        self._root = cache / "storage"
        self._run = cache / "run"
        self._temporary = cache / "tmp"
        for folder in (self._root, self._run, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self._configuration = cache / "storage.conf"
        if not self._configuration.exists():
            self._choose_driver()

    def build(
        self, containerfile: Path, target: str | None, arguments: Mapping[str, str], context: Path, tag: str
    ) -> None:
        # Stages whose name holds an argument are not followed when unused stages are skipped, and a fixed
        # time makes equal input equal bytes. `--force-rm`: a failed build leaves no half-full container.
        command: list[str | Path] = ["buildah", "build", "--quiet", "--isolation", "chroot", "--layers"]
        command += ["--force-rm", "--pull-never", "--skip-unused-stages=false", "--timestamp", "0"]
        command += ["--file", containerfile, "--tag", tag, *_limits()]
        command += ["--target", target] if target else []
        self._do([*command, *_build_arguments(arguments), context], f"building {tag}", BUILD_TIMEOUT_SECONDS)

    def pull(self, reference: str, tag: str) -> None:
        self._do(
            ["skopeo", "copy", "--quiet", f"docker://{reference}", f"containers-storage:{tag}"],
            f"pulling {reference}",
            COPY_TIMEOUT_SECONDS,
        )

    def exists(self, tag: str) -> bool:
        listed = self._do(["buildah", "images", "--json"], "listing the images", QUICK_TIMEOUT_SECONDS)
        return any(tag in (image.get("names") or ()) for image in json.loads(listed or "[]"))

    def copy(self, tag: str, layout: Path, name: str) -> None:
        # Uncompressed layers keep the digests that the storage has for them: nothing is compressed, and
        # what lies in the layout is not even read again.
        self._do(
            [*COPY_TO_LAYOUT, f"containers-storage:{tag}", f"oci:{layout}:{name}"],
            f"copying {tag} for the scanner",
            COPY_TIMEOUT_SECONDS,
        )

    def remove(self, tag: str) -> None:
        if self.exists(tag):
            self._do(["buildah", "rmi", tag], f"removing {tag}", QUICK_TIMEOUT_SECONDS)

    def prune(self) -> None:
        self._do(["buildah", "rmi", "--prune"], "removing old layers", COPY_TIMEOUT_SECONDS)

    def container(self, tag: str, runtime: str) -> tuple[list[str], str]:
        # The storage as options: whoever runs this command need not set CONTAINERS_STORAGE_CONF.
        storage = tomllib.loads(self._configuration.read_text(encoding="utf-8"))["storage"]
        command = ["podman", "--root", str(self._root), "--runroot", str(self._run), "--runtime", runtime]
        command += ["--storage-driver", str(storage["driver"])]
        for name, value in storage.get("options", {}).get("overlay", {}).items():
            command += ["--storage-opt", f"overlay.{name}={value}"]
        return [*command, "run"], tag

    def _do(self, arguments: Sequence[str | Path], what: str, timeout: float) -> str:
        environment = {
            "CONTAINERS_STORAGE_CONF": str(self._configuration),
            "TMPDIR": str(self._temporary),
        }
        return run(arguments, what=what, timeout=timeout, environment=environment)

    def _choose_driver(self) -> None:
        """Take the quickest storage driver that works here; vfs copies every layer, so it comes last."""
        fuse = shutil.which("fuse-overlayfs")
        for mount_program in ["", fuse]:
            if mount_program is not None and self._works("overlay", mount_program):
                return
        self._write_configuration("vfs", "")

    def _works(self, driver: str, mount_program: str) -> bool:
        self._write_configuration(driver, mount_program)
        try:
            self._do(["buildah", "info"], "probing the storage", QUICK_TIMEOUT_SECONDS)
        except ImageFailed:
            if shutil.which("buildah") is None:
                self._configuration.unlink()
                raise
            return False
        return True

    def _write_configuration(self, driver: str, mount_program: str) -> None:
        lines = ["[storage]", f'driver = "{driver}"']
        lines += [f'graphroot = "{self._root}"', f'runroot = "{self._run}"']
        if driver == "overlay":
            # Without this, a mount stays on the storage and its folder cannot be removed.
            lines += ["[storage.options.overlay]", 'skip_mount_home = "true"']
            lines += [f'mount_program = "{mount_program}"'] if mount_program else []
        self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Docker:
    """Builds through a Docker engine with BuildKit."""

    name = "docker"

    def __init__(self, program: str = "docker") -> None:
        self._program = program

    def build(
        self, containerfile: Path, target: str | None, arguments: Mapping[str, str], context: Path, tag: str
    ) -> None:
        # All that a build needs is in its context.
        command: list[str | Path] = [self._program, "build", "--quiet", "--network", "none"]
        command += ["--file", containerfile, "--tag", tag]
        command += ["--target", target] if target else []
        self._do([*command, *_build_arguments(arguments), context], f"building {tag}", BUILD_TIMEOUT_SECONDS)

    def pull(self, reference: str, tag: str) -> None:
        self._do([self._program, "pull", "--quiet", reference], f"pulling {reference}", COPY_TIMEOUT_SECONDS)
        self._do([self._program, "tag", reference, tag], f"naming {reference}", QUICK_TIMEOUT_SECONDS)

    def exists(self, tag: str) -> bool:
        listed = self._do(
            [self._program, "images", "--format", "{{.Repository}}:{{.Tag}}"],
            "listing the images",
            QUICK_TIMEOUT_SECONDS,
        )
        return tag in listed.splitlines()

    def copy(self, tag: str, layout: Path, name: str) -> None:
        host = os.environ.get("DOCKER_HOST")
        daemon = ["--src-daemon-host", host] if host else []
        self._do(
            [*COPY_TO_LAYOUT, *daemon, f"docker-daemon:{tag}", f"oci:{layout}:{name}"],
            f"copying {tag} for the scanner",
            COPY_TIMEOUT_SECONDS,
        )

    def remove(self, tag: str) -> None:
        if self.exists(tag):
            self._do([self._program, "rmi", tag], f"removing {tag}", QUICK_TIMEOUT_SECONDS)

    def prune(self) -> None:
        """Nothing: the engine's storage is shared with its owner's other work."""

    def container(self, tag: str, runtime: str) -> tuple[list[str], str]:
        return [self._program, "run", "--runtime", runtime], tag

    def _do(self, arguments: Sequence[str | Path], what: str, timeout: float) -> str:
        return run(arguments, what=what, timeout=timeout, environment={"DOCKER_BUILDKIT": "1"})


def _limits() -> list[str]:
    """Limits that may be set anywhere, since they lower what is there. Buildahs of some versions raise them
    above the process's own, of others refuse to raise them to those again, and not everybody may."""
    found = []
    for name, (which, enough) in LIMITS.items():
        hard = resource.getrlimit(which)[1]
        most = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        found += ["--ulimit", f"{name}={most}:{most}"]
    return found


def _build_arguments(arguments: Mapping[str, str]) -> list[str]:
    return [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]


def find_engine(cache: Path) -> Engine:
    """Buildah where it is installed, else a Docker engine that answers; ImageFailed when there is neither."""
    if shutil.which("buildah"):
        return Buildah(cache)
    if shutil.which("docker") is None:
        raise ImageFailed("no program here can build an image; install buildah and skopeo")
    try:
        run(["docker", "version", "--format", "{{.Server.Version}}"], what="docker", timeout=15)
    except ImageFailed as error:
        host = os.environ.get("DOCKER_HOST", "its default socket")
        raise ImageFailed(
            f"docker is installed, but no Docker engine answers on {host}; "
            "start it, or install buildah and skopeo"
        ) from error
    return Docker()
