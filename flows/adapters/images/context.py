"""Lays out the build contexts: exactly the files that belong into an image, each checked on its way in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath

from flows.domain.errors import ArtifactCorrupt
from flows.domain.release import Release


def stage_package(package: Path, target: Path) -> None:
    """Copy a package without byte code, build recipe, the models beside the server, and what a wheel has
    of the project: an image gets what it needs of that beside the packages."""
    shutil.copytree(
        package,
        target,
        ignore=lambda folder, names: {
            name
            for name in names
            if name in ("__pycache__", "Containerfile")
            or name.endswith(".pyc")
            or (name in ("models", "project") and Path(folder) == package)
        },
    )


def stage_beside(source: Path, target: Path) -> None:
    """Copy a file or a folder of the checkout to its place in the context."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def stage_bundle(release: Release, bundle: Path, target: Path) -> None:
    """Link or copy the files of the bundle's manifest to `target`; anything else in the folder stays out.

    Raises ArtifactCorrupt when the manifest or a file is missing, or differs from its registered digest.
    """
    manifest = bundle / "manifest.json"
    content = _read(release, manifest)
    if hashlib.sha256(content).hexdigest() != release.sha256:
        raise ArtifactCorrupt(
            f"{release.name}: {manifest} is not the registered one (sha256 differs from {release.sha256}); "
            "register the release again from its original bundle"
        )
    target.mkdir(parents=True)
    (target / manifest.name).write_bytes(content)
    for name, digest in json.loads(content)["files"].items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise ArtifactCorrupt(
                f"{release.name}: manifest.json names {name!r}, which is outside the bundle"
            )
        source = bundle / relative
        destination = target / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            with source.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactCorrupt(f"{release.name}: cannot read {source}: {error.strerror}") from error
        if found != digest:
            raise ArtifactCorrupt(
                f"{release.name}: {source} is not the registered file (sha256 {found}, expected {digest})"
            )
        try:
            os.link(source.resolve(), destination)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, destination)


def _read(release: Release, manifest: Path) -> bytes:
    try:
        return manifest.read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(f"{release.name}: cannot read {manifest}: {error.strerror}") from error
