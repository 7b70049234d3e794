"""What executes a model. One module a runtime, imported only when a model asks for it.

Belongs here: one kind of model file a module: load it, run a batch. May not: know requests, or be imported
before a model asks for it. The way in is `make_runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from serving.arrays import Array
from serving.runtimes.loading import loading
from serving.spec import ModelFile


class TensorRuntime(Protocol):
    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Arrays (rows, *shape) in the order of the signature, in and out. Called by one thread at a time."""

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """Choose threads; `largest_batch` runs one and gives its seconds. Called once, after warm-up."""

    def device_memory(self) -> int | None:
        """Bytes of accelerator memory in use; None on a CPU."""

    def broken(self) -> str | None:
        """Why this process can never answer again (a sticky device error); None while it can."""


class RowRuntime(Protocol):
    def predict(self, rows: list[dict[str, Any]]) -> Any:
        """One dict of outputs a row, in order."""


def make_runtime(model: ModelFile, folder: Path) -> TensorRuntime | RowRuntime:
    """Load the model of a verified bundle. StartupError when the runtime is missing or cannot load it."""
    kind = model.serving.runtime.kind
    with loading(kind, folder):
        if kind == "handler":
            from serving.runtimes.handler import HandlerRuntime

            return HandlerRuntime(model, folder)
        if kind == "pytorch":
            from serving.runtimes.pytorch import PyTorchRuntime

            return PyTorchRuntime(model, folder)
        if kind == "onnx":
            from serving.runtimes.onnx import OnnxRuntime

            return OnnxRuntime(model, folder)
        if kind == "sklearn":
            from serving.runtimes.estimators import SklearnRuntime

            return SklearnRuntime(model, folder)
        if kind == "xgboost":
            from serving.runtimes.trees import XgboostRuntime

            return XgboostRuntime(model, folder)
        if kind == "lightgbm":
            from serving.runtimes.trees import LightgbmRuntime

            return LightgbmRuntime(model, folder)
        if kind == "mlflow":
            from serving.runtimes.mlflow import MlflowRuntime

            return MlflowRuntime(model, folder)
        if kind == "huggingface":
            from serving.runtimes.huggingface import HuggingFaceRuntime

            return HuggingFaceRuntime(model, folder)
        from serving.runtimes.tensorflow import TensorFlowRuntime

        return TensorFlowRuntime(model, folder)
