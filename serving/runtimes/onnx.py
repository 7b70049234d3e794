"""ONNX models through onnxruntime, an optional extra imported only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from serving.arrays import Array
from serving.errors import StartupError
from serving.runtimes.devices import cpu_quota
from serving.runtimes.names import input_names, output_names
from serving.spec import ModelFile


class OnnxRuntime:
    """Inputs and outputs are matched by name."""

    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        assert spec.file is not None
        path = folder / spec.file
        if not path.is_file():
            raise StartupError(f"{path}: not there; name the model's file in serving.runtime.file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec.threads or cpu_quota()
        options.inter_op_num_threads = 1
        # Spinning threads would take the CPU that the event loop needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=_providers(spec.device)
        )
        wanted = ["inputs"] if spec.inputs == "stack" else [column.name for column in model.signature.inputs]
        self._inputs = input_names(path, wanted, [node.name for node in self._session.get_inputs()])
        names = [column.name for column in model.signature.outputs]
        self._outputs = output_names(path, names, [node.name for node in self._session.get_outputs()])

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        feed = dict(zip(self._inputs, inputs, strict=True))
        return [np.asarray(output) for output in self._session.run(self._outputs, feed)]

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """The threads of a session are fixed when it is made."""

    def device_memory(self) -> int | None:
        return None

    def broken(self) -> str | None:
        return None


def _providers(device: str) -> list[str]:
    there = onnxruntime.get_available_providers()
    if device != "cpu" and "CUDAExecutionProvider" in there:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if device == "cuda":
        raise StartupError(
            "the model asks for device cuda and this onnxruntime has none; install onnxruntime-gpu"
        )
    return ["CPUExecutionProvider"]
