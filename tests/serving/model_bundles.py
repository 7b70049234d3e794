"""Small models for the server's tests, each written as a sealed bundle."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from serving.inference.bundle import seal

WIDTH = 4


class Affine(torch.nn.Module):
    """scores = 2·x + 1 over the first three of four features: easy to check by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :3] * self.factor + 1.0


AFFINE_SIGNATURE = {
    "inputs": [{"name": "x", "type": "number", "shape": [WIDTH], "minimum": -1e30, "maximum": 1e30}],
    "outputs": [{"name": "scores", "type": "number", "shape": [3]}],
}


def write_bundle(
    folder: Path,
    *,
    name: str = "affine",
    signature: dict[str, object] | None = None,
    serving: dict[str, object],
    files: dict[str, str] | None = None,
    write: Callable[[Path], None] | None = None,
) -> Path:
    """model.yaml, text files and whatever `write` puts there, sealed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "signature": signature or AFFINE_SIGNATURE, "serving": serving}
    (folder / "model.yaml").write_text(yaml.safe_dump(content))
    for file, text in (files or {}).items():
        (folder / file).write_text(textwrap.dedent(text))
    if write is not None:
        write(folder)
    seal(folder)
    return folder


def affine(folder: Path, *, form: str = "state_dict", **serving: object) -> Path:
    """The affine model in one of PyTorch's formats."""

    def write(target: Path) -> None:
        module = Affine().eval()
        path = target / "model.pt"
        if form == "state_dict":
            torch.save(module.state_dict(), path)
        elif form == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                torch.jit.save(torch.jit.trace(module, torch.zeros(2, WIDTH)), path)
        elif form == "pt2":
            rows = torch.export.Dim("rows", min=1, max=1024)
            program = torch.export.export(module, (torch.zeros(2, WIDTH),), dynamic_shapes=({0: rows},))
            torch.export.save(program, path)

    runtime: dict[str, object] = {"kind": "pytorch", "file": "model.pt"}
    build = f"""
    import torch

    class Affine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            return x[:, :{WIDTH - 1}] * self.factor + 1.0

    def build():
        return Affine()
    """
    return write_bundle(
        folder, serving={"runtime": runtime, **serving}, files={"handler.py": build}, write=write
    )


PEOPLE_SIGNATURE: dict[str, Any] = {
    "inputs": [
        {"name": "age", "type": "integer", "minimum": 0, "maximum": 150},
        {"name": "height", "type": "number", "nullable": True},
        {"name": "name", "type": "string"},
        {"name": "member", "type": "boolean"},
    ],
    "outputs": [
        {"name": "score", "type": "number", "minimum": 0, "maximum": 1},
        {"name": "label", "type": "string"},
    ],
}

PEOPLE_HANDLER = """
import time

def load(folder, device):
    return {"device": device}

def predict(model, rows):
    answers = []
    for row in rows:
        if row["name"] == "poison":
            raise RuntimeError("secret path /etc/passwd")
        if row["name"].startswith("sleep "):
            time.sleep(float(row["name"].split()[1]))
        score = row["age"] / 150
        if row["name"] == "nan":
            score = float("nan")
        if row["name"] == "high":
            score = 2.0
        answer = {"score": score, "label": "member" if row["member"] else "guest"}
        if row["name"] == "forget":
            del answer["label"]
        answers.append(answer)
    if any(row["name"] == "short" for row in rows):
        answers.pop()
    return answers
"""


def people(folder: Path, signature: dict[str, Any] | None = None, **serving: object) -> Path:
    """A handler over scalar columns that misbehaves when a row's name asks for it."""
    return write_bundle(
        folder,
        name="people",
        signature=signature or PEOPLE_SIGNATURE,
        serving={"runtime": {"kind": "handler"}, **serving},
        files={"handler.py": PEOPLE_HANDLER},
    )


def person(name: str = "Ada", **changes: object) -> dict[str, object]:
    return {"age": 30, "height": 1.7, "name": name, "member": True, **changes}
