"""A signature's columns as the one table that estimators and boosted trees take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import StartupError
from serving.spec import ModelFile, RuntimeSpec


class Table:
    """Turns a batch's columns into a matrix of numbers (rows, features), or into a data frame.

    `names` are the features that the model was trained on, in its order: those of the signature must be the
    same. With names, or with columns that are no numbers, it is a data frame, else a matrix; one input with a
    shape is the matrix itself. Raises StartupError when the two do not fit.
    """

    def __init__(self, model: ModelFile, names: list[str] | None, *, frame: bool = True) -> None:
        columns = model.signature.inputs
        self._names = [column.name for column in columns]
        self._matrix = len(columns) == 1 and len(columns[0].shape) == 1
        if self._matrix:
            if names is not None and len(names) != columns[0].elements:
                raise StartupError(
                    f"signature.inputs.{columns[0].name}: has {columns[0].elements} values, the model takes "
                    f"{len(names)} features"
                )
            self._order, self._frame = names, names is not None and frame
            return
        if any(column.shape for column in columns):
            raise StartupError("signature.inputs: one input with a shape, or columns without one, not both")
        if names is not None and set(names) != set(self._names):
            missing, unknown = sorted(set(names) - set(self._names)), sorted(set(self._names) - set(names))
            raise StartupError(
                f"signature.inputs: the model was trained on other columns (missing here: {missing}, "
                f"unknown to it: {unknown})"
            )
        self._order = names or self._names
        numbers = all(column.type in ("number", "integer", "boolean") for column in columns)
        self._frame = frame and (names is not None or not numbers)
        if not frame and not numbers:
            raise StartupError("signature.inputs: this runtime takes numbers only")

    def __call__(self, inputs: Sequence[Array]) -> Any:
        if self._matrix:
            if not self._frame:
                return inputs[0]
            import pandas

            return pandas.DataFrame(inputs[0], columns=self._order)
        columns = dict(zip(self._names, inputs, strict=True))
        if not self._frame:
            return np.stack([columns[name].astype(np.float64) for name in self._order or ()], axis=1)
        import pandas

        return pandas.DataFrame({name: columns[name] for name in self._order or ()})


def in_order(answer: Array) -> Array:
    return answer


def on_cpu(spec: RuntimeSpec) -> None:
    """Raises StartupError when the model asks for a GPU that this runtime would not use."""
    if spec.device == "cuda":
        raise StartupError(f"the runtime {spec.kind} computes on the CPU; leave serving.runtime.device out")
