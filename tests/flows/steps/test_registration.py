"""Registering with training rows and a holdout: what ends up in the release's reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.domain.errors import ArtifactCorrupt, SpecInvalid
from flows.steps.drift_check import read_reference
from flows.steps.registration import register_release
from flows.wiring import ControlPlane

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
