"""Builds a small release for the tests that run real pods: `python -m tests.platform.make_release FOLDER`.

Writes FOLDER/image.tar, to be loaded onto the nodes (`kind load image-archive image.tar`, or
`ctr -n k8s.io images import image.tar`), and FOLDER/release.json, which MODELSERVE_TEST_RELEASE names. With
`--repository HOST/NAME` it pushes instead, and the release is pinned by the registry's digest.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path

from flows.adapters.images import ImageBuilder, push
from flows.domain.release import Release
from flows.settings import Settings
from flows.wiring import image_builder

MODEL = "doubling"
NAME = f"localhost/modelserve/{MODEL}:v1"
FILES = {
    "model.yaml": """\
name: doubling
description: Doubles a number; for tests of the platform.
signature:
  inputs: [{name: x, type: number}]
  outputs: [{name: y, type: number}]
serving:
  runtime: {kind: handler}
""",
    "handler.py": '''\
"""Doubles a number."""

from __future__ import annotations

import pathlib


def load(folder: pathlib.Path, device: str) -> object:
    return 2.0


def predict(model: object, rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{"y": float(str(row["x"])) * float(str(model))} for row in rows]
''',
    "samples.jsonl": '{"instances": [1.5], "predictions": [3.0], "tolerance": 1e-6}\n',
}


def write_bundle(folder: Path) -> Release:
    """A bundle of a model that needs no framework."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}
    manifest = json.dumps({"files": digests}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return Release(MODEL, 1, folder.as_uri(), hashlib.sha256(manifest).hexdigest())


def make(builder: ImageBuilder, folder: Path, repository: str | None = None) -> Path:
    """Build, then archive or push; returns the path of release.json."""
    release = write_bundle(folder / "bundle")
    builder.build(release, folder / "bundle", progress=print)
    if repository:
        image = push(builder.export(release, folder / "layout"), release.name, repository)
    else:
        archive = folder / "image.tar"
        archive.unlink(missing_ok=True)
        layout = builder.layout(release).partition("@")[0]
        source = f"oci:{layout}:{release.name}"
        subprocess.run(["skopeo", "copy", "--quiet", source, f"docker-archive:{archive}:{NAME}"], check=True)
        image = NAME
    path = folder / "release.json"
    path.write_text(
        json.dumps(dataclasses.asdict(dataclasses.replace(release, image=image)), indent=2) + "\n"
    )
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Build a release for the tests marked `cluster`.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repository", help="push to this repository instead of writing an archive")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = make(image_builder(Settings()), folder, chosen.repository)
    print(f"export MODELSERVE_TEST_RELEASE={path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
