"""Right answers that ended in a 500 on their way to the client, and clients' mistakes that did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from serving.inference.codec import NUMPY, make_codec
from serving.inference.engine import TensorEngine
from serving.inference.rows import TensorPayload
from serving.spec import ModelFile
from serving.v2.protocol import Protocol, Wanted
from tests.serving.model_bundles import write_bundle
from tests.serving.server_runs import threaded

KINDS = {
    "BOOL": "boolean",
    "UINT8": "integer",
    "UINT64": "integer",
    "INT8": "integer",
    "INT64": "integer",
    "FP16": "number",
    "FP32": "number",
    "FP64": "number",
    "BYTES": "string",
}


class Fixed:
    """Gives the same arrays whatever comes, as TensorFlow gives its strings: bytes in an array of objects."""

    def __init__(self, arrays: list[Any]) -> None:
        self._arrays = arrays

    def run(self, _: Any) -> list[Any]:
        return self._arrays


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_output_is_written_in_every_form(
    kind: str, shape: tuple[int, ...], second: bool
) -> None:
    """Strings beside another output ended in a 500, and came as b"b'HI'" through the Triton client."""
    outputs: list[dict[str, Any]] = [{"name": "o", "type": KINDS[kind], "shape": list(shape)}]
    arrays: list[Any] = [
        np.full((2, *shape), "grüße".encode(), dtype=object)
        if kind == "BYTES"
        else np.ones((2, *shape), dtype=NUMPY[kind])  # type: ignore[index]
    ]
    if second:
        outputs.append({"name": "p", "type": "number"})
        arrays.append(np.array([0.5, 1.5], dtype=np.float32))
    model = ModelFile.model_validate(
        {
            "name": "m",
            "signature": {"inputs": [{"name": "x", "type": "number"}], "outputs": outputs},
            "serving": {"runtime": {"kind": "onnx", "file": "m"}, "datatypes": {"o": kind}},
        }
    )
    engine = TensorEngine(Fixed(arrays), model)  # type: ignore[arg-type]
    [result] = engine.infer([TensorPayload(2, [[1.0, 2.0]], 8)])
    codec = make_codec(model)
    import orjson

    predictions = orjson.loads(codec.encode(result))["predictions"]
    one: Any = {"BYTES": "grüße", "BOOL": True}.get(kind, 1)
    for size in reversed(shape):
        one = [one] * size
    wanted = {"o": one, "p": 0.5} if second else one
    assert predictions[0] == wanted
    assert [orjson.loads(fragment) for fragment in codec.fragments(result)] == predictions
    protocol = Protocol(model, "1")
    for binary in (False, True):
        content, length = protocol.answer(codec.arrays(result), Wanted(None, [("o", binary)]))
        assert (length is not None) == binary
        assert kind != "BYTES" or "grüße".encode() in content


HANDLER = """
import numpy

def load(folder, device): return None

def predict(model, rows):
    return [
        {
            "number": numpy.float32("nan") if row["n"] == 0 else float(row["n"]),
            "count": None if row["n"] == 0 else row["n"],
            "text": None if row["n"] == 0 else str(row["n"]),
        }
        for row in rows
    ]
"""


@pytest.fixture
def nullable(tmp_path: Path) -> Path:
    signature = {
        "inputs": [{"name": "n", "type": "integer", "nullable": False}],
        "outputs": [
            {"name": "number", "type": "number", "nullable": True},
            {"name": "count", "type": "integer", "nullable": True},
            {"name": "text", "type": "string", "nullable": True},
        ],
    }
    return write_bundle(
        tmp_path,
        name="m",
        signature=signature,
        serving={"runtime": {"kind": "handler"}, "datatypes": {"n": "UINT64", "count": "UINT64"}},
        files={"handler.py": HANDLER},
    )


def test_nan_and_null_of_a_handler_are_null(nullable: Path) -> None:
    with threaded(nullable) as server, server.client() as client:
        answer = client.post("/predict", json={"instances": [0, 7]})
        assert answer.json() == {
            "predictions": [
                {"number": None, "count": None, "text": None},
                {"number": 7.0, "count": 7, "text": "7"},
            ]
        }
        tensor = {"name": "n", "shape": [2], "datatype": "UINT64", "data": [0, 7]}
        answer = client.post("/v2/models/m/infer", json={"inputs": [tensor]})
        data = {output["name"]: output["data"] for output in answer.json()["outputs"]}
        assert data == {"number": [None, 7.0], "count": [None, 7], "text": [None, "7"]}
        given = triton.InferInput("n", [1], "UINT64")
        given.set_data_from_numpy(np.array([7], dtype=np.uint64))
        found = triton.InferenceServerClient(server.url.removeprefix("http://")).infer("m", [given])
        assert (found.as_numpy("count").tolist(), found.as_numpy("text").tolist()) == ([7], [b"7"])


@pytest.mark.parametrize("value", [2**64, 10**30])
def test_an_integer_beyond_64_bits_is_the_clients_mistake(nullable: Path, value: int) -> None:
    with threaded(nullable) as server, server.client() as client:
        assert client.post("/predict", json={"instances": [2**64 - 1]}).status_code == 200
        for row, pointer in ((value, "#/instances/1"), ({"n": value}, "#/instances/1/n")):
            answer = client.post("/predict", json={"instances": [1, row]})
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"][0]["pointer"] == pointer
        tensor = {"name": "n", "shape": [1], "datatype": "UINT64", "data": [value]}
        assert client.post("/v2/models/m/infer", json={"inputs": [tensor]}).status_code == 400
