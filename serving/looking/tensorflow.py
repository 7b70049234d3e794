"""SavedModels: their default signature has names, types and sizes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.arrays import Array
from serving.errors import StartupError
from serving.looking.found import Asked, Found, TensorInput, answered

SIGNATURE = "serving_default"


def look_tensorflow(path: Path, asked: Asked) -> Found:
    tensorflow: Any = importlib.import_module("tensorflow")
    saved = tensorflow.saved_model.load(str(path))
    if SIGNATURE not in saved.signatures:
        there = ", ".join(saved.signatures) or "none"
        raise StartupError(
            f"{path}: no signature {SIGNATURE!r}, it has {there}; save it with one (model.export)"
        )
    call = saved.signatures[SIGNATURE]
    sizes = {column.name: column.shape for column in asked.inputs}
    inputs = []
    for name, spec in call.structured_input_signature[1].items():
        given = [None, *sizes[name]] if name in sizes else list(spec.shape.as_list())
        inputs.append(TensorInput(name, spec.dtype.as_numpy_dtype, given))

    def run(arrays: Sequence[Array]) -> dict[str, Any]:
        feed = {one.name: tensorflow.constant(array) for one, array in zip(inputs, arrays, strict=True)}
        return {name: answer.numpy() for name, answer in call(**feed).items()}

    found = Found("a TensorFlow SavedModel", {"kind": "tensorflow", "file": path.name}, [], [])
    return answered(path, inputs, run, found)
