"""One input or output tensor: between the protocol's JSON or binary data and a checked numpy array.

Client mistakes are BadRequest here (the protocol's clients expect 400), each naming the tensor.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import numpy as np

from serving.arrays import Array
from serving.errors import BadRequest
from serving.inference.codec import MAX_STRING, NUMPY, value_type
from serving.spec import Column, Datatype

_LENGTH = struct.Struct("<I")


class InputTensor:
    """Reads the values of one input column."""

    def __init__(self, column: Column, datatype: Datatype) -> None:
        self.column = column
        self.datatype = datatype
        self._dtype = np.dtype(NUMPY[datatype])
        flat: Any = value_type(column.model_copy(update={"shape": ()}), datatype)
        self._flat = msgspec.json.Decoder(list[flat])
        kind: Any = flat
        self._nested = []
        # [n, *shape] as nested lists; scalars may also come as [n, 1].
        for _ in range(len(column.shape) + 2):
            kind = list[kind]
            self._nested.append(msgspec.json.Decoder(kind))

    def rows(self, shape: list[int]) -> int:
        """The number of rows that this shape means; BadRequest when it is not the column's."""
        expected = list(self.column.shape)
        if (
            len(shape) >= 1
            and shape[0] >= 1
            and (shape[1:] == expected or (not expected and shape[1:] == [1]))
        ):
            return shape[0]
        raise BadRequest(f"input {self.column.name}: shape {shape} is not {[-1, *expected]}")

    def from_json(self, data: msgspec.Raw, shape: list[int]) -> Array:
        """The array (rows, *shape) out of flat or nested JSON data."""
        raw = bytes(data)
        nested = raw[1:].lstrip().startswith(b"[")
        decoder = self._nested[len(shape) - 1] if nested else self._flat
        try:
            values = decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = str(error).replace("`", "")
            raise BadRequest(f"input {self.column.name}: {message}") from None
        try:
            # A null has no place in arrays but those of floats and of objects.
            maybe_null = self.column.nullable and self._dtype.kind != "f"
            array = np.array(values, dtype=np.object_ if maybe_null else self._dtype)
        except ValueError:
            raise BadRequest(f"input {self.column.name}: the nested lists have different lengths") from None
        except OverflowError:
            raise BadRequest(f"input {self.column.name}: a value is too large for {self.datatype}") from None
        if array.size != shape[0] * self.column.elements or (nested and list(array.shape) != shape):
            raise BadRequest(f"input {self.column.name}: {array.size} values do not fill the shape {shape}")
        return array.reshape((shape[0], *self.column.shape))

    def from_binary(self, data: memoryview, shape: list[int]) -> Array:
        """The array (rows, *shape) out of raw little-endian data; read-only and not aligned."""
        count = shape[0] * self.column.elements
        if self.datatype == "BYTES":
            values: Array = np.array(self._strings(data, count), dtype=object)
        else:
            if len(data) != count * self._dtype.itemsize:
                raise BadRequest(
                    f"input {self.column.name}: {len(data)} bytes, {count} values of {self.datatype} take "
                    f"{count * self._dtype.itemsize}"
                )
            values = np.frombuffer(data, dtype=np.uint8 if self.datatype == "BOOL" else self._dtype)
            if self.datatype == "BOOL":
                if values.size and values.max() > 1:
                    raise BadRequest(f"input {self.column.name}: a BOOL is one byte, 0 or 1")
                values = values.astype(np.bool_)
            self._check_range(values)
        return values.reshape((shape[0], *self.column.shape))

    def nulls(self, rows: int) -> Array:
        """What stands for a nullable input that was left out."""
        shape = (rows, *self.column.shape)
        if self._dtype.kind == "f":
            return np.full(shape, np.nan, dtype=self._dtype)
        return np.full(shape, None, dtype=object)

    def _check_range(self, values: Array) -> None:
        column = self.column
        if self._dtype.kind == "f" and not np.isfinite(values).all():
            finite_or_null = (
                np.isfinite(values) | np.isnan(values) if column.nullable else np.isfinite(values)
            )
            if not finite_or_null.all():
                index = int(np.flatnonzero(~finite_or_null)[0])
                raise BadRequest(f"input {column.name}: value {index} is NaN or infinite")
        if column.minimum is not None and (values < column.minimum).any():
            raise BadRequest(f"input {column.name}: a value is below the minimum {column.minimum:g}")
        if column.maximum is not None and (values > column.maximum).any():
            raise BadRequest(f"input {column.name}: a value is above the maximum {column.maximum:g}")

    def _strings(self, data: memoryview, count: int) -> list[str]:
        strings: list[str] = []
        position = 0
        name = self.column.name
        while position < len(data):
            if len(strings) == count:
                raise BadRequest(f"input {name}: more than {count} strings")
            if position + 4 > len(data):
                raise BadRequest(f"input {name}: truncated in the length of string {len(strings)}")
            (length,) = _LENGTH.unpack_from(data, position)
            position += 4
            if position + length > len(data):
                raise BadRequest(f"input {name}: truncated in string {len(strings)}")
            try:
                text = str(data[position : position + length], "utf-8")
            except UnicodeDecodeError:
                raise BadRequest(f"input {name}: string {len(strings)} is not UTF-8") from None
            if len(text) > MAX_STRING:
                raise BadRequest(f"input {name}: string {len(strings)} is longer than {MAX_STRING}")
            strings.append(text)
            position += length
        if len(strings) != count:
            raise BadRequest(f"input {name}: {len(strings)} strings, the shape means {count}")
        return strings


def to_binary(array: Array, datatype: Datatype) -> bytes:
    """An output's raw little-endian data; BadRequest when it holds a null that the format cannot express."""
    if datatype == "BYTES":
        parts = []
        for value in array.reshape(-1):
            if value is None:
                raise BadRequest("an output holds null, which binary data cannot express; ask for JSON")
            encoded = str(value).encode()
            parts += [_LENGTH.pack(len(encoded)), encoded]
        return b"".join(parts)
    if array.dtype == object and None in array.reshape(-1).tolist():
        raise BadRequest("an output holds null, which binary data cannot express; ask for JSON")
    return array.astype(NUMPY[datatype], copy=False).tobytes()
