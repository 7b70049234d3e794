"""What a handler gets and gives: rows of its own to change as it likes, and answers that nobody changes
later.

A handler may scale a row in place, take a field out of it or add one. The rows that it gets are copies,
since the same rows are run again when a neighbour fails, and are sampled after the answer. What it gives is
copied too: it may keep the objects and change them at its next call, while this answer is still being
written."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from serving.errors import InvalidOutput, WrongForm
from serving.inference.codec import MOST_UINT64, NUMPY, largest, value_type
from serving.inference.rows import RecordPayload
from serving.spec import ModelFile

_OF_THE_VALUE = re.compile(r"[<>]=|length|got `null`")
"""In what msgspec says of a value that another input may not lead to."""
_NO_LIST = {
    "coroutine": "; write `def predict` without async: it runs in a thread of its own",
    "generator": "; return a list instead of yielding rows",
}


class RecordInputs:
    """Copies rows; a shallow copy of a dict takes 0.1 us, less than a hundredth of the way of its request."""

    def __init__(self, model: ModelFile) -> None:
        self._shaped = [column.name for column in model.signature.inputs if column.shape]

    def copied(self, payloads: Sequence[RecordPayload]) -> list[dict[str, Any]]:
        rows = [row.copy() for payload in payloads for row in payload.rows]
        for name in self._shaped:
            for row in rows:
                if row[name] is not None:
                    row[name] = row[name].copy()
        return rows


class RecordOutputs:
    """Checks the rows of a handler against the signature."""

    def __init__(self, model: ModelFile) -> None:
        outputs = model.signature.outputs
        fields: list[Any] = []
        for index, column in enumerate(outputs):
            kind = value_type(column, model.datatype(column))
            fields.append((f"f{index}", kind, None) if column.nullable else (f"f{index}", kind))
        row = msgspec.defstruct(
            "Output",
            fields,
            rename={f"f{index}": column.name for index, column in enumerate(outputs)},
            forbid_unknown_fields=True,
            kw_only=True,
        )
        self._type: Any = list[row]  # type: ignore[valid-type]
        self._optional = [column.name for column in outputs if column.nullable]
        self._maybe_nan = {c.name for c in outputs if c.nullable and c.type == "number" and not c.shape}
        self._shaped = [(column.name, len(column.shape)) for column in outputs if column.shape]
        self._wide = [column.name for column in outputs if NUMPY[model.datatype(column)] is np.uint64]

    def checked(self, outputs: object, rows: int) -> list[dict[str, Any]]:
        """Plain rows, one an input row. WrongForm, or InvalidOutput where another input may do better."""
        if not isinstance(outputs, list):
            found = type(outputs).__name__
            if inspect.iscoroutine(outputs):
                outputs.close()
            raise WrongForm(
                f"predict() gave a {found}, expected a list of {rows} dicts{_NO_LIST.get(found, '')}"
            )
        if len(outputs) != rows:
            raise InvalidOutput(f"predict() gave {len(outputs)} rows, expected a list of {rows} dicts")
        answers: list[dict[str, Any]]
        try:
            msgspec.convert(outputs, self._type)
            answers = [row.copy() for row in outputs]
            for name, rank in self._shaped:
                for row in answers:
                    row[name] = _copied(row.get(name), rank)
        except msgspec.ValidationError:
            # numpy scalars and arrays are fine as values; they are made plain before the second look.
            answers = [self._plain_row(row) for row in outputs]
            try:
                msgspec.convert(answers, self._type)
            except msgspec.ValidationError as error:
                kind = InvalidOutput if _OF_THE_VALUE.search(str(error)) else WrongForm
                raise kind(f"predict() gave a bad row: {error}") from None
        for name in self._optional:
            for row in answers:
                row.setdefault(name, None)
        for name in self._wide:
            for row in answers:
                if largest(row[name]) > MOST_UINT64:
                    raise InvalidOutput(f"predict() gave a bad row: {name} is above {MOST_UINT64}")
        return answers

    def _plain_row(self, row: Any) -> Any:
        plain = _plain(row)
        if isinstance(plain, dict):
            for name in self._maybe_nan & plain.keys():
                value = plain[name]
                if isinstance(value, float) and math.isnan(value):
                    plain[name] = None  # what numpy and pandas have in its place
        return plain


def _copied(value: Any, rank: int) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return list(value) if rank == 1 else [_copied(item, rank - 1) for item in value]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
