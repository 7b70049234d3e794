"""Input of which a part was left out, and the answer or the job looked well."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from serving.encodings import decompressed
from serving.errors import BadRequest, Invalid, Problem, TooLarge
from serving.inference.codec import make_codec
from serving.jobs.inputs import rows_of
from serving.spec import read_model_file
from tests.serving.model_bundles import affine, people
from tests.serving.server_runs import threaded

ROW = [1.0, 2.0, 3.0, 4.0]
BODY = orjson.dumps({"instances": [ROW]})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with threaded(affine(tmp_path_factory.mktemp("affine"))) as server, server.client() as client:
        yield client


def send(client: httpx.Client, content: bytes, encoding: str) -> httpx.Response:
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    return client.post("/predict", content=content, headers=headers)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
@pytest.mark.parametrize("cut", [1, 9, len(BODY) - 1])
def test_every_member_of_a_gzip_body_is_read(client: httpx.Client, cut: int, encoding: str) -> None:
    """`cat a.gz b.gz`, pigz and log shippers write several members (urllib3/urllib3#1285,
    tornadoweb/tornado#3560): 10 of 30 rows came through."""
    parts = gzip.compress(BODY[:cut]) + gzip.compress(b"") + gzip.compress(BODY[cut:])
    answer = send(client, parts, encoding)
    assert answer.json() == {"predictions": [[3.0, 5.0, 7.0]]}
    assert send(client, parts + b"\0" * 5000, encoding).status_code == 200  # padding


@pytest.mark.parametrize(
    ("content", "encoding", "status", "says"),
    [
        (gzip.compress(BODY) + b"garbage", "gzip", 400, "what follows gzip member 1 is not gzip"),
        (gzip.compress(BODY) + gzip.compress(BODY)[:-3], "gzip", 400, "truncated"),
        (gzip.compress(BODY) + b"\0" * 5000 + b"x", "gzip", 400, "is not gzip"),
        (gzip.compress(BODY)[:-8] + b"\0" * 8, "gzip", 400, "not gzip"),
        (b"", "gzip", 400, "truncated"),
        (zlib.compress(BODY) + b"garbage", "deflate", 400, "7 bytes follow"),
        (zlib.compress(BODY)[:-2], "deflate", 400, "truncated"),
        (gzip.compress(b"[") + gzip.compress(b" " * (17 << 20)), "gzip", 413, "after decompression"),
    ],
    # The bytes of gzip hold the time.
    ids=[
        "garbage behind gzip",
        "second member cut",
        "garbage behind padding",
        "wrong sum",
        "empty",
        "garbage behind deflate",
        "deflate cut",
        "too large",
    ],
)
def test_a_compressed_body_that_is_not_read_to_its_end_is_refused(
    client: httpx.Client, content: bytes, encoding: str, status: int, says: str
) -> None:
    answer = send(client, content, encoding)
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text


def test_many_small_members_are_read_or_refused() -> None:
    lines = [b'{"n":%d}\n' % number for number in range(2000)]
    assert decompressed(b"".join(map(gzip.compress, lines)), b"gzip", 1 << 20) == b"".join(lines)
    with pytest.raises(TooLarge, match="members"):
        decompressed(gzip.compress(b"") * 30_000, b"gzip", 1 << 20)
    content = os.urandom(100_000)
    members = gzip.compress(content[:70_000]) + gzip.compress(content[70_000:])
    assert decompressed(members, b"gzip", 1 << 20) == content


def parquet(**columns: Any) -> io.BytesIO:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    stream.seek(0)
    return stream


def outcome(codec: Any, row: bytes) -> str | None:
    """What is wrong with the row of a job, as `run_rows` finds it."""
    try:
        codec.decode(b'{"instances":[%s]}' % row)
    except Problem as problem:
        return problem.pointer
    return None


def test_infinity_in_parquet_fails_its_row_and_is_no_null(tmp_path: Path) -> None:
    """orjson writes infinity as null, which a nullable column took."""
    model = read_model_file(people(tmp_path) / "model.yaml")
    codec = make_codec(model)
    heights = [1.7, float("inf"), float("-inf"), float("nan"), None]
    stream = parquet(age=[1] * 5, height=heights, name=["a"] * 5, member=[True] * 5)
    outcomes = [outcome(codec, row) for row in rows_of(stream, "parquet", model)]
    assert outcomes == [None, "#/instances/0/height", "#/instances/0/height", None, None]


def test_infinity_within_a_vector_of_parquet_fails_its_row(tmp_path: Path) -> None:
    model = read_model_file(affine(tmp_path) / "model.yaml")
    codec = make_codec(model)
    stream = parquet(x=[ROW, [1.0, float("inf"), 3.0, 4.0], [1.0, 2.0, float("nan"), 4.0]])
    outcomes = [outcome(codec, row) for row in rows_of(stream, "parquet", model)]
    assert outcomes == [None, "#/instances/0/x/1", "#/instances/0/x/2"]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    model = read_model_file(affine(tmp_path) / "model.yaml")
    stream = io.BytesIO()
    table = pyarrow.Table.from_arrays([pyarrow.array([ROW]), pyarrow.array([ROW])], names=["x", "x"])
    pyarrow.parquet.write_table(table, stream)
    stream.seek(0)
    with pytest.raises((Invalid, BadRequest), match="same name"):
        list(rows_of(stream, "parquet", model))
