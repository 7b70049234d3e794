"""MLflow: the signature that was logged, and the example of inputs, if there is one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import StartupError
from serving.inference.examples import different_rows
from serving.looking.found import ROWS, SIZES, Asked, Found, column
from serving.runtimes.mlflow import UNNAMED, as_asked, as_named, input_schema, read_mlflow
from serving.spec import Column

TYPES = {"boolean": "bool", "integer": "int64", "long": "int64", "float": "float64", "double": "float64",
         "string": "object", "datetime": "object"}  # fmt: skip


def look_mlflow(path: Path, asked: Asked) -> Found:
    model = read_mlflow(path, trust_pickle=asked.trust_pickle)
    schema = input_schema(model, path)
    flavours = ", ".join(name for name in model.metadata.flavors if name != "python_function")
    runtime = {"kind": "mlflow", "file": path.name, "trust_pickle": True}
    found = Found(f"an MLflow model ({flavours or 'a Python function'})", runtime, [], [])
    found.inputs = _tensors(schema, found) if schema.is_tensor_spec() else _columns(schema, path)
    columns = tuple(Column.model_validate(one) for one in found.inputs)
    found.rows = _example(model, path, columns) or different_rows(columns, ROWS)
    for one in schema.inputs:
        if str(one.type).lower().endswith("datetime"):
            for row in found.rows:
                row[one.name] = str(row[one.name]) if "-" in str(row[one.name]) else "2026-01-31T12:00:00"
            found.guessed.append(f"{one.name}: a time travels as text, such as 2026-01-31T12:00:00")
    arrays = {one.name: np.array([row[one.name] for row in found.rows], dtype=_dtype(one)) for one in columns}
    answers = as_named(model.predict(as_asked(schema, arrays)))
    found.outputs = [column(name, answer.dtype, answer.shape[1:]) for name, answer in answers.items()]
    found.guessed.append("outputs: without bounds; write minimum and maximum where you know them")
    return found


def _columns(schema: Any, path: Path) -> list[dict[str, Any]]:
    columns = []
    for one in schema.inputs:
        kind = str(one.type).lower().rpartition(".")[2]
        if kind not in TYPES:
            raise StartupError(
                f"{path}: its input {one.name} is a {one.type}, which no column can hold; write a handler.py"
            )
        optional: dict[str, Any] = (
            {} if getattr(one, "required", True) or TYPES[kind] != "float64" else {"nullable": True}
        )
        columns.append(column(str(one.name), TYPES[kind], **optional))
    if None in [one.name for one in schema.inputs]:
        return [column(UNNAMED, "float64", [len(columns)])]
    return columns


def _tensors(schema: Any, found: Found) -> list[dict[str, Any]]:
    columns = []
    for one in schema.inputs:
        name = one.name or UNNAMED
        sizes = list(one.shape)[1:]
        if any(size < 1 for size in sizes):
            found.guessed.append(
                f"{name}: shape {one.shape} leaves a size free, {SIZES[0]} was taken; write yours"
            )
        columns.append(column(name, one.type, [size if size > 0 else SIZES[0] for size in sizes]))
    return columns


def _example(model: Any, path: Path, columns: tuple[Column, ...]) -> list[dict[str, Any]]:
    """The first rows that were logged as an example, if they have all the columns."""
    example: Any = None
    with contextlib.suppress(Exception):  # an old form of it, or a file that is gone: rows are made up then
        example = model.metadata.load_input_example(str(path))
    if not hasattr(example, "to_dict") or {column.name for column in columns} - set(
        map(str, example.columns)
    ):
        return []
    rows = example[[column.name for column in columns]].head(ROWS).to_dict("records")
    return [
        {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
        for row in rows
    ]


def _dtype(column: Column) -> Any:
    return {"number": "float64", "integer": "int64", "boolean": "bool"}.get(column.type, object)
