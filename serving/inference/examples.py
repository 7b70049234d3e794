"""Example rows out of a signature: for the warm-up before ready and for the examples in /docs."""

from __future__ import annotations

import json
import math
import random
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


def different_rows(columns: tuple[Column, ...], number: int) -> list[dict[str, Any]]:
    """Rows that the columns accept and that differ from each other; the same ones at every start."""
    return [
        {column.name: _drawn(column, random.Random(f"{column.name}/{row}"), row) for column in columns}
        for row in range(number)
    ]


def _drawn(column: Column, chance: random.Random, row: int) -> Any:
    def value() -> Any:
        if column.type == "boolean":
            return bool((row + chance.randrange(2)) % 2) if column.shape else bool(row % 2)
        if column.type == "string":
            return ("text", "another text", "more")[row % 3] + (f" {chance.randrange(9)}" if row > 2 else "")
        low, high = column.minimum, column.maximum
        if column.type == "integer":
            # Without bounds it may be the number of a word or a class, of which few are sure to be there.
            least = math.ceil(low) if low is not None else min(0, math.floor(high or 0))
            most = math.floor(high) if high is not None else least + 2
            return least + (chance.randint(0, most - least) if column.shape else row % (most - least + 1))
        return round(chance.uniform(*_around_zero(low, high)), 4)

    def nested(shape: tuple[int, ...]) -> Any:
        return [nested(shape[1:]) for _ in range(shape[0])] if shape else value()

    return nested(column.shape)


def _around_zero(low: float | None, high: float | None) -> tuple[float, float]:
    """A range of ordinary numbers within the bounds."""
    least, most = -1.0 if low is None else max(low, -1.0), 1.0 if high is None else min(high, 1.0)
    if least < most:
        return least, most
    return (low, low + 1.0) if low is not None and high is None else (low or 0.0, high or 0.0)


def recorded_instances(folder: Path, most: int = 1) -> list[Any]:
    """The instances of the first recorded samples that must be answered; none without samples.jsonl."""
    path = folder / "samples.jsonl"
    if not path.is_file():
        return []
    instances: list[Any] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                sample = json.loads(line)
                if sample.get("status", 200) == 200:
                    instances += sample["instances"]
                    most -= 1
                    if not most:
                        break
    return instances


def instances_for(model: ModelFile, folder: Path) -> tuple[list[Any], bool]:
    """Rows to warm up with, and whether they are recorded ones (which the model must be able to answer)."""
    recorded = recorded_instances(folder)
    if recorded:
        return recorded, True
    return [example_row(model.signature.inputs)], False
