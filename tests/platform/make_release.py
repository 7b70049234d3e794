"""Builds a release for the tests that run real pods: `python -m tests.platform.make_release FOLDER`.

Writes FOLDER/image.tar, to be loaded onto the nodes (`kind load image-archive image.tar`, or
`ctr -n k8s.io images import image.tar`), and FOLDER/release.json, which MODELSERVE_TEST_RELEASE names; prints
that variable for a shell or $GITHUB_ENV. The model is a small one of its own; `--bundle` takes the folder of
a trained one, `<model>-v<version>`. With `--repository HOST/NAME` it pushes, and the release is pinned
by the registry's digest.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from flows.adapters.artifacts import ArtifactStore
from flows.adapters.images import ImageBuilder, push
from flows.domain.release import Release, parse_release_name
from flows.settings import Settings
from flows.wiring import image_builder

MODEL = "doubling"
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


def take_bundle(source: Path, folder: Path) -> Release:
    """A copy of a trained model's folder, sealed as the registry would have it."""
    model, version = parse_release_name(source.name)
    store = ArtifactStore((folder / "artifacts").as_uri())
    uri, sha256 = store.put_bundle(source, model, version)
    store.fetch(uri, sha256, folder / "bundle")
    return Release(model, version, uri, sha256)


def make(
    builder: ImageBuilder, folder: Path, repository: str | None = None, bundle: Path | None = None
) -> Path:
    """Build, then archive or push; returns the path of release.json."""
    release = write_bundle(folder / "bundle") if bundle is None else take_bundle(bundle, folder)
    builder.build(release, folder / "bundle", progress=say)
    if repository:
        image = push(builder.export(release, folder / "layout"), release.name, repository)
    else:
        archive = folder / "image.tar"
        archive.unlink(missing_ok=True)
        layout = builder.layout(release).partition("@")[0]
        source = f"oci:{layout}:{release.name}"
        # Archives carry a tag; a digest is only known to a registry.
        image = f"localhost/modelserve/{release.model}:{release.name}"
        subprocess.run(["skopeo", "copy", "--quiet", source, f"docker-archive:{archive}:{image}"], check=True)
    path = folder / "release.json"
    path.write_text(
        json.dumps(dataclasses.asdict(dataclasses.replace(release, image=image)), indent=2) + "\n"
    )
    return path


def say(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build a release for the tests marked `cluster`.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, help="the folder of a trained model, <model>-v<version>")
    parser.add_argument("--repository", help="push to this repository instead of writing an archive")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = make(image_builder(Settings()), folder, chosen.repository, chosen.bundle)
    print(f"MODELSERVE_TEST_RELEASE={path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
