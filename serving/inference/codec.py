"""JSON in, JSON out: `{"instances": […]}` checked against the signature while it is parsed.

msgspec's typed decoder does the checking in C during the parse. It is the one that neither turns `null`
into NaN nor `true` or `"1"` into numbers, and its range checks refuse NaN and values that overflow the
datatype. A codec never looks at a whole batch: that is the engine's.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import orjson

from serving.arrays import Array
from serving.errors import BadRequest, Invalid
from serving.inference.rows import (
    Payload,
    RecordPayload,
    RecordResult,
    Result,
    TensorPayload,
    TensorResult,
    Values,
    Vectors,
)
from serving.spec import Column, Datatype, ModelFile

NUMPY: dict[Datatype, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
_STRUCT = {np.float32: "f", np.float64: "d"}
MAX_STRING = 65536
MOST_UINT64 = 2**64 - 1
_EAGER_ELEMENTS = 2048
"""Payloads with more values become arrays at once: as Python floats they would take ten times the memory."""
_AT = re.compile(r" - at `\$(.*)`$", re.DOTALL)
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.([^.\[]+)")


class Codec(Protocol):
    """Between the bytes of /predict and what the batcher carries."""

    def decode(self, body: bytes) -> Payload:
        """Parse and check a request body; BadRequest for bad JSON, Invalid for a bad field."""

    def payload(self, columns: dict[str, Array]) -> Payload:
        """Rows out of checked arrays (rows, *shape), one an input."""

    def encode(self, result: Result) -> bytes:
        """The body of the answer."""

    def fragments(self, result: Result) -> list[bytes]:
        """Each row's prediction as JSON, to be kept for a while."""

    def arrays(self, result: Result) -> dict[str, Array]:
        """Outputs by name as arrays (rows, *shape)."""

    def features(self, payload: Payload, row: int) -> dict[str, Any]:
        """Inputs of one row by name, ready for JSON (arrays allowed)."""

    def prediction(self, result: Result, row: int) -> dict[str, Any]:
        """Outputs of one row by name, ready for JSON (arrays allowed)."""

    def canonical(self, payload: Payload, row: int) -> bytes:
        """Bytes that are equal exactly when the model sees equal input."""


def make_codec(model: ModelFile) -> Codec:
    if model.serving.runtime.kind == "handler":
        return RecordCodec(model)
    return TensorCodec(model)


