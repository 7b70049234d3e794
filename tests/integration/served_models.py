"""Folders of models nobody here wrote, each with rows and the answers of the model run directly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.datasets import load_breast_cancer

COLUMNS = ("radius", "texture", "smoothness")
DATA = load_breast_cancer()
ROWS = DATA.data[:, [0, 1, 4]]
TARGET = DATA.target
ASKED = ROWS[::40]


def estimator(folder: Path) -> list[float]:
    from sklearn.ensemble import RandomForestClassifier
    from skops.io import dump

    model = RandomForestClassifier(20, random_state=1).fit(ROWS, TARGET)
    dump(model, folder / "model.skops")
    return [float(value) for value in model.predict_proba(ASKED)[:, 1]]


def pickled(folder: Path) -> list[float]:
    import joblib
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, TARGET)
    joblib.dump(model, folder / "model.joblib")
    return [float(value) for value in model.predict_proba(ASKED)[:, 1]]


def xgboost(folder: Path) -> list[float]:
    import xgboost

    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(ROWS, label=TARGET), 10)
    booster.save_model(folder / "model.ubj")
    return [float(value) for value in booster.predict(xgboost.DMatrix(ASKED))]


def lightgbm(folder: Path) -> list[float]:
    import lightgbm

    options = {"objective": "binary", "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(options, lightgbm.Dataset(ROWS, TARGET), 10)
    booster.save_model(folder / "model.txt")
    return [float(value) for value in booster.predict(ASKED)]


def network() -> Any:
    import torch

    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Sigmoid()
    )


def direct(module: Any) -> list[float]:
    import torch

    with torch.inference_mode():
        return [float(value) for value in module(torch.tensor(ASKED, dtype=torch.float32))[:, 0]]


def safetensors(folder: Path) -> list[float]:
    from safetensors.torch import save_file

    module = network()
    save_file(module.state_dict(), folder / "model.safetensors")
    (folder / "handler.py").write_text(
        "from torch.nn import Linear, Sequential, Sigmoid, Tanh\n\n"
        "def build():\n    return Sequential(Linear(3, 8), Tanh(), Linear(8, 1), Sigmoid())\n"
    )
    return direct(module)


def torchscript(folder: Path) -> list[float]:
    import warnings

    import torch

    module = network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 3)), folder / "model.pt")
    return direct(module)


def pt2(folder: Path) -> list[float]:
    import torch

    module = network().eval()
    rows = torch.export.Dim("rows", min=1, max=1024)
    torch.export.save(
        torch.export.export(module, (torch.zeros(2, 3),), dynamic_shapes=({0: rows},)), folder / "model.pt2"
    )
    return direct(module)


def onnx(folder: Path) -> list[float]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(2).normal(size=(3, 1)).astype(np.float32) / 10
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["probability"])],
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    return [float(value) for value in 1 / (1 + np.exp(-(ASKED.astype(np.float32) @ weights)[:, 0]))]


def own_code(folder: Path) -> list[float]:
    """A handler with a helper and a package of its own choice."""
    (folder / "requirements.txt").write_text("humanize\n")
    (folder / "words.py").write_text(
        "import humanize\n\ndef share(x):\n    return len(humanize.naturalsize(x)) / 100\n"
    )
    (folder / "handler.py").write_text(
        "from words import share\n\ndef load(folder, device):\n    return share\n\n"
        "def predict(model, rows):\n    return [{'probability': model(1e6 * r['radius'])} for r in rows]\n"
    )
    import humanize

    return [len(humanize.naturalsize(row[0] * 1e6)) / 100 for row in ASKED]


MODELS: dict[str, tuple[Callable[[Path], list[float]], dict[str, Any], bool]] = {
    # name: what writes it, its runtime, whether its rows are vectors
    "sklearn": (estimator, {"kind": "sklearn", "file": "model.skops"}, False),
    "pickled": (pickled, {"kind": "sklearn", "file": "model.joblib", "trust_pickle": True}, False),
    "xgboost": (xgboost, {"kind": "xgboost", "file": "model.ubj"}, False),
    "lightgbm": (lightgbm, {"kind": "lightgbm", "file": "model.txt"}, False),
    "safetensors": (safetensors, {"kind": "pytorch", "file": "model.safetensors"}, True),
    "torchscript": (torchscript, {"kind": "pytorch", "file": "model.pt"}, True),
    "pt2": (pt2, {"kind": "pytorch", "file": "model.pt2"}, True),
    "onnx": (onnx, {"kind": "onnx", "file": "model.onnx"}, True),
    "own-code": (own_code, {"kind": "handler"}, False),
}


def write_model(name: str, folder: Path) -> tuple[list[Any], list[float]]:
    """A folder that `register` takes; the rows to ask for, and what the model says itself."""
    write, runtime, vectors = MODELS[name]
    folder.mkdir(parents=True)
    answers = write(folder)
    inputs: list[dict[str, Any]] = [{"name": column, "type": "number"} for column in COLUMNS]
    rows: list[Any] = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in ASKED]
    if vectors:
        inputs = [{"name": "x", "type": "number", "shape": [3]}]
        rows = [{"x": [float(value) for value in row]} for row in ASKED]
    spec = {
        "name": f"made-{name}",
        "signature": {
            "inputs": inputs,
            "outputs": [{"name": "probability", "type": "number", "minimum": 0, "maximum": 1}],
        },
        "serving": {"runtime": runtime},
        "scan": {"mode": "record"},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    sample = {
        "instances": rows[:3],
        "predictions": answers[:3],  # an only output is a plain value
        "tolerance": 1e-5,
    }
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return rows, answers
