"""The rows of a job, out of JSON, JSON Lines or Parquet. Runs in a thread, a row at a time.

What breaks the format refuses the whole job; a row that breaks the signature fails alone, when it is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Literal

import msgspec
import orjson

from serving.errors import BadRequest, Invalid, Unsupported
from serving.inference.codec import invalid
from serving.spec import ModelFile

Format = Literal["json", "jsonl", "parquet"]

_MEDIA: dict[bytes, Format] = {
    b"": "json",
    b"application/json": "json",
    b"application/jsonl": "jsonl",
    b"application/x-ndjson": "jsonl",
    b"application/jsonlines": "jsonl",
    b"application/vnd.apache.parquet": "parquet",
    b"application/x-parquet": "parquet",
}
_SUFFIXES: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_PARQUET_ROWS = 256


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A body in JSON: the rows themselves, or where they are. A null is no way to leave a field out."""

    instances: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    input_uri: str | msgspec.UnsetType = msgspec.UNSET
    format: Format | msgspec.UnsetType = msgspec.UNSET


def format_of_media(content_type: bytes) -> Format:
    """Unsupported for anything but the three."""
    media = content_type.split(b";", 1)[0].strip().lower()
    if media not in _MEDIA:
        raise Unsupported("a job's body is application/json, application/jsonl or application/x-parquet")
    return _MEDIA[media]


def format_of_uri(uri: str, stated: Format | msgspec.UnsetType) -> Format:
    """By the suffix unless it is stated; JSON Lines when neither says."""
    return stated or _SUFFIXES.get("." + uri.rpartition(".")[2], "jsonl")


def uri_pattern(folders: Sequence[str]) -> str:
    """What an `input_uri` must look like. Clients choose what the server reads, so it reads only below
    folders that are meant for it, and fsspec's own words (`..`, `*`, `::`) are no part of a name."""
    below = "|".join(re.escape(folder.rstrip("/")) for folder in folders)
    return rf"^({below})(/[A-Za-z0-9_=-][A-Za-z0-9_=.-]*)+$"


def read_request(body: bytes) -> JobRequest:
    try:
        return msgspec.json.decode(body, type=JobRequest)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def rows_of(stream: BinaryIO, form: Format, model: ModelFile) -> Iterator[bytes]:
    """Each row as one JSON value without line breaks. BadRequest or Invalid when the input cannot be read."""
    limit = model.serving.jobs.max_body_bytes
    if form == "parquet":
        yield from _parquet_rows(stream, model)
    elif form == "jsonl":
        yield from _lines(stream, model.serving.limits.max_body_bytes)
    else:
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise Invalid(f"JSON is read in one piece, of {limit} bytes at most; send JSON Lines")
        yield from instance_rows(read_request(body))


def instance_rows(request: JobRequest) -> Iterator[bytes]:
    if not request.instances:
        raise Invalid("Expected instances with at least one row", pointer="#/instances")
    for index, value in enumerate(request.instances):
        yield _plain(bytes(value), f"instance {index}")


def _lines(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise BadRequest(f"line {number} has more than {limit} bytes")
        if line.strip():
            yield _plain(line, f"line {number}")


def _plain(value: bytes, where: str) -> bytes:
    """Written anew: free of line breaks, and surely one value."""
    try:
        return orjson.dumps(orjson.loads(value))
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{where} is not JSON: {error}") from None


def _parquet_rows(stream: BinaryIO, model: ModelFile) -> Iterator[bytes]:
    import pyarrow  # half a second that servers without such jobs save
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
        given = set(table.schema_arrow.names)
        if len(given) < len(table.schema_arrow.names):
            raise Invalid("two columns have the same name")
        columns = {column.name: column for column in model.signature.inputs}
        for name in sorted(given - columns.keys()):
            raise Invalid(f"unknown column {name}; the model takes {', '.join(columns)}")
        for name, column in columns.items():
            if name not in given and not column.nullable:
                raise Invalid(f"column {name} is missing")
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
            for row in batch.to_pylist():
                yield b"{%s}" % b",".join(
                    b"%s:%s" % (orjson.dumps(name), _json(value)) for name, value in row.items()
                )
    except (pyarrow.ArrowException, OSError) as error:
        raise BadRequest(f"the input is not Parquet: {str(error).splitlines()[0][:200]}") from None
    except TypeError as error:
        raise Invalid(f"a column holds what JSON cannot: {error}") from None


def _json(value: Any) -> bytes:
    """Data frames say null with NaN. JSON has no infinity; a number beyond all floats stands for it, which
    fails the row as infinity would."""
    if isinstance(value, float) and not math.isfinite(value):
        return b"null" if math.isnan(value) else b"1e999" if value > 0 else b"-1e999"
    if isinstance(value, list):
        return b"[%s]" % b",".join([_json(item) for item in value])
    return orjson.dumps(value)
