"""Brings a model's artifact to the runner: `python .github/tools/fetch_artifact.py MODEL FOLDER`.

`serving/models/<model>/release.yaml` says what a release is made of:

    version: 3
    artifact: s3://training/fraud/2026-11-20/model.pt   # any fsspec URI
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    training: s3://training/fraud/2026-11-20/rows.parquet   # optional: the reference of drift checks

The artifact is checked against its digest before anything reads it. Prints lines for $GITHUB_OUTPUT.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path, PurePosixPath

import fsspec
import yaml

BLOCK = 1 << 20


def fetch(uri: str, folder: Path) -> tuple[Path, str]:
    """Copy one file into `folder`; return where it is and its sha256."""
    target = folder / PurePosixPath(uri).name
    digest = hashlib.sha256()
    with fsspec.open(uri, "rb") as source, target.open("wb") as copy:
        while block := source.read(BLOCK):
            digest.update(block)
            copy.write(block)
    return target, digest.hexdigest()


def fetch_release(model: str, folder: Path, root: Path = Path("serving/models")) -> dict[str, str]:
    """Fetch what `release.yaml` names; the keys are the outputs of the workflow's step."""
    file = root / model / "release.yaml"
    if not file.is_file():
        raise SystemExit(f"{file}: not there; a model is released by this file")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    missing = {"version", "artifact", "sha256"} - content.keys()
    if missing:
        raise SystemExit(f"{file}: needs {', '.join(sorted(missing))}")
    folder.mkdir(parents=True, exist_ok=True)
    artifact, digest = fetch(content["artifact"], folder)
    if digest != content["sha256"]:
        raise SystemExit(f"{file}: {content['artifact']} has sha256 {digest}, expected {content['sha256']}")
    outputs = {"artifact": str(artifact), "version": str(content["version"]), "training": ""}
    if content.get("training"):
        outputs["training"] = str(fetch(content["training"], folder)[0])
    return outputs


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: fetch_artifact.py MODEL FOLDER")
    for name, value in fetch_release(sys.argv[1], Path(sys.argv[2])).items():
        print(f"{name}={value}")
