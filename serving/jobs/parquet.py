"""The rows of a Parquet file, within budgets that are counted after decoding.

A file of three hundred bytes may stand for gigabytes: a value is stored once and repeated by number, a page
is compressed, a string is stored as what it shares with the one before. So the footer is read first and a
file that grows too much is refused before a page is decoded; repeated values stay numbers until their row is
written; and no batch has more rows than fit into a fixed amount of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from serving.errors import BadRequest, Invalid
from serving.spec import Column, ModelFile

_BATCH_ROWS = 256
_BATCH_BYTES = 64 << 20
_ELEMENT_BYTES = 40
"""Of a number as a Python object in a list."""
_STRING_BYTES = 64 << 10
"""The longest string that a model takes; see the codec."""
_GROWTH = 200
"""By so many times the pages of one column chunk may grow when they are decompressed."""
_FREE_BYTES = 64 << 20
"""Chunks below this may grow as they like."""
_TAKES_TURNS = frozenset({"DELTA_BYTE_ARRAY"})
"""Encodings whose strings build upon each other: a page of a few bytes may hold any number of long ones."""


def parquet_rows(stream: BinaryIO, model: ModelFile) -> Iterator[bytes]:
    """Each row as a JSON object. BadRequest when it is not Parquet, Invalid when it does not fit."""
    import pyarrow  # half a second that servers without such jobs save
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
        columns = _checked_columns(table, model)
        _check_growth(table.metadata, columns, model.serving.jobs.max_rows)
        paths = [table.schema.column(place) for place in range(len(table.schema))]
        words = [path.path for path in paths if path.physical_type == "BYTE_ARRAY"]
        # Opened anew: only now it is known what to leave encoded.
        stream.seek(0)
        table = pyarrow.parquet.ParquetFile(stream, read_dictionary=words)
        size = _batch_rows(list(columns.values()))
        limit = model.serving.limits.max_body_bytes
        number = 0
        for batch in table.iter_batches(batch_size=size):
            for row in _rows(batch):
                number += 1
                if len(row) > limit:
                    raise Invalid(f"row {number} has more than {limit} bytes as JSON")
                yield row
    except (pyarrow.ArrowException, OSError) as error:
        raise BadRequest(f"the input is not Parquet: {str(error).splitlines()[0][:200]}") from None
    except TypeError as error:
        raise Invalid(f"a column holds what JSON cannot: {error}") from None


def _checked_columns(table: Any, model: ModelFile) -> dict[str, Column]:
    """The model's columns that the file has. Invalid."""
    given = list(table.schema_arrow.names)
    if len(set(given)) < len(given):
        raise Invalid("two columns have the same name")
    columns = {column.name: column for column in model.signature.inputs}
    for name in sorted(set(given) - columns.keys()):
        raise Invalid(f"unknown column {name}; the model takes {', '.join(columns)}")
    for name, column in columns.items():
        if name not in given and not column.nullable:
            raise Invalid(f"column {name} is missing")
    if table.metadata.num_columns != len(given):
        raise Invalid("a column holds records; give plain values or lists of them")
    return {name: columns[name] for name in given}


def _check_growth(metadata: Any, columns: dict[str, Column], most_rows: int) -> None:
    """Invalid when the footer says that decoding would take more than a job may."""
    if metadata.num_rows > most_rows:
        raise Invalid(f"a job may have at most {most_rows} rows; the file has {metadata.num_rows}")
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        for place, (name, column) in enumerate(columns.items()):
            chunk = group.column(place)
            elements = max(1, column.elements)
            if chunk.num_values > group.num_rows * elements:
                raise Invalid(f"column {name} has rows of more than {elements} values")
            if chunk.total_uncompressed_size > max(_FREE_BYTES, _GROWTH * chunk.total_compressed_size):
                raise Invalid(
                    f"column {name} grows from {chunk.total_compressed_size} bytes to "
                    f"{chunk.total_uncompressed_size}; send smaller row groups, or JSON Lines"
                )
            if not _TAKES_TURNS.isdisjoint(chunk.encodings):
                raise Invalid(
                    f"column {name} is encoded as DELTA_BYTE_ARRAY; write it PLAIN or as dictionary"
                )


def _batch_rows(columns: list[Column]) -> int:
    """How many rows are decoded at once."""
    row = sum(
        max(1, column.elements)
        * (_STRING_BYTES if column.type == "string" and column.shape else _ELEMENT_BYTES)
        for column in columns
    )
    return min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(row, 1)))


def _rows(batch: Any) -> Iterator[bytes]:
    names = [orjson.dumps(name) for name in batch.schema.names]
    columns = [_values(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
        yield b"{%s}" % b",".join([b"%s:%s" % pair for pair in zip(names, values, strict=True)])


def _values(column: Any) -> Iterator[bytes]:
    """Each value as JSON; one that many rows share is written once and shared."""
    import pyarrow

    if not pyarrow.types.is_dictionary(column.type):
        yield from map(_json, column.to_pylist())
        return
    written: dict[int | None, bytes] = {None: b"null"}
    for index in column.indices.to_pylist():
        if index not in written:
            written[index] = _json(column.dictionary[index].as_py())
        yield written[index]


def _json(value: Any) -> bytes:
    """Data frames say null with NaN. JSON has no infinity; a number beyond all floats stands for it, which
    fails the row as infinity would."""
    if isinstance(value, float) and not math.isfinite(value):
        return b"null" if math.isnan(value) else b"1e999" if value > 0 else b"-1e999"
    if isinstance(value, list):
        return b"[%s]" % b",".join([_json(item) for item in value])
    return orjson.dumps(value)
