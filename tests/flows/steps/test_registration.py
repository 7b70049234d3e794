"""Registering with training rows and a holdout: what ends up in the release's reference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.adapters.registry import Registry
from flows.domain.errors import ArtifactCorrupt, DependencyDown, SpecInvalid
from flows.steps.drift_check import read_reference
from flows.steps.registration import register_release
from flows.wiring import ControlPlane
from tests.flows.conftest import Story

SPEC = """
name: churn
signature:
  inputs:
    - {name: months, type: number}
    - {name: email, type: string, personal: hash}
  outputs: [{name: probability, type: number, minimum: 0, maximum: 1}]
serving: {runtime: {kind: handler, file: model.pt}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "churn"
    folder.mkdir()
    (folder / "model.yaml").write_text(SPEC)
    (folder / "handler.py").write_text("def load(folder, device): ...\ndef predict(model, rows): ...\n")
    (folder / "model.pt").write_bytes(b"weights")
    sample = {"instances": [{"months": 3, "email": "a"}], "predictions": [{"probability": 0.5}]}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return folder


def rows(path: Path, seed: int, learned: bool) -> Path:
    random = np.random.default_rng(seed)
    months = random.normal(12, 4, 3000)
    chance = 1 / (1 + np.exp((months - 12) / 4))
    outcome = (random.random(3000) < chance).astype(float)
    said = np.where(outcome == 1, 0.9, 0.1) if learned else chance
    email = [f"person{number}@example.org" for number in range(3000)]
    frame = pd.DataFrame({"months": months, "email": email, "probability": said, "outcome": outcome})
    frame.to_parquet(path)
    return path


def test_the_holdout_says_how_good_the_model_is(plane: ControlPlane, folder: Path, tmp_path: Path) -> None:
    training = rows(tmp_path / "training.parquet", 1, learned=True)
    holdout = rows(tmp_path / "holdout.parquet", 2, learned=False)

    first = register_release(plane, folder, folder / "model.pt", training=training)
    second = register_release(plane, folder, folder / "model.pt", training=training, holdout=holdout)

    by_heart, measured = (read_reference(plane, release).performance for release in (first, second))
    assert by_heart is not None
    assert measured is not None
    assert (by_heart.held_out, by_heart.quality) == (False, 1.0)
    assert measured.held_out
    assert 0.65 < measured.quality < 0.85
    reference = plane.artifacts.text(second.bundle, "reference.json")
    assert "example.org" not in reference, "personal columns are not in the reference"


def test_a_holdout_alone_or_broken_is_refused(plane: ControlPlane, folder: Path, tmp_path: Path) -> None:
    training = rows(tmp_path / "training.parquet", 1, learned=True)
    with pytest.raises(SpecInvalid, match="needs the training rows beside it"):
        register_release(plane, folder, folder / "model.pt", holdout=training)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(ArtifactCorrupt, match="cannot be read as Parquet"):
        register_release(plane, folder, folder / "model.pt", training=training, holdout=broken)
    assert plane.registry.models() == []


def test_a_bundle_that_could_never_be_promoted_is_not_registered(plane: ControlPlane, folder: Path) -> None:
    samples = folder / "samples.jsonl"
    recorded = samples.read_text()
    samples.unlink()
    with pytest.raises(SpecInvalid, match=r"churn/samples\.jsonl: not there; .*write a line"):
        register_release(plane, folder)
    samples.write_text("\n")
    with pytest.raises(SpecInvalid, match="holds no sample"):
        register_release(plane, folder)
    samples.write_text('{"instances": [{"months": "x", "email": "a"}], "status": 422}\n')
    with pytest.raises(SpecInvalid, match="refusals only"):
        register_release(plane, folder)
    assert plane.registry.models() == []
    assert not Path(plane.artifacts.uri.removeprefix("file://")).exists(), "nothing was stored either"
    samples.write_text(recorded)
    assert register_release(plane, folder).version == 1


def test_a_handler_outside_of_the_folder_is_refused(plane: ControlPlane, folder: Path) -> None:
    (folder.parent / "outside.py").write_text((folder / "handler.py").read_text())
    text = (folder / "model.yaml").read_text().replace("file: model.pt", "handler: ../outside.py")
    (folder / "model.yaml").write_text(text)
    with pytest.raises(
        SpecInvalid, match=r"churn/model\.yaml: serving\.runtime\.handler: leaves the model's folder"
    ):
        register_release(plane, folder)


def test_the_same_folder_again_is_the_same_release(plane: ControlPlane, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "labels.txt").write_text("no\nyes\n")
    lines: list[str] = []
    first = register_release(plane, folder, say=lines.append)
    assert register_release(plane, folder, version=1) == first
    assert plane.artifacts.text(first.bundle, "data/labels.txt") == "no\nyes\n"
    assert lines[0].startswith("bundle: 5 files, ")
    assert list((plane.settings.state / "staging").iterdir()) == []


def test_a_reference_of_the_folder_is_not_written_to(plane: ControlPlane, folder: Path) -> None:
    training = rows(folder / "training.parquet", 1, learned=True)
    (folder / "reference.json").write_text("mine")
    lines: list[str] = []
    release = register_release(plane, folder, training=training, say=lines.append)
    assert (folder / "reference.json").read_text() == "mine"
    assert plane.artifacts.text(release.bundle, "reference.json") != "mine"
    assert "training.parquet (rows)" in lines[1]


def test_a_registry_without_its_tables_says_so(plane: ControlPlane, folder: Path, postgres_url: str) -> None:
    empty_registry = Registry(postgres_url)
    with pytest.raises(DependencyDown, match="has no tables yet; 'modelserve up' makes them"):
        register_release(replace(plane, registry=empty_registry), folder)


def test_a_signature_that_takes_less_than_the_stables_is_warned_of(
    plane: ControlPlane, story: Story, folder: Path
) -> None:
    text = SPEC.replace("churn", "flights")
    lines: list[str] = []
    (folder / "model.yaml").write_text(text)
    register_release(plane, folder, say=lines.append)
    story.promoted(1)
    register_release(plane, folder, say=lines.append)
    assert not any("narrower" in line for line in lines)
    (folder / "model.yaml").write_text(
        text.replace("type: number}\n", "type: integer}\n    - {name: age, type: number}\n", 1)
    )
    sample = json.loads((folder / "samples.jsonl").read_text())
    sample["instances"][0]["age"] = 30
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    release = register_release(plane, folder, say=lines.append)
    assert release.version == 3
    assert [line for line in lines if "narrower" in line] == [
        "warning: narrower than flights-v1: input age is new and required: rows without it are refused",
        "warning: narrower than flights-v1: input months: number has become integer",
    ]


def test_hashes_without_a_key_are_refused_before_anything_is_built(plane: ControlPlane, folder: Path) -> None:
    """The server would not start, after the image was built and scanned."""
    settings = plane.settings.model_copy(update={"personal_hashes": False})
    with pytest.raises(SpecInvalid, match=r"hash of email needs a key.*SERVING_PERSONAL_KEY"):
        register_release(replace(plane, settings=settings), folder, folder / "model.pt")
