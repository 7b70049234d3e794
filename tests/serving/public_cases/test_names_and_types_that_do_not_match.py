"""Inputs fed in the wrong order, and outputs cut to what they were declared as, with status 200."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.serving.model_bundles import write_bundle
from tests.serving.refusals import accepted, refusal
from tests.serving.server_runs import threaded

ONNX = {"kind": "onnx", "file": "model.onnx"}


def number(name: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "type": "number", "shape": list(shape)}


def onnx_file(nodes: Any, inputs: Any, outputs: Any) -> Callable[[Path], None]:
    """What writes a graph of (operator, inputs, outputs, attributes) over (name, type, shape)."""
    import onnx
    from onnx import helper

    def write(folder: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node(kind, takes, gives, **more) for kind, takes, gives, more in nodes],
            "graph",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(folder / "model.onnx"))

    return write


def difference(folder: Path, inputs: list[str], outputs: list[str]) -> Path:
    """margin = revenue - cost, ratio = revenue / cost."""
    from onnx import TensorProto as T

    write = onnx_file(
        [("Sub", ["revenue", "cost"], ["margin"], {}), ("Div", ["revenue", "cost"], ["ratio"], {})],
        [("cost", T.FLOAT, ["n"]), ("revenue", T.FLOAT, ["n"])],
        [("margin", T.FLOAT, ["n"]), ("ratio", T.FLOAT, ["n"])],
    )
    signature = {
        "inputs": [{**number(name), "minimum": 0.5} for name in inputs],
        "outputs": [number(name) for name in outputs],
    }
    return write_bundle(folder, name="m", signature=signature, serving={"runtime": ONNX}, write=write)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (["revenue", "costs"], ["margin", "ratio"], "takes cost, revenue; the signature has revenue, costs"),
        (["a", "b"], ["margin", "ratio"], "takes cost, revenue; the signature has a, b"),
        (
            ["revenue", "cost"],
            ["ratio", "margins"],
            "gives margin, ratio; the signature wants ratio, margins",
        ),
        (["revenue"], ["margin", "ratio"], "takes cost, revenue; the signature has revenue"),
    ],
)
def test_names_that_an_onnx_file_does_not_have_are_refused(
    tmp_path: Path, inputs: list[str], outputs: list[str], says: str
) -> None:
    """One differing name fell back to the file's order: a margin of -6 instead of 6 (as in
    triton-inference-server/server#4269 and #3859)."""
    assert says in refusal(difference(tmp_path, inputs, outputs))


def test_the_order_of_an_onnx_file_does_not_matter(tmp_path: Path) -> None:
    bundle = difference(tmp_path, ["revenue", "cost"], ["ratio", "margin"])
    with threaded(bundle) as server, server.client() as client:
        answer = client.post("/predict", json={"instances": [{"cost": 2, "revenue": 8}]})
        assert answer.json() == {"predictions": [{"ratio": 4.0, "margin": 6.0}]}


def module(folder: Path, code: str, inputs: list[str], outputs: list[str]) -> Path:
    return write_bundle(
        folder,
        name="m",
        signature={"inputs": [number(name) for name in inputs], "outputs": [number(n) for n in outputs]},
        serving={"runtime": {"kind": "pytorch", "file": "model.pt"}},
        files={"handler.py": "import torch\nfrom torch import nn\n" + code},
        write=lambda target: torch.save({}, target / "model.pt"),
    )


MARGIN = """
class Model(nn.Module):
    def forward(self, cost, revenue):
        return {"margin": revenue - cost, "twice": 2 * revenue}

def build():
    return Model()
"""
NAMED = """
from collections import namedtuple
Answer = namedtuple("Answer", "twice margin")

class Model(nn.Module):
    def forward(self, cost, revenue):
        return Answer(2 * revenue, revenue - cost)

def build():
    return Model()
"""


@pytest.mark.parametrize("code", [MARGIN, NAMED])
def test_arguments_and_answers_of_a_module_are_matched_by_name(tmp_path: Path, code: str) -> None:
    with (
        threaded(module(tmp_path, code, ["revenue", "cost"], ["margin", "twice"])) as server,
        server.client() as client,
    ):
        answer = client.post("/predict", json={"instances": [{"revenue": 8, "cost": 2}]})
        assert answer.json() == {"predictions": [{"margin": 6.0, "twice": 16.0}]}


def test_a_torchscript_or_exported_module_is_matched_by_name(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, cost: torch.Tensor, revenue: torch.Tensor) -> torch.Tensor:
            return revenue - cost

    rows = torch.export.Dim("rows", min=1, max=1024)
    two = (torch.zeros(2), torch.zeros(2))
    torch.export.save(
        torch.export.export(Model(), two, dynamic_shapes=({0: rows}, {0: rows})), tmp_path / "exported.pt2"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Model(), two), str(tmp_path / "traced.pt2"))
    for name in ("exported", "traced"):
        content = (tmp_path / f"{name}.pt2").read_bytes()
        bundle = write_bundle(
            tmp_path / name,
            name="m",
            signature={"inputs": [number("revenue"), number("cost")], "outputs": [number("margin")]},
            serving={"runtime": {"kind": "pytorch", "file": "model.pt2"}},
            write=lambda folder, content=content: (folder / "model.pt2").write_bytes(content),  # type: ignore[misc]
        )
        with threaded(bundle) as server, server.client() as client:
            answer = client.post("/predict", json={"instances": [{"revenue": 8, "cost": 2}]})
            assert answer.json() == {"predictions": [6.0]}, name


