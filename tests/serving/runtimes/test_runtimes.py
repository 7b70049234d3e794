"""Every runtime over the same small model, and what must not be loaded."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.errors import StartupError
from serving.inference.bundle import seal
from serving.inference.model import load_model
from serving.inference.rows import TensorPayload, TensorResult
from serving.runtimes.devices import choose_device, cpu_quota
from serving.runtimes.layout import lay_out
from serving.runtimes.pytorch import detect_format
from serving.settings import Settings
from tests.serving.model_bundles import WIDTH, Affine, affine, write_bundle
from tests.serving.server_runs import threaded


def load(bundle: Path) -> Any:
    return load_model(Settings(bundle=str(bundle)))


def run(bundle: Path, rows: list[list[float]]) -> np.ndarray[Any, Any]:
    loaded = load(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [result] = loaded.engine.infer([TensorPayload(len(rows), [rows], 16 * len(rows))])
    assert isinstance(result, TensorResult)
    return result.columns[0]


def onnx_affine(folder: Path, *, input_name: str = "x", output_name: str = "scores") -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def write(target: Path) -> None:
        graph = helper.make_graph(
            [
                helper.make_node("Slice", [input_name, "start", "stop", "axis"], ["three"]),
                helper.make_node("Mul", ["three", "two"], ["doubled"]),
                helper.make_node("Add", ["doubled", "one"], [output_name]),
            ],
            "affine",
            [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["rows", WIDTH])],
            [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["rows", 3])],
            [
                numpy_helper.from_array(np.array([0]), "start"),
                numpy_helper.from_array(np.array([3]), "stop"),
                numpy_helper.from_array(np.array([1]), "axis"),
                numpy_helper.from_array(np.array(2, dtype=np.float32), "two"),
                numpy_helper.from_array(np.array(1, dtype=np.float32), "one"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(target / "model.onnx"))

    return write_bundle(folder, serving={"runtime": {"kind": "onnx", "file": "model.onnx"}}, write=write)


@pytest.mark.parametrize("form", ["state_dict", "torchscript", "pt2", "onnx", "onnx-other-names"])
def test_formats_give_the_same_answer(tmp_path: Path, form: str) -> None:
    if form == "onnx":
        bundle = onnx_affine(tmp_path)
    elif form == "onnx-other-names":
        bundle = onnx_affine(tmp_path, input_name="data", output_name="result")
    else:
        bundle = affine(tmp_path, form=form)
        assert detect_format(bundle / "model.pt") == form
    np.testing.assert_allclose(run(bundle, [[1, 2, 3, 4], [0, 0, 0, 0]]), [[3, 5, 7], [1, 1, 1]])


class Bomb:
    """Runs code while it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickled_state_dict_runs_nothing(tmp_path: Path) -> None:
    bundle = affine(tmp_path / "b")
    torch.save({"factor": Bomb(tmp_path / "exploded")}, bundle / "model.pt")
    seal(bundle)
    with pytest.raises(StartupError, match="weights_only"):
        load(bundle)
    (bundle / "model.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    seal(bundle)
    with pytest.raises(StartupError):
        load(bundle)
    assert not (tmp_path / "exploded").exists()


def test_an_exported_program_with_pickled_constants_runs_nothing(tmp_path: Path) -> None:
    """torch.export's reader falls back to pickle when weights do not load without it."""
    import io
    import zipfile

    bundle = affine(tmp_path / "b", form="pt2")
    evil = io.BytesIO()
    torch.save(Bomb(tmp_path / "exploded"), evil)
    path = bundle / "model.pt"
    with zipfile.ZipFile(path) as archive:
        contents = {info: archive.read(info) for info in archive.infolist()}
    replaced = 0
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in contents.items():
            if (
                "/weights/" in info.filename
                or "/constants/" in info.filename
                or "sample_inputs" in info.filename
            ):
                if info.filename.endswith(".json"):
                    archive.writestr(info, data.replace(b'"use_pickle": false', b'"use_pickle": true'))
                    continue
                data = evil.getvalue()
                replaced += 1
            archive.writestr(info, data)
    assert replaced
    seal(bundle)
    with pytest.raises(StartupError):
        load(bundle)
    assert not (tmp_path / "exploded").exists()


def test_a_model_of_several_columns(tmp_path: Path) -> None:
    signature: dict[str, object] = {
        "inputs": [
            {"name": "a", "type": "number"},
            {"name": "b", "type": "integer"},
            {"name": "c", "type": "number", "shape": [2]},
        ],
        "outputs": [{"name": "sum", "type": "number"}, {"name": "big", "type": "boolean"}],
    }
    build = """
    import torch

    class Sum(torch.nn.Module):
        def forward(self, a, b, c):
            total = a + b + c.sum(dim=1)
            return {"big": total > 10, "sum": total}

    def build():
        return Sum()
    """
    bundle = write_bundle(
        tmp_path,
        name="sum",
        signature=signature,
        serving={"runtime": {"kind": "pytorch", "file": "model.pt"}},
        files={"handler.py": build},
        write=lambda folder: torch.save({}, folder / "model.pt"),
    )
    with threaded(bundle) as server, server.client() as client:
        instances = [{"a": 1.5, "b": 2, "c": [3, 4]}, {"a": 0, "b": 0, "c": [5, 6]}]
        answer = client.post("/predict", json={"instances": instances})
        assert answer.json() == {"predictions": [{"sum": 10.5, "big": True}, {"sum": 11, "big": True}]}
        wrong = client.post("/predict", json={"instances": [{**instances[0], "b": 2.5}]})
        assert wrong.json()["errors"][0]["pointer"] == "#/instances/0/b"


def test_stacked_scalars(tmp_path: Path) -> None:
    signature: dict[str, object] = {
        "inputs": [{"name": name, "type": "number", "nullable": name == "b"} for name in "abcd"],
        "outputs": [{"name": "scores", "type": "number", "shape": [3], "nullable": True}],
    }
    bundle = write_bundle(
        tmp_path,
        signature=signature,
        serving={"runtime": {"kind": "pytorch", "file": "model.pt", "inputs": "stack"}},
        files={"handler.py": (affine(tmp_path / "x") / "handler.py").read_text()},
        write=lambda folder: torch.save(Affine().state_dict(), folder / "model.pt"),
    )
    with threaded(bundle) as server, server.client() as client:
        rows = [{"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 1, "b": None, "c": 3, "d": 4}]
        answer = client.post("/predict", json={"instances": rows})
        assert answer.json() == {"predictions": [[3, 5, 7], [3, None, 7]]}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_explicit(tmp_path: Path, dtype: str) -> None:
    bundle = affine(tmp_path)
    text = (bundle / "model.yaml").read_text().replace("kind: pytorch", f"kind: pytorch\n    dtype: {dtype}")
    (bundle / "model.yaml").write_text(text)
    seal(bundle)
    np.testing.assert_allclose(run(bundle, [[1, 2, 3, 4]]), [[3, 5, 7]], rtol=0.02)


def test_a_gpu_that_is_not_there_is_an_error_only_when_it_is_asked_for() -> None:
    if torch.cuda.is_available():
        assert choose_device("auto") == "cuda"
        return
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(StartupError, match="there is no GPU"):
        choose_device("cuda")


def test_workers_share_the_cpu_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVING_WORKERS", raising=False)
    whole = cpu_quota()
    assert 1 <= whole <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("SERVING_WORKERS", str(whole))
    assert cpu_quota() == 1


def test_a_runtime_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    def write(folder: Path) -> None:
        (folder / "saved").mkdir()
        (folder / "saved" / "saved_model.pb").write_bytes(b"")

    monkeypatch.setitem(sys.modules, "tensorflow", None)
    bundle = write_bundle(tmp_path, serving={"runtime": {"kind": "tensorflow", "file": "saved"}}, write=write)
    with pytest.raises(StartupError, match="'tensorflow'; name it in requirements"):
        load(bundle)


class Tied(torch.nn.Module):
    """Reads the last layer's weight as an embedding too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 8)
        self.hidden = torch.nn.Linear(8, 8)
        self.last = torch.nn.Linear(8, 10)
        self.last.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(self.hidden(self.embedding(words)))
        return answer


@pytest.mark.parametrize("exported", [False, True])
def test_only_weights_of_linear_layers_are_laid_out_and_the_answer_stays(exported: bool) -> None:
    words = torch.tensor([[1, 2, 3]])
    module: Any = Tied().eval()
    if exported:
        module = torch.export.export(module, (words,)).module()
    before = module(words)
    lay_out(module)
    strides = {name: weight.stride() for name, weight in module.named_parameters() if weight.dim() == 2}
    # Only the matrix library of x86 processors gains by it.
    by_input = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    assert strides.pop("hidden.weight") == ((1, 8) if by_input else (8, 1))
    assert set(strides.values()) == {(8, 1)}
    assert torch.allclose(module(words), before, atol=1e-6)


READS_WEIGHTS = """
import torch


class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return x @ self.layer.weight.view(12).view(3, 4).t() + self.layer.bias


def build():
    return Reader()
"""


def test_code_that_reads_a_weight_as_contiguous_memory_is_served_as_before(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 3)

    def write(folder: Path) -> None:
        torch.save({"layer.weight": layer.weight, "layer.bias": layer.bias}, folder / "model.pt")

    runtime = {"kind": "pytorch", "file": "model.pt"}
    files = {"handler.py": READS_WEIGHTS}
    bundle = write_bundle(tmp_path, serving={"runtime": runtime}, files=files, write=write)
    rows = [[1.0, 2.0, 3.0, 4.0]]
    expected = layer(torch.tensor(rows)).detach().numpy()
    np.testing.assert_allclose(run(bundle, rows), expected, rtol=1e-6)


class Packed(torch.Tensor):
    """Stands for weights that are stored in another way, such as quantized ones."""


def test_weights_of_another_kind_are_left_alone() -> None:
    layer = torch.nn.Linear(4, 3)
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Packed))
    assert type(layer.weight.data) is Packed
    lay_out(layer)
    assert layer.weight.stride() == (4, 1)


def test_a_transformer_answers_the_same_when_it_is_laid_out() -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    module = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    rows = torch.rand(3, 5, 16)
    with torch.inference_mode():
        before = module(rows)
        lay_out(module)
        assert torch.allclose(module(rows), before, atol=1e-5)
