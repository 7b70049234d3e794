"""Example rows out of a signature: for the warm-up before ready and for the examples in /docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.spec import Column, ModelFile


def example_value(column: Column) -> Any:
    """A value that the column accepts."""
    value: Any
    if column.type == "boolean":
        value = False
    elif column.type == "string":
        value = "text"
    else:
        low, high = column.minimum, column.maximum
        if low is not None and high is not None:
            value = (low + high) / 2
        else:
            value = low if low is not None else high if high is not None else 0.0
        if column.type == "integer":
            value = int(value) if low is None or int(value) >= low else int(value) + 1
    for dimension in reversed(column.shape):
        value = [value] * dimension
    return value


def example_row(columns: tuple[Column, ...]) -> dict[str, Any]:
    return {column.name: example_value(column) for column in columns}


def recorded_instances(folder: Path) -> list[Any]:
    """The instances of the first recorded sample that must be answered; none without samples.jsonl."""
    path = folder / "samples.jsonl"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                sample = json.loads(line)
                if sample.get("status", 200) == 200:
                    return list(sample["instances"])
    return []


def instances_for(model: ModelFile, folder: Path) -> tuple[list[Any], bool]:
    """Rows to warm up with, and whether they are recorded ones (which the model must be able to answer)."""
    recorded = recorded_instances(folder)
    if recorded:
        return recorded, True
    return [example_row(model.signature.inputs)], False
