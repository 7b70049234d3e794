"""`train`: a model's own training anew, and a candidate that has to earn its traffic like any other.

Drift starts it when the policy says `retrain`. The command is the model's (`drift.trainer`); what it leaves
in its output folder is registered, and the promotion that follows passes every gate or is turned down. A
training that needs more than this process (accelerators, another image) is a Prefect deployment of its own,
named in `drift.training`; its flow may end with `candidate`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from prefect import flow

from flows.domain.errors import ArtifactCorrupt, ModelServeError, SpecInvalid
from flows.domain.promotion import Standing
from flows.domain.spec import ModelSpec, parse_spec
from flows.steps.registration import model_file, read_spec, register_release
from flows.steps.starting import Started, start_promotion
from flows.wiring import ControlPlane, control_plane

OUTPUT = "{output}"
LAST_LINES = 5


class TrainingFailed(ModelServeError):
    """The model's training command did not end well; its last lines are in the message."""


@flow(name="train", flow_run_name="train {model}", timeout_seconds=6 * 3600)
def train(model: str, reason: str = "by hand") -> str:
    """Train a model anew, register what comes out, and start its promotion."""
    plane = control_plane()
    spec = _newest_spec(plane, plane.registry.standing(model))
    if not spec.drift.trainer:
        raise SpecInvalid(f"{model} has no drift.trainer: the command that trains it, with {OUTPUT} in it")
    with tempfile.TemporaryDirectory(prefix="modelserve-training-") as name:
        _run(spec.drift.trainer, Path(name))
        started = candidate(plane, model, Path(name))
    return f"{model} v{started.version} was trained ({reason}); its promotion: {started.url}"


def candidate(plane: ControlPlane, model: str, folder: Path) -> Started:
    """Register what a training left in `folder` as the model's next release and start its promotion.

    `folder`: model.yaml and the trained file that it names (`serving.runtime.file`); perhaps handler.py,
    samples.jsonl, training.parquet (the reference of later drift checks) and holdout.parquet.
    Raises SpecInvalid or ArtifactCorrupt when that is no release, PromotionRunning when another one is open.
    """
    spec, _ = read_spec(folder)
    if spec.name != model:
        raise SpecInvalid(
            f"the training of {model!r} made a release of {spec.name!r}; nothing was registered"
        )
    if model_file(spec) is None:
        raise ArtifactCorrupt("model.yaml names no trained file (serving.runtime.file)")
    training, holdout = (_there(folder / f"{name}.parquet") for name in ("training", "holdout"))
    release = register_release(plane, folder, (), None, training, holdout)
    return start_promotion(plane, model, release.version)


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _newest_spec(plane: ControlPlane, standing: Standing) -> ModelSpec:
    release = standing.stable or standing.canary or plane.registry.releases(standing.model, last=1)[0]
    return parse_spec(plane.registry.spec(standing.model, release.version), f"{release.name}/model.yaml")


def _run(trainer: tuple[str, ...], output: Path) -> None:
    command = [part.replace(OUTPUT, str(output)) for part in trainer]
    if command[0] == "python":
        command[0] = sys.executable
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise TrainingFailed(f"{command[0]} cannot be run ({error.strerror}); see drift.trainer") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-LAST_LINES:]
        raise TrainingFailed(f"the training ended with {done.returncode}: {'; '.join(lines)}"[:1000])
