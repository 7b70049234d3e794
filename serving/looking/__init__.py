"""What a model's file says of itself, for whoever writes the first `model.yaml` of it.

Run in the model's own environment by `python -m serving look`, never by a server. Belongs here: one kind of
model file a module, from the file to `Found`. May not: guess without saying so. The way in is `look`.
"""

from __future__ import annotations

from pathlib import Path

from serving.errors import StartupError
from serving.looking.found import Asked, Found
from serving.runtimes.loading import loading


def look(kind: str, path: Path, asked: Asked) -> Found:
    """Look into a model's file or folder. StartupError in one line: what it is, and what to do."""
    with loading(kind, path):
        if kind == "onnx":
            from serving.looking.onnx import look_onnx

            return look_onnx(path, asked)
        if kind == "pytorch":
            from serving.looking.pytorch import look_pytorch

            return look_pytorch(path, asked)
        if kind == "tensorflow":
            from serving.looking.tensorflow import look_tensorflow

            return look_tensorflow(path, asked)
        if kind == "sklearn":
            from serving.looking.tables import look_sklearn

            return look_sklearn(path, asked)
        if kind == "xgboost":
            from serving.looking.tables import look_xgboost

            return look_xgboost(path)
        if kind == "mlflow":
            from serving.looking.mlflow import look_mlflow

            return look_mlflow(path, asked)
        if kind == "huggingface":
            from serving.looking.huggingface import look_huggingface

            return look_huggingface(path, asked)
        if kind == "lightgbm":
            from serving.looking.tables import look_lightgbm

            return look_lightgbm(path)
    raise StartupError(f"{path}: nobody here looks into a model of the kind {kind!r}")


__all__ = ["Asked", "Found", "look"]