def test_names_of_a_module_that_are_elsewhere_are_refused(tmp_path: Path) -> None:
    message = refusal(module(tmp_path / "a", MARGIN, ["revenue", "costs"], ["margin", "twice"]))
    assert "takes cost, revenue; the signature has revenue, costs" in message
    assert "no thrice" in refusal(module(tmp_path / "b", MARGIN, ["cost", "revenue"], ["margin", "thrice"]))


def cast(folder: Path, to: str, declared: str, datatype: str | None = None, **column: object) -> Path:
    """An ONNX model that casts its FP64 input; the output's type is what is declared."""
    from onnx import TensorProto as T

    kind = getattr(T, to)
    write = onnx_file(
        [("Cast", ["x"], ["y"], {"to": kind})], [("x", T.DOUBLE, ["n", 2])], [("y", kind, ["n", 2])]
    )
    datatypes = {"x": "FP64"} | ({"y": datatype} if datatype else {})
    return write_bundle(
        folder,
        name="m",
        signature={"inputs": [number("x", 2)], "outputs": [{**number("y", 2), "type": declared, **column}]},
        serving={"runtime": ONNX, "datatypes": datatypes},
        write=write,
    )


@pytest.mark.parametrize(
    ("to", "declared", "says"),
    [
        ("DOUBLE", "integer", "which INT64 cannot keep; write `type: number`"),
        ("FLOAT", "boolean", "which BOOL cannot keep; write `type: number`"),
        ("DOUBLE", "string", "output y holds float64, and model.yaml says string"),
        ("STRING", "number", "output y holds object, and model.yaml says number"),
    ],
)
def test_an_output_of_another_kind_keeps_the_server_from_ready(
    tmp_path: Path, to: str, declared: str, says: str
) -> None:
    """0.9 became 0 under `integer`, and true under `boolean`."""
    assert says in refusal(cast(tmp_path, to, declared))


@pytest.mark.parametrize(
    ("to", "declared", "datatype", "good", "bad"),
    [
        ("INT64", "integer", "INT8", [1, -128], [1, 300]),
        ("INT64", "integer", "UINT64", [1, 2**62], [1, -1]),
        ("UINT64", "integer", "INT64", [1, 2**62], [1, 2**63]),
        ("INT64", "number", "FP32", [1, 2**24], [1, 2**24 + 1]),
        ("INT64", "number", "FP64", [1, 2**52], None),
        ("DOUBLE", "number", "FP32", [0.1, 3e38], [0.1, 3e39]),
        ("DOUBLE", "number", "FP16", [0.1, 6e4], [0.1, 7e4]),
        ("BOOL", "integer", "INT64", [0, 1], None),
        ("FLOAT", "number", "FP32", [0.1, 2], [0.1, 1e300]),
    ],
)
def test_a_value_that_does_not_fit_is_a_fault_that_names_it(
    tmp_path: Path, to: str, declared: str, datatype: str, good: list[float], bad: list[float] | None
) -> None:
    with threaded(cast(tmp_path, to, declared, datatype)) as server, server.client() as client:
        answer = client.post("/predict", json={"instances": [good]})
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["predictions"][0], good, rtol=1e-3)
        if bad is not None:
            answer = client.post("/predict", json={"instances": [good, bad]})
            assert answer.status_code == 500, answer.text
            assert "output y" in answer.json()["detail"]
            assert answer.json()["errors"][0]["pointer"] == "#/instances/1"


def test_infinity_under_a_nullable_number_is_no_null(tmp_path: Path) -> None:
    with threaded(cast(tmp_path, "FLOAT", "number", nullable=True)) as server, server.client() as client:
        answer = client.post("/predict", json={"instances": [[1, 1e300]]})
        assert answer.status_code == 500
        assert "infinity" in answer.json()["detail"]


def test_whole_floats_are_integers_without_loss(tmp_path: Path) -> None:
    from onnx import TensorProto as T

    write = onnx_file([("Round", ["x"], ["y"], {})], [("x", T.FLOAT, ["n"])], [("y", T.FLOAT, ["n"])])
    signature = {"inputs": [number("x")], "outputs": [{"name": "y", "type": "integer"}]}
    bundle = write_bundle(tmp_path, name="m", signature=signature, serving={"runtime": ONNX}, write=write)
    accepted(bundle)
    with threaded(bundle) as server, server.client() as client:
        assert client.post("/predict", json={"instances": [2.7]}).json() == {"predictions": [3]}
        assert client.post("/predict", json={"instances": [1e30]}).status_code == 500
