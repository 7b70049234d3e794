"""`register`: a model's folder and a trained file become an immutable release."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.domain.errors import ArtifactCorrupt, SpecInvalid
from flows.domain.release import Release
from flows.domain.spec import ModelSpec, parse_spec
from flows.wiring import ControlPlane

if TYPE_CHECKING:
    import pandas

BESIDE_THE_MODEL = ("handler.py", "samples.jsonl")
"""Files of a model's folder that belong to the bundle, when they are there."""


def register_release(
    plane: ControlPlane,
    folder: Path,
    artifact: Path,
    version: int | None = None,
    training: Path | None = None,
    holdout: Path | None = None,
) -> Release:
    """Check a model's folder, put its bundle into the artifact store, add the release to the registry.

    `folder` holds `model.yaml`, `samples.jsonl` and perhaps `handler.py`; `artifact` is the trained file;
    `training` the rows it was trained on (Parquet), from which the reference of later drift checks is made;
    `holdout` rows that it has not learned, with its predictions and their outcomes: how good it is, and what
    its answers look like. It may be the same file, when the predictions in it are out of fold.
    Raises SpecInvalid (file, key, what is allowed), ArtifactCorrupt, ReleaseExists. The same content under
    the same version is the same release.
    """
    spec, text = check_folder(folder)
    if holdout is not None and training is None:
        raise SpecInvalid("a holdout needs the training rows beside it; give both, or neither")
    if not artifact.is_file():
        raise ArtifactCorrupt(f"{artifact}: no such file; give the trained model's file")
    chosen = version or _next_version(plane, spec.name)
    with tempfile.TemporaryDirectory(prefix="modelserve-bundle-") as name:
        bundle = Path(name)
        shutil.copyfile(folder / "model.yaml", bundle / "model.yaml")
        shutil.copyfile(artifact, bundle / _model_file(spec, artifact))
        for beside in BESIDE_THE_MODEL:
            source = _first(artifact.parent / beside, folder / beside)
            if source is not None:
                shutil.copyfile(source, bundle / beside)
        if training is not None:
            _write_reference(training, holdout, spec, bundle / "reference.json")
        uri, sha256 = plane.artifacts.put_bundle(bundle, spec.name, chosen)
    return plane.registry.register(Release(spec.name, chosen, uri, sha256), text)


def check_folder(folder: Path) -> tuple[ModelSpec, str]:
    """The folder's spec and its text, checked by the flows and by the server. Raises SpecInvalid."""
    path = folder / "model.yaml"
    try:
        text = path.read_text()
    except OSError as error:
        raise SpecInvalid(f"{path}: {error.strerror}; a model's folder needs a model.yaml") from error
    spec = parse_spec(text, str(path))
    # The server checks its own section, in its own process: the two packages never import each other.
    done = subprocess.run(
        [sys.executable, "-m", "serving", "check", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        problems = (done.stdout.strip() or done.stderr.strip()).splitlines()
        raise SpecInvalid("; ".join(problems[-5:]))
    return spec, text


def _model_file(spec: ModelSpec, artifact: Path) -> str:
    runtime = spec.serving.get("runtime")
    named = runtime.get("file") if isinstance(runtime, dict) else None
    return str(named or artifact.name)


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _next_version(plane: ControlPlane, model: str) -> int:
    if model not in plane.registry.models():
        return 1
    return 1 + max((release.version for release in plane.registry.standing(model).releases), default=0)


def _write_reference(training: Path, holdout: Path | None, spec: ModelSpec, target: Path) -> None:
    from flows.domain.drift.profile import make_profile

    rows = _rows(training)
    unlearned = None if holdout is None else _rows(holdout)
    profile = make_profile(rows, spec.signature, spec.drift, model=spec.name, holdout=unlearned)
    target.write_text(profile.to_json())


def _rows(path: Path) -> pandas.DataFrame:
    """ArtifactCorrupt when it cannot be read as Parquet."""
    import pandas
    import pyarrow

    try:
        return pandas.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactCorrupt(f"{path} cannot be read as Parquet ({reason}); write it again") from error
