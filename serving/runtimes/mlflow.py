"""Models of MLflow, through its Python function, with the signature that was logged with them.

Reading one can run anything: most flavours are pickles, and code may lie in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import StartupError
from serving.runtimes.columns import on_cpu
from serving.runtimes.names import in_order
from serving.spec import ModelFile

UNNAMED = "features"
"""What the only input is called when MLflow's signature has no name for it."""


class MlflowRuntime:
    def __init__(self, model: ModelFile, folder: Path) -> None:
        spec = model.serving.runtime
        assert spec.file is not None
        on_cpu(spec)
        path = folder / spec.file
        self._model = read_mlflow(path, trust_pickle=spec.trust_pickle)
        self._schema = input_schema(self._model, path)
        self._names = [column.name for column in model.signature.inputs]
        wanted = schema_names(self._schema)
        if set(wanted) != set(self._names):
            raise StartupError(
                f"{path}: was logged with the inputs {', '.join(wanted)}; signature.inputs has "
                f"{', '.join(self._names)}. Write them as MLflow has them"
            )
        self._outputs = [column.name for column in model.signature.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        table = as_asked(self._schema, dict(zip(self._names, inputs, strict=True)))
        answers = as_named(self._model.predict(table))
        if len(answers) == len(self._outputs) == 1:
            return list(answers.values())
        return in_order("the model", self._outputs, answers)

    def tune(self, largest_batch: Callable[[], float]) -> None:
        """Threads are the business of what MLflow has wrapped."""

    def device_memory(self) -> int | None:
        return None

    def broken(self) -> str | None:
        return None


def read_mlflow(path: Path, *, trust_pickle: bool) -> Any:
    """The Python function of a folder. StartupError when its owner has not said that it is to be trusted."""
    if not (path / "MLmodel").is_file():
        raise StartupError(
            f"{path}: no MLmodel there; name the MLflow model's folder in serving.runtime.file"
        )
    if not trust_pickle:
        raise StartupError(
            f"{path}: reading an MLflow model can run anything; set trust_pickle: true if it is your own"
        )
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(path))


def input_schema(model: Any, path: Path) -> Any:
    """MLflow's schema of the inputs. StartupError without one: nobody could know what to send."""
    schema = model.metadata.get_input_schema()
    if schema is None:
        raise StartupError(
            f"{path}: was logged without a signature; log it again with signature=infer_signature(rows, "
            "answers)"
        )
    return schema


def schema_names(schema: Any) -> list[str]:
    """Names of our inputs: one for each of MLflow's, or one for all that have none."""
    names = [one.name for one in schema.inputs]
    return [UNNAMED] if None in names else [str(name) for name in names]


def as_asked(schema: Any, columns: dict[str, Array]) -> Any:
    """The columns of a batch as MLflow's signature wants them: it refuses what is only convertible."""
    import pandas

    if schema.is_tensor_spec():
        tensors = {
            UNNAMED if one.name is None else one.name: columns[one.name or UNNAMED].astype(one.type)
            for one in schema.inputs
        }
        return tensors[UNNAMED] if None in [one.name for one in schema.inputs] else tensors
    if list(columns) == [UNNAMED] and None in [one.name for one in schema.inputs]:
        return pandas.DataFrame(columns[UNNAMED])
    return pandas.DataFrame({one.name: _column(columns[one.name], str(one.type)) for one in schema.inputs})


def _column(values: Array, kind: str) -> Any:
    import pandas

    kind = kind.lower().rpartition(".")[2]
    if kind == "datetime":
        return pandas.to_datetime(pandas.Series(values))
    return pandas.Series(values.astype(DTYPES.get(kind, object)))


DTYPES = {"boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64"}


def as_named(answer: Any) -> dict[str, Array]:
    """Whatever a Python function gives, as arrays by name; `prediction` for what has none."""
    if hasattr(answer, "columns"):
        return {str(name): np.asarray(answer[name]) for name in answer.columns}
    if isinstance(answer, dict):
        return {str(name): np.asarray(one) for name, one in answer.items()}
    array = np.asarray(answer)
    return {"prediction": array.astype(object) if array.dtype.kind in "US" else array}