class _Decoder:
    """The typed parse of `{"instances": […]}` for one signature, and its errors in our words."""

    def __init__(self, model: ModelFile) -> None:
        inputs = model.signature.inputs
        self.names = [column.name for column in inputs]
        fields: list[Any] = []
        for index, column in enumerate(inputs):
            kind = value_type(column, model.datatype(column))
            fields.append((f"f{index}", kind, None) if column.nullable else (f"f{index}", kind))
        self.row_type = msgspec.defstruct(
            "Row",
            fields,
            rename={f"f{index}": column.name for index, column in enumerate(inputs)},
            forbid_unknown_fields=True,
            kw_only=True,
        )
        self.single = len(inputs) == 1
        element: Any = self.row_type
        if self.single:
            element = self.row_type | value_type(inputs[0], model.datatype(inputs[0]))
        instances = Annotated[
            list[element], msgspec.Meta(min_length=1, max_length=model.serving.limits.max_rows)
        ]
        self._request: Any = msgspec.defstruct(
            "Request", [("instances", instances)], forbid_unknown_fields=True
        )
        self._decode = msgspec.json.Decoder(self._request).decode
        self._integers = {column.name for column in inputs if column.type == "integer"}
        # msgspec compares with 64-bit signed numbers only.
        self._wide = [
            (index, column.name) for index, column in enumerate(inputs) if model.datatype(column) == "UINT64"
        ]

    def rows(self, body: bytes) -> list[Any]:
        """The instances: row structs, or bare values of the only input."""
        try:
            rows: list[Any] = self._decode(body).instances  # type: ignore[attr-defined]
            if self._wide:
                self._check_wide(rows)
            return rows
        except msgspec.ValidationError as error:
            if self._integers and "Expected `int" in str(error) and "got `float`" in str(error):
                return self._with_whole_numbers(body)
            raise invalid(error) from None
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from None
        except UnicodeDecodeError as error:
            raise BadRequest(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
        except RecursionError:
            raise BadRequest("the body is nested too deeply") from None

    def _with_whole_numbers(self, body: bytes) -> list[Any]:
        """A second, slower look for clients whose JSON writes the integer 26 as 26.0, as it may."""
        content = msgspec.json.decode(body)
        if not isinstance(content, dict) or not isinstance(content.get("instances"), list):
            raise Invalid("Expected an object with the array instances", pointer="#")
        for row in content["instances"]:
            if isinstance(row, dict):
                for name in self._integers & row.keys():
                    row[name] = _whole(row[name])
        if self.single and self._integers:
            instances = content["instances"]
            content["instances"] = [row if isinstance(row, dict) else _whole(row) for row in instances]
        try:
            rows: list[Any] = msgspec.convert(content, self._request).instances
        except msgspec.ValidationError as error:
            raise invalid(error) from None
        if self._wide:
            self._check_wide(rows)
        return rows

    def _check_wide(self, rows: list[Any]) -> None:
        for number, row in enumerate(rows):
            for index, name in self._wide:
                named = type(row) is self.row_type
                if largest(getattr(row, f"f{index}") if named else row) > MOST_UINT64:
                    pointer = f"#/instances/{number}" + (f"/{name}" if named else "")
                    raise Invalid(f"Expected int <= {MOST_UINT64}", pointer=pointer)

    def values(self, body: bytes) -> list[Any]:
        """As `rows`, for a signature with one input: always bare values."""
        rows = self.rows(body)
        row_type = self.row_type
        if type(rows[0]) is row_type or (len(rows) > 1 and any(type(row) is row_type for row in rows)):
            return [row.f0 if type(row) is row_type else row for row in rows]  # type: ignore[attr-defined]
        return rows


class TensorCodec:
    """For models that take and give one array a column."""

    def __init__(self, model: ModelFile) -> None:
        self._decoder = _Decoder(model)
        self._inputs = model.signature.inputs
        self._outputs = [column.name for column in model.signature.outputs]
        self._dtypes = [NUMPY[model.datatype(column)] for column in self._inputs]
        self._single_output = len(self._outputs) == 1
        self._elements = sum(column.elements for column in self._inputs)
        vector = self._inputs[0]
        code = _STRUCT.get(self._dtypes[0])
        self._pack: Callable[..., bytes] | None = None
        if self._decoder.single and code is not None and len(vector.shape) == 1 and not vector.nullable:
            self._pack = struct.Struct(f"<{vector.elements}{code}").pack
        self._negative_zero = np.array(-0.0, self._dtypes[0]).tobytes() if self._pack is not None else b""
        self._row_bytes = sum(
            column.elements * np.dtype(dtype).itemsize
            for column, dtype in zip(self._inputs, self._dtypes, strict=True)
        )

    def decode(self, body: bytes) -> TensorPayload:
        columns: list[Values]
        if self._decoder.single:
            values = self._decoder.values(body)
            count, columns = len(values), [values]
        else:
            rows = [msgspec.structs.astuple(row) for row in self._decoder.rows(body)]
            count, columns = len(rows), [list(column) for column in zip(*rows, strict=True)]
        if count * self._elements > _EAGER_ELEMENTS:
            columns = [
                _shared(_as_array(column, dtype)) for column, dtype in zip(columns, self._dtypes, strict=True)
            ]
        return TensorPayload(count, columns, count * self._row_bytes)

    def payload(self, columns: dict[str, Array]) -> TensorPayload:
        arrays: list[Values] = [_shared(columns[column.name]) for column in self._inputs]
        count = len(columns[self._inputs[0].name])
        return TensorPayload(count, arrays, sum(array.nbytes for array in columns.values()))

    def encode(self, result: Result) -> bytes:
        assert isinstance(result, TensorResult)
        if self._single_output:
            return b'{"predictions":' + _json(result.columns[0]) + b"}"
        rows = zip(*[_items(column) for column in result.columns], strict=True)
        content = [dict(zip(self._outputs, row, strict=True)) for row in rows]
        return b'{"predictions":' + orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY) + b"}"

    def fragments(self, result: Result) -> list[bytes]:
        assert isinstance(result, TensorResult)
        if self._single_output:
            return [_kept(result.columns[0][row]) for row in range(result.count)]
        return [_kept(self.prediction(result, row)) for row in range(result.count)]

    def arrays(self, result: Result) -> dict[str, Array]:
        assert isinstance(result, TensorResult)
        return dict(zip(self._outputs, result.columns, strict=True))

    def features(self, payload: Payload, row: int) -> dict[str, Any]:
        assert isinstance(payload, TensorPayload)
        return {
            column.name: values[row] for column, values in zip(self._inputs, payload.columns, strict=True)
        }

    def prediction(self, result: Result, row: int) -> dict[str, Any]:
        assert isinstance(result, TensorResult)
        return {
            name: _items(column[row : row + 1])[0]
            for name, column in zip(self._outputs, result.columns, strict=True)
        }

    def canonical(self, payload: Payload, row: int) -> bytes:
        assert isinstance(payload, TensorPayload)
        columns = payload.columns
        only = columns[0]
        if self._pack is not None and not isinstance(only, np.ndarray):
            if isinstance(only, list):
                pack = self._pack
                packed = pack(*only[0]) if len(only) == 1 else b"".join([pack(*vector) for vector in only])
                columns[0] = only = Vectors(packed, self._dtypes[0], self._row_bytes)
            content = only.content(row)
            # Looking for the bytes of -0.0, which must become 0.0, is cheaper than adding 0.0 each time.
            return (only[row] + 0.0).tobytes() if self._negative_zero in content else content
        parts = []
        for index, dtype in enumerate(self._dtypes):
            values = columns[index]
            if dtype is np.object_:
                parts.append(orjson.dumps(values[row].tolist() if _is_array(values[row]) else values[row]))
                continue
            if isinstance(values, list):
                # The batch is made of the same arrays afterwards: one conversion for both.
                columns[index] = values = _shared(array_of(values, dtype))
            value = values[row]
            if value.dtype != dtype:
                value = value.astype(dtype)
            parts.append((value + 0.0 if value.dtype.kind == "f" else value).tobytes())
        return b"\0".join(parts) if len(parts) > 1 else parts[0]


