"""What travels through the batcher: some rows of input, and the rows of output that belong to them.

There are two shapes of both. Models that compute on tensors take columns; handlers take one dict a row.
A column of a payload may still be a plain list: one conversion of a whole batch costs a fraction of one a
request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class TensorPayload:
    """Rows of a tensor model: for each input a list of row values or an array (rows, *shape)."""

    __slots__ = ("columns", "count", "size")

    def __init__(self, count: int, columns: list[list[Any] | Array], size: int) -> None:
        self.count = count
        self.columns = columns
        self.size = size
        """Bytes these rows take as arrays."""

    def part(self, start: int, stop: int) -> TensorPayload:
        columns = [column[start:stop] for column in self.columns]
        return TensorPayload(stop - start, columns, self.size * (stop - start) // self.count)

    def pick(self, rows: Sequence[int]) -> TensorPayload:
        columns: list[list[Any] | Array] = [
            column[list(rows)] if isinstance(column, np.ndarray) else [column[row] for row in rows]
            for column in self.columns
        ]
        return TensorPayload(len(rows), columns, self.size * len(rows) // self.count)


class RecordPayload:
    """Rows of a handler: one dict by input name a row; tensor inputs are numpy arrays in it."""

    __slots__ = ("count", "rows", "size")

    def __init__(self, count: int, rows: list[dict[str, Any]], size: int) -> None:
        self.count = count
        self.rows = rows
        self.size = size

    def part(self, start: int, stop: int) -> RecordPayload:
        return RecordPayload(stop - start, self.rows[start:stop], self.size * (stop - start) // self.count)

    def pick(self, rows: Sequence[int]) -> RecordPayload:
        return RecordPayload(len(rows), [self.rows[row] for row in rows], self.size * len(rows) // self.count)


class TensorResult:
    """Output arrays (rows, *shape) in the order of the signature."""

    __slots__ = ("columns", "count")

    def __init__(self, count: int, columns: list[Array]) -> None:
        self.count = count
        self.columns = columns


class RecordResult:
    """One dict by output name a row."""

    __slots__ = ("count", "rows")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.count = len(rows)
        self.rows = rows


Payload = TensorPayload | RecordPayload
Result = TensorResult | RecordResult


def joined(results: Sequence[Result]) -> Result:
    """One result out of the consecutive parts of a split request."""
    if len(results) == 1:
        return results[0]
    first = results[0]
    if isinstance(first, RecordResult):
        return RecordResult([row for part in results if isinstance(part, RecordResult) for row in part.rows])
    parts = [part.columns for part in results if isinstance(part, TensorResult)]
    columns = [np.concatenate([part[index] for part in parts]) for index in range(len(first.columns))]
    return TensorResult(sum(part.count for part in results), columns)


def separated(result: Result) -> list[Result]:
    """Results of one row each."""
    if isinstance(result, RecordResult):
        return [RecordResult([row]) for row in result.rows]
    return [
        TensorResult(1, [column[row : row + 1] for column in result.columns]) for row in range(result.count)
    ]


def joined_payload(payloads: Sequence[Payload]) -> Payload:
    """One payload out of several of the same kind."""
    if len(payloads) == 1:
        return payloads[0]
    first = payloads[0]
    count, size = sum(payload.count for payload in payloads), sum(payload.size for payload in payloads)
    if isinstance(first, RecordPayload):
        rows = [row for payload in payloads if isinstance(payload, RecordPayload) for row in payload.rows]
        return RecordPayload(count, rows, size)
    parts = [payload.columns for payload in payloads if isinstance(payload, TensorPayload)]
    columns: list[list[Any] | Array] = [
        [value for part in parts for value in part[index]] for index in range(len(first.columns))
    ]
    return TensorPayload(count, columns, size)
