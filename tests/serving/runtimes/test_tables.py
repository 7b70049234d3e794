"""scikit-learn, XGBoost, LightGBM and safetensors without code: the answers of the model run directly."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from serving.errors import SpecProblem, StartupError
from serving.inference.model import LoadedModel, load_model
from serving.settings import Settings
from tests.serving.model_bundles import write_bundle

RANDOM = np.random.default_rng(7)
ROWS = pd.DataFrame(
    {
        "age": RANDOM.normal(40, 10, 400),
        "calls": RANDOM.normal(5, 2, 400),
        "plan": RANDOM.choice(["a", "b"], 400),
    }
)
NUMBERS = ROWS[["age", "calls"]]
LATE = (ROWS.age + 3 * ROWS.calls + 9 * (ROWS.plan == "b") > 58).astype(int)


def column(name: str, kind: str = "number", **more: object) -> dict[str, object]:
    return {"name": name, "type": kind, **more}


def bundle(
    folder: Path, kind: str, file: str, outputs: list[Any], inputs: list[Any] | None = None, **more: Any
) -> Path:
    inputs = [column("calls"), column("age")] if inputs is None else inputs
    return write_bundle(
        folder,
        signature={"inputs": inputs, "outputs": outputs},
        serving={"runtime": {"kind": kind, "file": file, **more.pop("runtime", {})}, **more},
    )


def served(folder: Path) -> LoadedModel:
    return load_model(Settings(bundle=str(folder)))


def answers(loaded: LoadedModel, rows: Any) -> list[Any]:
    instances = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    payload = loaded.codec.decode(orjson.dumps({"instances": instances}))
    (result,) = loaded.engine.infer([payload])
    found: list[Any] = orjson.loads(loaded.codec.encode(result))["predictions"]
    return found


def test_a_pipeline_over_mixed_columns_in_another_order(tmp_path: Path) -> None:
    from skops.io import dump

    columns = make_column_transformer((OneHotEncoder(), ["plan"]), (StandardScaler(), ["age", "calls"]))
    model = make_pipeline(columns, LogisticRegression()).fit(ROWS, np.where(LATE == 1, "late", "on time"))
    dump(model, tmp_path / "model.skops")
    outputs = [
        column("label", "string"),
        column("probabilities", shape=[2]),
        column("probability"),
        column("score"),
    ]
    inputs = [column("plan", "string"), column("calls"), column("age")]
    # A made-up plan is none that the encoder has seen: the recorded row is what the server warms up with.
    sample = {"instances": ROWS[:1].to_dict("records"), "predictions": [{}]}
    (tmp_path / "samples.jsonl").write_bytes(orjson.dumps(sample))
    found = answers(served(bundle(tmp_path, "sklearn", "model.skops", outputs, inputs)), ROWS[:50])
    assert [row["label"] for row in found] == model.predict(ROWS[:50]).tolist()
    np.testing.assert_array_equal([row["probabilities"] for row in found], model.predict_proba(ROWS[:50]))
    np.testing.assert_array_equal([row["probability"] for row in found], model.predict_proba(ROWS[:50])[:, 1])
    np.testing.assert_array_equal([row["score"] for row in found], model.decision_function(ROWS[:50]))


def test_a_matrix_of_numbers_without_names(tmp_path: Path) -> None:
    model = LinearRegression().fit(NUMBERS.to_numpy(), ROWS.age * 2)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    trusted = {"trust_pickle": True}
    inputs = [column("x", shape=[2])]
    shaped = served(bundle(tmp_path, "sklearn", "model.pkl", [column("y")], inputs, runtime=trusted))
    rows = NUMBERS.to_numpy()[:9]
    direct = model.predict(rows)
    # A model with one input and one output speaks plain values.
    np.testing.assert_allclose(answers(shaped, rows.tolist()), direct, rtol=1e-12)
    inputs = [column("age"), column("calls")]
    plain = served(bundle(tmp_path, "sklearn", "model.pkl", [column("y")], inputs, runtime=trusted))
    np.testing.assert_allclose(answers(plain, NUMBERS[:9]), direct, rtol=1e-12)


def test_a_pickle_needs_trust_and_its_own_version(tmp_path: Path) -> None:
    import joblib

    model = LinearRegression().fit(NUMBERS, ROWS.age)
    joblib.dump(model, tmp_path / "model.joblib")
    outputs = [column("y")]
    with pytest.raises(StartupError, match=r"a pickle can run anything; .* trust_pickle: true"):
        served(bundle(tmp_path, "sklearn", "model.joblib", outputs))
    trusted = {"trust_pickle": True}
    found = answers(
        served(bundle(tmp_path, "sklearn", "model.joblib", outputs, runtime=trusted)), NUMBERS[:5]
    )
    np.testing.assert_array_equal(found, model.predict(NUMBERS[:5]))
    state = model.__getstate__()
    model.__class__.__getstate__, before = (
        lambda _self: {**state, "_sklearn_version": "1.2.0"},
        LinearRegression.__getstate__,
    )
    try:
        joblib.dump(model, tmp_path / "model.joblib")
    finally:
        LinearRegression.__getstate__ = before
    with pytest.raises(StartupError, match=r"put scikit-learn==1\.2\.0 into requirements\.txt"):
        served(bundle(tmp_path, "sklearn", "model.joblib", outputs, runtime=trusted))


class Own(LinearRegression):  # type: ignore[misc]
    """A class that skops has never seen."""


def test_what_skops_does_not_know_needs_trust(tmp_path: Path) -> None:
    from skops.io import dump

    dump(Own().fit(NUMBERS, ROWS.age), tmp_path / "model.skops")
    with pytest.raises(StartupError, match=r"test_tables\.Own.*which skops does not know"):
        served(bundle(tmp_path, "sklearn", "model.skops", [column("y")]))


@pytest.mark.parametrize(
    ("outputs", "inputs", "message"),
    [
        (
            [column("y")],
            [column("age"), column("visits")],
            r"trained on other columns \(missing here: \['calls'\]",
        ),
        ([column("probability")], None, "LinearRegression has no predict_proba"),
        ([column("y")], [column("x", shape=[3])], "has 3 values, the model takes 2 features"),
        ([column("y")], [column("x", shape=[2]), column("age")], "not both"),
    ],
)
def test_a_signature_that_does_not_fit_is_explained(
    tmp_path: Path, outputs: list[Any], inputs: list[Any] | None, message: str
) -> None:
    from skops.io import dump

    dump(LinearRegression().fit(NUMBERS, ROWS.age), tmp_path / "model.skops")
    with pytest.raises(StartupError, match=message):
        served(bundle(tmp_path, "sklearn", "model.skops", outputs, inputs))


def test_stacking_is_not_for_tables(tmp_path: Path) -> None:
    with pytest.raises(SpecProblem, match="sklearn takes columns as they are"):
        served(bundle(tmp_path, "sklearn", "m.skops", [column("y")], runtime={"inputs": "stack"}))


@pytest.mark.parametrize("file", ["model.json", "model.ubj"])
def test_xgboost(tmp_path: Path, file: str) -> None:
    import xgboost

    holes = NUMBERS.mask(RANDOM.random(NUMBERS.shape) < 0.2)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(holes, label=LATE), 20)
    booster.save_model(tmp_path / file)
    inputs = [column("calls", nullable=True), column("age", nullable=True)]
    loaded = served(bundle(tmp_path, "xgboost", file, [column("probability", minimum=0, maximum=1)], inputs))
    rows = holes[:40]
    instances = rows.astype(object).where(rows.notna(), None)
    np.testing.assert_allclose(answers(loaded, instances), booster.predict(xgboost.DMatrix(rows)), rtol=1e-6)


def test_lightgbm_and_its_classes(tmp_path: Path) -> None:
    import lightgbm

    classes = (LATE + (ROWS.plan == "b")).to_numpy()
    options = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(options, lightgbm.Dataset(NUMBERS, classes), 10)
    booster.save_model(tmp_path / "model.txt")
    direct = booster.predict(NUMBERS[:20])
    shaped = served(bundle(tmp_path, "lightgbm", "model.txt", [column("classes", shape=[3])]))
    np.testing.assert_array_equal(answers(shaped, NUMBERS[:20]), direct)
    three = served(bundle(tmp_path, "lightgbm", "model.txt", [column("a"), column("b"), column("c")]))
    np.testing.assert_array_equal([list(row.values()) for row in answers(three, NUMBERS[:20])], direct)
    with pytest.raises(StartupError, match="takes numbers only"):
        served(
            bundle(
                tmp_path, "lightgbm", "model.txt", [column("y")], [column("age", "string"), column("calls")]
            )
        )


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    network = torch.nn.Linear(2, 3).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "handler.py").write_text("import torch\ndef build():\n    return torch.nn.Linear(2, 3)\n")
    inputs, outputs = [column("x", shape=[2])], [column("y", shape=[3])]
    loaded = served(bundle(tmp_path, "pytorch", "model.safetensors", outputs, inputs))
    rows = [[1.0, 2.0], [0.5, -1.0]]
    with torch.inference_mode():
        direct = network(torch.tensor(rows)).numpy()
    np.testing.assert_allclose(answers(loaded, rows), direct, rtol=1e-6)


def test_onnx_with_its_weights_beside_it(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = RANDOM.normal(size=(2, 300)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 300])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(
        model,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    assert (tmp_path / "model.onnx.data").is_file()
    inputs, outputs = [column("x", shape=[2])], [column("y", shape=[300])]
    loaded = served(bundle(tmp_path, "onnx", "model.onnx", outputs, inputs))
    np.testing.assert_allclose(answers(loaded, [[1.0, 2.0]]), [np.float32([1, 2]) @ weights], rtol=1e-5)
