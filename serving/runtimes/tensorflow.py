"""TensorFlow SavedModels, an optional extra imported only here."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.arrays import Array
from serving.errors import StartupError
from serving.runtimes.devices import cpu_quota
from serving.runtimes.names import input_names, output_names
from serving.spec import ModelFile

_SIGNATURE = "serving_default"


class TensorFlowRuntime:
    """Runs the SavedModel's default signature, matched by the names of the model's signature."""

    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        assert spec.file is not None
        path = folder / spec.file
        if not (path / "saved_model.pb").is_file():
            raise StartupError(
                f"{path}: no saved_model.pb there; name the SavedModel folder in serving.runtime.file"
            )
        # Not a plain import: the package is no dependency and has no types.
        tensorflow: Any = importlib.import_module("tensorflow")
        if spec.device == "cpu":
            tensorflow.config.set_visible_devices([], "GPU")
        elif spec.device == "cuda" and not tensorflow.config.list_physical_devices("GPU"):
            raise StartupError(
                "the model asks for device cuda and there is no GPU; use pool: gpu or device: auto"
            )
        # TensorFlow refuses when something in this process has computed with it already.
        with contextlib.suppress(RuntimeError):
            tensorflow.config.threading.set_intra_op_parallelism_threads(spec.threads or cpu_quota())
        self._tensorflow = tensorflow
        # The loaded object owns the variables: without a reference they are collected.
        self._saved: Any = tensorflow.saved_model.load(str(path))
        signatures = self._saved.signatures
        if _SIGNATURE not in signatures:
            raise StartupError(
                f"{path}: no signature {_SIGNATURE!r}; it has {', '.join(signatures) or 'none'}"
            )
        self._call: Any = signatures[_SIGNATURE]
        takes: dict[str, Any] = self._call.structured_input_signature[1]
        wanted = ["inputs"] if spec.inputs == "stack" else [column.name for column in model.signature.inputs]
        self._inputs = input_names(path, wanted, list(takes))
        names = [column.name for column in model.signature.outputs]
        self._outputs = output_names(path, names, list(self._call.structured_outputs))

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        feed = {
            name: self._tensorflow.constant(array) for name, array in zip(self._inputs, inputs, strict=True)
        }
        answer = self._call(**feed)
        return [answer[name].numpy() for name in self._outputs]

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """TensorFlow's threads are fixed before its first operation."""

    def device_memory(self) -> int | None:
        return None

    def broken(self) -> str | None:
        return None
