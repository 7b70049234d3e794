"""The rows of a job, out of JSON, JSON Lines or Parquet. Runs in a thread, a row at a time.

What breaks the format refuses the whole job; a row that breaks the signature fails alone, when it is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

import msgspec
import orjson

from serving.errors import BadRequest, Invalid, Unsupported
from serving.inference.codec import invalid
from serving.jobs.parquet import parquet_rows
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
        yield from parquet_rows(stream, model)
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


def within(rows: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    """The rows, as long as all of them together fit; Invalid. What a client has sent is small, what it stands
    for need not be: each row is written into the store."""
    size = 0
    for row in rows:
        size += len(row)
        if size > most_bytes:
            raise Invalid(
                f"the rows take more than {most_bytes} bytes as JSON Lines; make several jobs of them"
            )
        yield row
