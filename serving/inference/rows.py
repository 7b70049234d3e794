"""What travels through the batcher: some rows of input, and the rows of output that belong to them.

There are two shapes of both. Models that compute on tensors take columns; handlers take one dict a row.
A column of a payload may still be a plain list: one conversion of a whole batch costs a fraction of one a
request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.arrays import Array


class Vectors:
    """A column of one float vector a row, as bytes. For the cache, whose keys are made of them: packing takes
    a fifth of the time of making an array, and a batch joins the bytes of its requests in one step."""

    __slots__ = ("_content", "_dtype", "_stride")

    def __init__(self, content: bytes, dtype: Any, stride: int) -> None:
        self._content = content
        self._dtype = dtype
        self._stride = stride

    def content(self, row: int) -> bytes:
        """The bytes of one row's values."""
        return self._content[row * self._stride : (row + 1) * self._stride]

    def part(self, start: int, stop: int) -> Vectors:
        return Vectors(self._content[start * self._stride : stop * self._stride], self._dtype, self._stride)

    def pick(self, rows: Sequence[int]) -> Vectors:
        return Vectors(b"".join([self.content(row) for row in rows]), self._dtype, self._stride)

    def __getitem__(self, row: int) -> Array:
        return np.frombuffer(self.content(row), self._dtype)

    @staticmethod
    def joined(parts: Sequence[Vectors]) -> Vectors:
        first = parts[0]
        content = b"".join([part._content for part in parts]) if len(parts) > 1 else first._content
        return Vectors(content, first._dtype, first._stride)

    def array(self) -> Array:
        """(rows, width), with memory of its own that may be written to."""
        array: Array = np.frombuffer(bytearray(self._content), self._dtype)
        return array.reshape(-1, self._stride // array.itemsize)


Values = list[Any] | Array | Vectors
"""A column of a payload."""


class TensorPayload:
    """Rows of a tensor model, one column an input."""

    __slots__ = ("columns", "count", "counted", "size")

    def __init__(self, count: int, columns: list[Values], size: int, counted: bool = True) -> None:
        self.count = count
        self.columns = columns
        self.size = size
        """Bytes these rows take as arrays."""
        self.counted = counted
        """Whether the answer to the first of these rows is noted as the release's. Only one of a request is,
        since whoever sends them chooses them all; and none of a job or of one who has chosen the release."""

    def part(self, start: int, stop: int) -> TensorPayload:
        columns: list[Values] = [
            column.part(start, stop) if isinstance(column, Vectors) else column[start:stop]
            for column in self.columns
        ]
        size = self.size * (stop - start) // self.count
        return TensorPayload(stop - start, columns, size, self.counted and start == 0)

    def pick(self, rows: Sequence[int]) -> TensorPayload:
        columns = [_picked(column, rows) for column in self.columns]
        return TensorPayload(len(rows), columns, self.size * len(rows) // self.count, self.counted)


class RecordPayload:
    """Rows of a handler: one dict by input name a row; tensor inputs are numpy arrays in it."""

    __slots__ = ("count", "counted", "rows", "size")

    def __init__(self, count: int, rows: list[dict[str, Any]], size: int, counted: bool = True) -> None:
        self.count = count
        self.rows = rows
        self.size = size
        self.counted = counted

    def part(self, start: int, stop: int) -> RecordPayload:
        size = self.size * (stop - start) // self.count
        return RecordPayload(stop - start, self.rows[start:stop], size, self.counted and start == 0)

    def pick(self, rows: Sequence[int]) -> RecordPayload:
        size = self.size * len(rows) // self.count
        return RecordPayload(len(rows), [self.rows[row] for row in rows], size, self.counted)


def noted(payloads: Sequence[Payload]) -> list[int]:
    """Of a batch of these, the rows whose answers are noted."""
    rows, start = [], 0
    for payload in payloads:
        if payload.counted:
            rows.append(start)
        start += payload.count
    return rows


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
    columns = [_together([part[index] for part in parts]) for index in range(len(first.columns))]
    return TensorPayload(count, columns, size)


def _together(parts: Sequence[Values]) -> Values:
    packed = [part for part in parts if isinstance(part, Vectors)]
    if len(packed) == len(parts):
        return Vectors.joined(packed)
    return [value for part in parts for value in (part.array() if isinstance(part, Vectors) else part)]


def _picked(column: Values, rows: Sequence[int]) -> Values:
    if isinstance(column, Vectors):
        return column.pick(rows)
    return column[list(rows)] if isinstance(column, np.ndarray) else [column[row] for row in rows]