class RecordCodec:
    """For handlers, which take and give one dict a row."""

    def __init__(self, model: ModelFile) -> None:
        self._decoder = _Decoder(model)
        self._columns = {column.name: NUMPY[model.datatype(column)] for column in model.signature.inputs}
        self._names = list(self._columns)
        self._nullable = {c.name for c in model.signature.inputs if c.nullable and not c.shape}
        self._shaped = [
            (column.name, NUMPY[model.datatype(column)]) for column in model.signature.inputs if column.shape
        ]
        self._outputs = [(column.name, NUMPY[model.datatype(column)]) for column in model.signature.outputs]
        self._single_output = self._outputs[0][0] if len(self._outputs) == 1 else None

    def decode(self, body: bytes) -> RecordPayload:
        names = self._names
        if self._decoder.single:
            rows = [{names[0]: value} for value in self._decoder.values(body)]
        else:
            astuple = msgspec.structs.astuple
            rows = [dict(zip(names, astuple(row), strict=True)) for row in self._decoder.rows(body)]
        for name, dtype in self._shaped:
            for row in rows:
                if row[name] is not None:
                    row[name] = np.array(row[name], dtype=dtype)
        return RecordPayload(len(rows), rows, len(body))

    def payload(self, columns: dict[str, Array]) -> RecordPayload:
        shaped = dict(self._shaped)
        values = [list(columns[name]) if name in shaped else columns[name].tolist() for name in self._names]
        for index, name in enumerate(self._names):
            if name in self._nullable:  # tensors say null with NaN
                values[index] = [None if value != value else value for value in values[index]]
        rows = [dict(zip(self._names, row, strict=True)) for row in zip(*values, strict=True)]
        size = sum(array.nbytes for array in columns.values())
        return RecordPayload(len(rows), rows, max(size, 1))

    def encode(self, result: Result) -> bytes:
        assert isinstance(result, RecordResult)
        content: Sequence[Any] = result.rows
        if self._single_output is not None:
            content = [row[self._single_output] for row in result.rows]
        return b'{"predictions":' + _json(content) + b"}"

    def fragments(self, result: Result) -> list[bytes]:
        assert isinstance(result, RecordResult)
        if self._single_output is not None:
            return [_kept(row[self._single_output]) for row in result.rows]
        return [_kept(row) for row in result.rows]

    def arrays(self, result: Result) -> dict[str, Array]:
        assert isinstance(result, RecordResult)
        return {name: _maybe_null([row[name] for row in result.rows], dtype) for name, dtype in self._outputs}

    def features(self, payload: Payload, row: int) -> dict[str, Any]:
        assert isinstance(payload, RecordPayload)
        return payload.rows[row]

    def prediction(self, result: Result, row: int) -> dict[str, Any]:
        assert isinstance(result, RecordResult)
        return result.rows[row]

    def canonical(self, payload: Payload, row: int) -> bytes:
        assert isinstance(payload, RecordPayload)
        values: list[Any] = []
        for name, dtype in self._columns.items():
            value = payload.rows[row][name]
            if value is None or dtype is np.object_:
                values.append(value.tolist() if _is_array(value) else value)
            elif _is_array(value):
                values.append((value + 0.0 if value.dtype.kind == "f" else value).tolist())
            else:
                values.append(value + 0.0 if dtype in (np.float16, np.float32, np.float64) else value)
        return orjson.dumps(values)


