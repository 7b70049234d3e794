"""`modelserve init`: from a trained file alone to a folder that `check` takes at once, with real answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.integration.conftest import TypeIn
from tests.integration.served_models import MODELS as SERVED
from tests.integration.served_models import ROWS, TARGET, network


def written(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spec: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text())
    return spec, [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


ONE_FILE = {
    # name: the file, what else init is told, the inputs that it should find
    "sklearn": ("model.skops", (), [{"name": "features", "type": "number", "shape": [3]}]),
    "pickled": ("model.joblib", ("--trust-pickle",), [{"name": "features", "type": "number", "shape": [3]}]),
    "xgboost": ("model.ubj", (), [{"name": "features", "type": "number", "shape": [3]}]),
    "lightgbm": ("model.txt", (), [{"name": "features", "type": "number", "shape": [3]}]),
    "safetensors": ("model.safetensors", (), [{"name": "input", "type": "number", "shape": [3]}]),
    "torchscript": ("model.pt", (), [{"name": "input", "type": "number", "shape": [3]}]),
    "pt2": ("model.pt2", (), [{"name": "input", "type": "number", "shape": [3]}]),
    "onnx": ("model.onnx", (), [{"name": "x", "type": "number", "shape": [3]}]),
}


@pytest.mark.parametrize("name", ONE_FILE)
def test_a_file_becomes_a_folder_that_check_takes(name: str, tmp_path: Path, type_in: TypeIn) -> None:
    (tmp_path / "trained").mkdir()
    SERVED[name][0](tmp_path / "trained")
    file, options, inputs = ONE_FILE[name]
    code, said = type_in("init", "churn", "--from", f"trained/{file}", *options)
    assert code == 0, said
    spec, samples = written(tmp_path / "churn")
    assert spec["signature"]["inputs"] == inputs
    assert len(samples) == 3
    assert samples[0]["predictions"] != samples[1]["predictions"] or name in (
        "sklearn",
        "lightgbm",
        "xgboost",
    )
    code, said = type_in("check", "churn")
    assert code == 0, said
    assert "answered 3 golden requests as they say" in said


def test_the_answers_are_the_models_own(tmp_path: Path, type_in: TypeIn) -> None:
    import torch

    SERVED["pt2"][0](tmp_path)
    assert type_in("init", "churn", "--from", "model.pt2")[0] == 0
    _, samples = written(tmp_path / "churn")
    with torch.inference_mode():
        for sample in samples:
            [row] = sample["instances"]
            values = row["input"] if isinstance(row, dict) else row
            [found] = sample["predictions"]
            expected = float(network()(torch.tensor([values], dtype=torch.float32))[0, 0])
            assert found == pytest.approx(expected, abs=1e-5)


def test_columns_and_their_categories_are_read_off_a_pipeline(tmp_path: Path, type_in: TypeIn) -> None:
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from skops.io import dump

    frame = pd.DataFrame(ROWS, columns=["radius", "texture", "smoothness"])
    frame["ward"] = np.where(frame.radius > 14, "east", "west")
    table = make_column_transformer((OneHotEncoder(), ["ward"]), (StandardScaler(), ["radius", "texture"]))
    names = np.where(TARGET == 1, "benign", "malignant")
    model = make_pipeline(table, LogisticRegression()).fit(frame[["ward", "radius", "texture"]], names)
    dump(model, tmp_path / "model.skops")
    code, said = type_in("init", "biopsy", "--from", "model.skops")
    assert code == 0, said
    assert "guessed: radius, texture: numbers" in said
    spec, samples = written(tmp_path / "biopsy")
    assert [(one["name"], one["type"]) for one in spec["signature"]["inputs"]] == [
        ("ward", "string"), ("radius", "number"), ("texture", "number"),
    ]  # fmt: skip
    assert [one["name"] for one in spec["signature"]["outputs"]] == ["probability", "label"]
    asked = [sample["instances"][0] for sample in samples]
    assert {row["ward"] for row in asked} == {"east", "west"}
    expected = model.predict_proba(pd.DataFrame(asked))[:, 1]
    found = [sample["predictions"][0]["probability"] for sample in samples]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert type_in("check", "biopsy")[0] == 0


def test_weights_alone_get_a_handler_to_complete_and_then_a_folder(tmp_path: Path, type_in: TypeIn) -> None:
    import torch

    torch.save(network().state_dict(), tmp_path / "weights.pt")
    code, said = type_in("init", "churn", "--from", "weights.pt")
    assert code == 1, said
    assert "complete build()" in said
    assert "then: modelserve init churn --from churn/weights.pt --into churn" in said
    draft = (tmp_path / "churn" / "handler.py").read_text()
    assert "0.weight  (8, 3)  torch.float32" in draft
    assert sorted(path.name for path in (tmp_path / "churn").iterdir()) == ["handler.py", "weights.pt"]

    again = ("init", "churn", "--from", "churn/weights.pt", "--into", "churn")
    code, said = type_in(*again)
    assert code == 1
    assert "complete build() in handler.py" in said

    layers = "Sequential(Linear(3, 8), Tanh(), Linear(8, 1), Sigmoid())"
    (tmp_path / "churn" / "handler.py").write_text(
        f"from torch.nn import Linear, Sequential, Sigmoid, Tanh\n\ndef build():\n    return {layers}\n"
    )
    code, said = type_in(*again)
    assert code == 0, said
    assert type_in("check", "churn")[0] == 0


def test_onnx_tells_types_and_free_sizes_are_guessed_aloud(tmp_path: Path, type_in: TypeIn) -> None:
    import onnx
    from onnx import TensorProto, helper

    double = helper.make_tensor_value_info("signal", TensorProto.DOUBLE, ["batch", "time"])
    token = helper.make_tensor_value_info("kind", TensorProto.INT32, ["batch", 1])
    total = helper.make_tensor_value_info("total", TensorProto.DOUBLE, ["batch", 1])
    same = helper.make_tensor_value_info("same", TensorProto.INT32, ["batch", 1])
    nodes = [
        helper.make_node("ReduceSum", ["signal", "axes"], ["total"], keepdims=1),
        helper.make_node("Identity", ["kind"], ["same"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "sums", [double, token], [total, same], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, tmp_path / "sums.onnx")
    code, said = type_in("init", "sums", "--from", "sums.onnx")
    assert code == 0, said
    assert "guessed: time: the file leaves its size free, 16 is one that the model takes" in said
    spec, _ = written(tmp_path / "sums")
    assert spec["signature"]["inputs"] == [
        {"name": "signal", "type": "number", "shape": [16]},
        {"name": "kind", "type": "integer", "shape": [1]},
    ]
    assert spec["serving"]["datatypes"] == {
        "signal": "FP64",
        "kind": "INT32",
        "total": "FP64",
        "same": "INT32",
    }


def test_more_than_one_argument_of_torchscript_is_asked_for(tmp_path: Path, type_in: TypeIn) -> None:
    import warnings

    import torch

    class Two(torch.nn.Module):
        def forward(self, image: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
            return image.flatten(1).mean(1, keepdim=True) + age

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Two(), (torch.zeros(2, 3, 4), torch.zeros(2, 1))), tmp_path / "m.pt")
    code, said = type_in("init", "two", "--from", "m.pt")
    assert code == 1
    assert "takes image, age" in said
    assert "--input NAME:TYPE:SHAPE" in said
    assert not (tmp_path / "two").exists()
    code, said = type_in(
        "init", "two", "--from", "m.pt", "--input", "image:number:3x4", "--input", "age:number:1"
    )
    assert code == 0, said
    assert type_in("check", "two")[0] == 0


def test_nothing_is_overwritten(tmp_path: Path, type_in: TypeIn) -> None:
    SERVED["onnx"][0](tmp_path)
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn" / "model.yaml").write_text("mine\n")
    code, said = type_in("init", "churn", "--from", "model.onnx")
    assert code == 1
    assert "model.yaml: is there already and is not overwritten" in said
    assert (tmp_path / "churn" / "model.yaml").read_text() == "mine\n"
    (tmp_path / "churn" / "model.yaml").unlink()
    (tmp_path / "churn" / "model.onnx").write_bytes(b"another")
    assert "another file of that name is there" in type_in("init", "churn", "--from", "model.onnx")[1]


def pickled(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps({"a": 1}))


def archive(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as content:
        content.writestr("photo.png", b"1")


UNREADABLE: dict[str, tuple[str, bytes | Callable[[Path], None], str]] = {
    "nothing": ("model.onnx", b"", "is empty; save the model again"),
    "no onnx": ("model.onnx", b"\xff" * 64, "the model does not load with the runtime onnx"),
    "a cut file": ("model.pt", b"PK\x03\x04rest", "a damaged archive"),
    "a pickle": ("model.joblib", pickled, "reading it can run anything"),
    "a pickle of another name": ("model.dat", pickled, "a pickle; call it model.joblib"),
    "Keras": ("model.h5", b"\x89HDF\r\n\x1a\n", "write a SavedModel with model.export"),
    "CatBoost": ("model.cbm", b"CBM1....", "save_model('model.onnx', format='onnx')"),
    "GGUF": ("model.gguf", b"GGUF....", "which no runtime here reads"),
    "Git LFS": ("model.onnx", b"version https://git-lfs.github.com/spec/v1\n", "'git lfs pull'"),
    "data": ("rows.parquet", b"PAR1....", "data, no model"),
    "words": ("notes.txt", b"hello\n", "no model that is known here"),
    "an archive": ("model.zip", archive, "holds no model known here (photo.png)"),
    "xgboost's JSON cut off": ("model.json", b'{"learner": {"a"', "does not load with the runtime xgboost"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_one_line(case: str, tmp_path: Path, type_in: TypeIn) -> None:
    name, content, message = UNREADABLE[case]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        content(tmp_path / name)
    code, said = type_in("init", "churn", "--from", name)
    assert code == 1, said
    assert message in said
    assert said.count("error:") == 1
    assert not (tmp_path / "churn").exists(), "nothing is left half-done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Churn",), "a name is lower-case letters, digits and dashes"),
        (("churn", "--from", "gone.onnx"), "gone.onnx: no such file"),
        (("churn", "--from", "."), "a folder that is no SavedModel, MLflow or Hugging Face model"),
        (("churn", "--input", "x:colour:3"), "--input x:colour:3: expected NAME:TYPE:SHAPE"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, type_in: TypeIn
) -> None:
    SERVED["pt2"][0](tmp_path)
    given = arguments if "--from" in arguments else (*arguments, "--from", "model.pt2")
    code, said = type_in("init", *given)
    assert code == 1, said
    assert message in said


def test_weights_that_lie_beside_an_onnx_file_are_missed(tmp_path: Path, type_in: TypeIn) -> None:
    SERVED["onnx"][0](tmp_path)
    shutil.move(tmp_path / "model.onnx.data", tmp_path / "elsewhere")
    code, said = type_in("init", "churn", "--from", "model.onnx")
    assert code == 1
    assert "its weights lie in model.onnx.data, which is not beside it" in said
