"""What a model gives, made into what its signature says, or refused. Nothing is guessed from a count.

An array that has the right number of values may still hold other clients' rows, or numbers that the signature
cuts. So the first axis is the rows, or the one that `batch_axis` names; an axis of 1 may be missing or too
much behind it; and a conversion keeps every value, but for the rounding of a float to its own precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import InvalidOutput, WrongForm
from serving.inference.codec import NUMPY
from serving.spec import Column, Datatype


class OutputColumn:
    """Checks the arrays of one output."""

    def __init__(self, column: Column, datatype: Datatype) -> None:
        self._column = column
        self._datatype = datatype
        self._dtype = np.dtype(NUMPY[datatype])
        self._shape = column.shape
        self._axis = column.batch_axis

    def checked(self, array: Array, rows: int) -> Array:
        """The array as (rows, *shape) in the column's datatype. WrongForm, or InvalidOutput for a value."""
        column, dtype = self._column, self._dtype
        if self._axis and array.ndim > self._axis:
            array = np.moveaxis(array, self._axis, 0)
        if array.shape != (rows, *self._shape):
            array = self._fitted(array, rows)
        if array.dtype != dtype or dtype.kind == "O":
            array = self._converted(array)
        if dtype.kind == "f" and not np.isfinite(array).all():
            if not column.nullable:
                raise InvalidOutput(f"output {column.name} holds NaN or infinity")
            if np.isinf(array).any():
                raise InvalidOutput(
                    f"output {column.name} holds infinity, which is neither a number nor null"
                )
        if column.minimum is not None and (array < column.minimum).any():
            raise InvalidOutput(f"output {column.name} is below its minimum {column.minimum}")
        if column.maximum is not None and (array > column.maximum).any():
            raise InvalidOutput(f"output {column.name} is above its maximum {column.maximum}")
        return np.ascontiguousarray(array)

    def _fitted(self, array: Array, rows: int) -> Array:
        expected = (rows, *self._shape)
        if array.ndim and array.shape[0] == rows:
            given = [size for size in array.shape[1:] if size != 1]
            if given == [size for size in self._shape if size != 1]:
                return array.reshape(expected)
        raise WrongForm(
            f"output {self._column.name} has shape {array.shape} for {rows} rows, expected {expected}"
            f"{self._hint(array, expected)}"
        )

    def _hint(self, array: Array, expected: tuple[int, ...]) -> str:
        for axis in range(1, array.ndim):
            if self._axis == 0 and np.moveaxis(array, axis, 0).shape == expected:
                return (
                    f"; if axis {axis} is the rows, write `batch_axis: {axis}` at this output in model.yaml"
                )
        if array.ndim == 0 or array.shape[0] != expected[0]:
            return "; its first axis must be the rows (squeeze() takes it away when there is one row)"
        return f"; write `shape: {list(array.shape[1:])}` at this output in model.yaml if that is right"

    def _converted(self, array: Array) -> Array:
        if self._dtype.kind == "O":
            return self._texts(array)
        kind = array.dtype.kind
        if kind == "V":  # bfloat16 and its like, whose values all are float32
            array, kind = array.astype(np.float32), "f"
        if kind not in "biuf":
            raise WrongForm(
                f"output {self._column.name} holds {array.dtype}, and model.yaml says {self._column.type}"
            )
        with np.errstate(all="ignore"):
            converted: Array = array.astype(self._dtype)
            if kind == "f" and self._dtype.kind == "f":
                return converted  # rounded; what was too large is infinite now, and refused as that
            kept = converted.astype(array.dtype) == array
            if kind in "iu" and self._dtype.kind in "iu":
                kept &= converted == array
        if not kept.all():
            self._lost(array, kept)
        return converted

    def _lost(self, array: Array, kept: Array) -> None:
        name, first = self._column.name, tuple(int(place[0]) for place in np.nonzero(~kept))
        text = f"output {name} holds {array[first]} ({array.dtype}), which {self._datatype} cannot keep"
        if array.dtype.kind == "f":
            raise WrongForm(
                f"{text}; write `type: number` at this output in model.yaml, or round in the model"
            )
        raise InvalidOutput(f"{text}; write another datatype for it in serving.datatypes of model.yaml")

    def _texts(self, array: Array) -> Array:
        """Strings of whatever kind the runtime has: str, or bytes in UTF-8."""
        if array.dtype.kind not in "OSU":
            raise WrongForm(
                f"output {self._column.name} holds {array.dtype}, and model.yaml says {self._column.type}"
            )
        texts = np.empty(array.shape, dtype=np.object_)
        texts.reshape(-1)[:] = [self._text(value) for value in array.reshape(-1).tolist()]
        return texts

    def _text(self, value: Any) -> str | None:
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise InvalidOutput(f"output {self._column.name} holds bytes that are not UTF-8") from None
        if value is None and self._column.nullable:
            return None
        if not isinstance(value, str):
            raise WrongForm(
                f"output {self._column.name} holds a {type(value).__name__}, and model.yaml says string"
            )
        return value