def value_type(column: Column, datatype: Datatype) -> Any:
    """The msgspec type of one row's value in a column, with ranges and lengths."""
    kind: Any
    if column.type == "number":
        limit = float(np.finfo(NUMPY[datatype]).max)
        low = -limit if column.minimum is None else max(column.minimum, -limit)
        high = limit if column.maximum is None else min(column.maximum, limit)
        kind = Annotated[float, msgspec.Meta(ge=low, le=high)]
    elif column.type == "integer":
        info = np.iinfo(NUMPY[datatype])
        lowest = info.min if column.minimum is None else max(int(np.ceil(column.minimum)), int(info.min))
        highest = info.max if column.maximum is None else min(int(np.floor(column.maximum)), int(info.max))
        # msgspec's bounds are 64-bit signed; an integer above them can only be a UINT64's.
        upper = None if highest > np.iinfo(np.int64).max else int(highest)
        kind = Annotated[
            int, msgspec.Meta(ge=int(lowest)) if upper is None else msgspec.Meta(ge=int(lowest), le=upper)
        ]
    elif column.type == "boolean":
        kind = bool
    else:
        kind = Annotated[str, msgspec.Meta(max_length=MAX_STRING)]
    for dimension in reversed(column.shape):
        kind = Annotated[list[kind], msgspec.Meta(min_length=dimension, max_length=dimension)]
    return kind | None if column.nullable else kind


def invalid(error: msgspec.ValidationError, root: str = "#") -> Invalid:
    """The error in RFC 9457's words, with the path as a JSON pointer."""
    message = str(error)
    found = _AT.search(message)
    pointer = root
    if found:
        message = message[: found.start()]
        for index, name in _STEP.findall(found.group(1)):
            pointer += "/" + (index or name.replace("~", "~0").replace("/", "~1"))
    return Invalid(message.replace("`", ""), pointer=pointer)


def largest(value: Any) -> int:
    """The largest of nested integers; 0 for none and for null."""
    if isinstance(value, list):
        return max((largest(item) for item in value), default=0)
    return value or 0


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)


def _items(column: Array) -> list[Any]:
    """Each row's value, ready for JSON: orjson writes arrays, but none of objects."""
    return column.tolist() if column.dtype == np.object_ else list(column)


def _maybe_null(values: list[Any], dtype: Any) -> Array:
    """An array of the datatype, or of objects where a value is null and the datatype has no NaN."""
    floats = np.issubdtype(dtype, np.floating)
    return np.array(values, dtype=dtype if floats or None not in values else np.object_)


def _json(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype == np.object_:
        value = value.tolist()
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _kept(value: Any) -> bytes:
    """As `_json`, in memory of its own: what orjson gives lies in a page of its own, and getting 30 000 of
    these a second from the kernel would cost more than writing the JSON does."""
    return b"%b" % _json(value)


def flattened(values: Sequence[Values], dtype: Any) -> Array:
    """One array out of the same column of several payloads."""
    lists = [part for part in values if isinstance(part, list)]
    if len(lists) == len(values):
        return array_of([row for part in lists for row in part] if len(lists) > 1 else lists[0], dtype)
    packed = [part for part in values if isinstance(part, Vectors)]
    if len(packed) == len(values):
        return Vectors.joined(packed).array()
    arrays = [_as_array(part, dtype) for part in values]
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _as_array(part: Values, dtype: Any) -> Array:
    if isinstance(part, Vectors):
        return part.array()
    return array_of(part, dtype) if isinstance(part, list) else np.asarray(part, dtype=dtype)


def _shared(array: Array) -> Array:
    """Read-only: a model that changes its input in place gets a copy, and who reads the rows later does
    not."""
    array.setflags(write=False)
    return array


def array_of(rows: list[Any], dtype: Any) -> Array:
    """As np.array(rows, dtype); vectors of floats go through `struct`, which takes a third of the time."""
    first = rows[0]
    code = _STRUCT.get(dtype)
    if code is not None and type(first) is list and type(first[0]) is float:
        try:
            packed = struct.pack(f"{len(rows) * len(first)}{code}", *itertools.chain.from_iterable(rows))
        except (struct.error, TypeError, OverflowError):  # a row that is null, say
            return np.array(rows, dtype=dtype)
        return np.frombuffer(bytearray(packed), dtype=dtype).reshape(len(rows), len(first))
    return np.array(rows, dtype=dtype)
