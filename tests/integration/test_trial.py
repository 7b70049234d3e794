"""`modelserve check`, and what `register` does first: a real server, with the bundle's packages alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = """
name: churn
signature:
  inputs: [{name: months, type: number}]
  outputs: [{name: probability, type: number, minimum: 0, maximum: 1}]
serving: {runtime: {kind: handler}}
"""
HANDLER = """
from scale import factor

def load(folder, device):
    return factor(folder)

def predict(model, rows):
    return [{"probability": row["months"] * model} for row in rows]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "churn"
    folder.mkdir()
    (folder / "model.yaml").write_text(SPEC)
    (folder / "handler.py").write_text(HANDLER)
    (folder / "scale.py").write_text(
        "def factor(folder):\n    return float((folder / 'factor.txt').read_text())\n"
    )
    (folder / "factor.txt").write_text("0.1")
    sample = {"instances": [{"months": 3}], "predictions": [0.3]}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return folder


def check(folder: Path, **variables: str) -> tuple[int, str]:
    """As somebody types it, with no stack running."""
    code = "from flows.terminal.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", str(folder)],
        cwd=folder.parent,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **(variables or own_state(folder))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_folder_that_is_right_is_served_once(folder: Path) -> None:
    code, said = check(folder)
    assert code == 0, said
    assert "bundle: 5 files" in said
    assert "answered 1 golden requests as they say" in said
    assert said.endswith("churn: nothing is wrong")
    assert list((folder.parent / "state" / "staging").iterdir()) == []
    assert not (folder / "manifest.json").exists(), "the folder is left as it is"


def own_state(folder: Path) -> dict[str, str]:
    return {"MODELSERVE_STATE": str(folder.parent / "state"), "HOME": str(folder.parent / "home")}


def test_it_needs_no_stack_and_leaves_none_behind(folder: Path) -> None:
    code, said = check(folder, HOME=str(folder.parent / "home"))
    assert code == 0, said
    assert sorted(path.name for path in folder.parent.iterdir()) == ["churn", "home"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scale.py", "import sklearn\n", "cannot be imported (ModuleNotFoundError: No module named 'sklearn"),
        ("factor.txt", "none", "the model does not load with the runtime handler (ValueError: could"),
        ("factor.txt", "0.2", "churn failed sample 1 of samples.jsonl: predictions[0] is 0.6"),
        ("requirements.txt", "numpy==1.0\n", ":1: numpy==1.0 conflicts with the server's own numpy 2."),
        ("requirements.txt", "git+https://example.org/x\n", "is a path or a URL, which nobody can lock"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    code, said = check(folder)
    assert code == 1, said
    # Lines are wrapped anywhere in a long path.
    assert message.replace(" ", "") in said.replace(" ", "")
    assert "staging" not in said, "the folder has the name that its owner knows"
