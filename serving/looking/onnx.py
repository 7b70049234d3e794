"""ONNX: names, types and sizes stand in the file; what they leave free is tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from serving.arrays import Array
from serving.errors import StartupError
from serving.looking.found import Asked, Found, TensorInput, answered

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    **{f"tensor({name})": name for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


def look_onnx(path: Path, asked: Asked) -> Found:
    files = _external(path)
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = []
    sizes = {column.name: column.shape for column in asked.inputs}
    for node in session.get_inputs():
        if node.type not in DTYPES:
            raise StartupError(f"{path}: its input {node.name} is a {node.type}; only tensors can be served")
        given = [node.shape[0], *sizes[node.name]] if node.name in sizes else list(node.shape)
        inputs.append(TensorInput(node.name, DTYPES[node.type], given))
    names = [node.name for node in session.get_outputs()]

    def run(arrays: Sequence[Array]) -> dict[str, Any]:
        feed = {one.name: array for one, array in zip(inputs, arrays, strict=True)}
        return dict(zip(names, session.run(names, feed), strict=True))

    found = Found(f"ONNX, {len(inputs)} inputs", {"kind": "onnx", "file": path.name}, [], [], files=files)
    return answered(path, inputs, run, found)


def _external(path: Path) -> list[str]:
    """Files that hold the weights of a model that is too large for one."""
    model = onnx.load(str(path), load_external_data=False)
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    missing = sorted(name for name in names if not (path.parent / name).is_file())
    if missing:
        raise StartupError(
            f"{path}: its weights lie in {', '.join(missing)}, which is not beside it; put it there"
        )
    return sorted(names)
