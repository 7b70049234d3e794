"""Builds one real release and loads it into a kind cluster: `release_for_kind.py CLUSTER BUNDLE FOLDER`.

BUNDLE is the folder of a trained model, named `<model>-v<version>`. Writes FOLDER/release.json, which the
tests marked `cluster` read (MODELSERVE_TEST_RELEASE), and prints its path for $GITHUB_ENV.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from flows.adapters.artifacts import ArtifactStore
from flows.domain.release import Release, parse_release_name
from flows.settings import Settings
from flows.wiring import image_builder


def load(cluster: str, bundle: Path, folder: Path) -> Path:
    """Return the file that describes the loaded release."""
    folder.mkdir(parents=True, exist_ok=True)
    model, version = parse_release_name(bundle.name)
    store = ArtifactStore((folder / "artifacts").resolve().as_uri())
    uri, sha256 = store.put_bundle(bundle, model, version)
    release = Release(model, version, uri, sha256)
    checked = store.fetch(uri, sha256, folder / "bundle")
    builder = image_builder(Settings())
    builder.build(release, checked, progress=lambda line: print(line, file=sys.stderr))
    layout, _, _ = builder.layout(release).rpartition("@")
    image = f"docker.io/modelserve/releases:{release.name}"
    archive = folder / "image.tar"
    # kind takes an archive with a tag; a digest is only known to a registry.
    for command in (
        [
            "skopeo",
            "copy",
            "--insecure-policy",
            f"oci:{layout}:{release.name}",
            f"docker-archive:{archive}:{image}",
        ],
        ["kind", "load", "image-archive", str(archive), "--name", cluster],
    ):
        subprocess.run(command, check=True, stdout=sys.stderr)
    written = folder / "release.json"
    fields = dataclasses.asdict(dataclasses.replace(release, image=image))
    written.write_text(json.dumps({name: fields[name] for name in ("model", "version", "sha256", "image")}))
    return written


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: release_for_kind.py CLUSTER BUNDLE FOLDER")
    print(f"MODELSERVE_TEST_RELEASE={load(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])).resolve()}")
