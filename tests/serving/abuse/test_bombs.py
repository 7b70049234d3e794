"""Small files that stand for much: each is refused for what it becomes, not for what it weighs."""

from __future__ import annotations

import gzip
import io
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from flows.domain.errors import SpecInvalid
from flows.domain.spec import parse_spec
from serving.errors import Invalid, SpecProblem
from serving.jobs.inputs import rows_of, within
from serving.spec import read_model_file
from tests.serving.model_bundles import affine, people
from tests.serving.server_runs import ROOT, threaded

MOST_MEGABYTES = 200


def repeated(value: Any, rows: int, name: str = "name", **options: Any) -> bytes:
    """A Parquet file with one column of one value, which is stored once."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    return parquet(pa.table({name: column}), **options)


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    given = {"compression": "zstd", "store_schema": False, "write_statistics": False, **options}
    pyarrow.parquet.write_table(table, out, **given)
    return out.getvalue()


def words(folder: Path, **jobs: Any) -> Path:
    """A model of one string."""
    signature = {
        "inputs": [{"name": "name", "type": "string"}],
        "outputs": [{"name": "label", "type": "string"}],
    }
    folder.mkdir()
    serving = {"runtime": {"kind": "handler"}, "jobs": jobs}
    text = yaml.safe_dump({"name": "words", "signature": signature, "serving": serving})
    (folder / "model.yaml").write_text(text)
    return folder / "model.yaml"


READ = """
import resource, sys
from pathlib import Path
from serving.errors import Invalid
from serving.jobs.inputs import rows_of, within
from serving.spec import read_model_file

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

model = read_model_file(Path(sys.argv[1]))
import pyarrow.parquet
before, count, size = peak(), 0, 0
try:
    with open(sys.argv[2], "rb") as file:
        for row in within(rows_of(file, "parquet", model), model.serving.jobs.max_decoded_bytes):
            count, size = count + 1, size + len(row)
    print("read", count, "rows", size, "bytes", end=" ")
except Invalid as problem:
    print(problem.detail, end=" ")
print("and", int(peak() - before), "MB")
"""


def read_apart(model: Path, content: bytes, tmp_path: Path) -> str:
    """What a process of its own says of it, with the memory that it took."""
    (tmp_path / "bomb.parquet").write_bytes(content)
    command = [sys.executable, "-c", READ, str(model), str(tmp_path / "bomb.parquet")]
    limit = 6 << 30
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_value_that_is_stored_once_takes_its_memory_once(tmp_path: Path) -> None:
    """283 bytes took 770 MB before: ten megabytes for each row that repeats them by number."""
    content = repeated("a" * 3_000_000, 2560)
    assert len(content) < 2000
    said = read_apart(words(tmp_path / "m", max_decoded_bytes=1 << 40), content, tmp_path)
    assert said.startswith("read 2560 rows")
    assert int(said.split()[-2]) < MOST_MEGABYTES, said


@pytest.mark.parametrize(
    ("content", "words_of_it"),
    [
        (repeated("a" * 65000, 20_000), "take more than 67108864 bytes"),
        (repeated("a" * 20_000_000, 10), "row 1 has more than 16777216 bytes"),
        (repeated("a" * 200_000_000, 3), "grows from"),
        (repeated("a", 20_000_001), "at most 10000000 rows"),
        (
            parquet(
                pa.table({"name": ["a" * 100_000] * 5000}),
                use_dictionary=False,
                column_encoding="DELTA_BYTE_ARRAY",
            ),
            "DELTA_BYTE_ARRAY",
        ),
        (parquet(pa.table({"name": [["a"] * 5_000_000]})), "rows of more than 1 values"),
        (parquet(pa.table({"name": [{"a": 1, "b": 2}]})), "holds records"),
    ],
    ids=["many", "wide", "wider", "rows", "prefixes", "nested", "records"],
)
def test_what_a_file_becomes_has_budgets(tmp_path: Path, content: bytes, words_of_it: str) -> None:
    said = read_apart(words(tmp_path / "m", max_decoded_bytes=64 << 20), content, tmp_path)
    assert words_of_it in said
    assert int(said.split()[-2]) < MOST_MEGABYTES, said


def test_repeated_values_nulls_and_lists_are_read_as_ever(tmp_path: Path) -> None:
    model = read_model_file(words(tmp_path / "m"))
    content = parquet(pa.table({"name": ["a", "b", None, "a"]}), row_group_size=2)
    assert list(rows_of(io.BytesIO(content), "parquet", model)) == [
        b'{"name":"a"}',
        b'{"name":"b"}',
        b'{"name":null}',
        b'{"name":"a"}',
    ]


def test_the_rows_of_all_formats_share_the_budget() -> None:
    rows = iter([b"1234"] * 4)
    with pytest.raises(Invalid, match="more than 10 bytes"):
        list(within(rows, 10))
    assert list(within(iter([b"1234"] * 2), 8)) == [b"1234"] * 2


ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 22)
)


def test_aliases_are_one_error_at_once_on_both_planes(tmp_path: Path) -> None:
    """Six hundred bytes stood for 4^21 values, and nobody waits until they are checked."""
    text = f"{ALIASES}name: bomb\nsignature: *a21\nserving: *a21\n"
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(SpecProblem, match="its aliases stand for more than 100000 values"):
        read_model_file(tmp_path / "model.yaml")
    with pytest.raises(SpecInvalid, match="its aliases stand for more than 100000 values"):
        parse_spec(text, "model.yaml")


def test_deep_nesting_is_an_error_too(tmp_path: Path) -> None:
    text = "name: " + "[" * 5000
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(SpecProblem, match="nested too deeply"):
        read_model_file(tmp_path / "model.yaml")
    with pytest.raises(SpecInvalid, match="nested too deeply"):
        parse_spec(text, "model.yaml")


@pytest.mark.parametrize("path", ["/predict", "/v2/models/affine/infer", "/feedback"])
def test_nobody_waits_for_the_decompression_of_another_one_s_body(tmp_path: Path, path: str) -> None:
    """It ran on the event loop: each such request held up all others for as long as it took. Which thread it
    runs on is asked, not how long it takes."""
    import serving.service

    seen: list[str] = []
    original = serving.service.decompressed

    def recorded(body: bytes, encoding: bytes, limit: int) -> bytes:
        seen.append(threading.current_thread().name)
        return original(body, encoding, limit)

    with threaded(affine(tmp_path / "m")) as server, server.client() as client:
        loop = next(
            t.name for t in threading.enumerate() if t.name.startswith("Thread-") and "_run" in t.name
        )
        serving.service.decompressed = recorded
        try:
            body = gzip.compress(b'{"instances":[[1,2,3,4]]}' + b" " * 1_000_000)
            headers = {"content-encoding": "gzip", "content-type": "application/json"}
            answer = client.post(path, content=body, headers=headers)
        finally:
            serving.service.decompressed = original
    assert answer.status_code != 415
    assert seen
    assert loop not in seen


def test_a_bomb_does_not_stop_the_others(tmp_path: Path) -> None:
    """Twenty bodies of 16 KiB, each of 16 MiB when decompressed, and probes in between."""
    bomb = gzip.compress(b" " * (16 << 20))
    with threaded(people(tmp_path / "m")) as server, server.client() as client:
        statuses: list[int] = []

        def throw() -> None:
            headers = {"content-encoding": "gzip", "content-type": "application/json"}
            for _ in range(5):
                answer = httpx.post(f"{server.url}/predict", content=bomb, headers=headers, timeout=60)
                statuses.append(answer.status_code)

        throwers = [threading.Thread(target=throw) for _ in range(4)]
        for thrower in throwers:
            thrower.start()
        answered = 0
        until = time.monotonic() + 30
        while any(thrower.is_alive() for thrower in throwers) and time.monotonic() < until:
            answered += client.get("/healthz").status_code == 200
        for thrower in throwers:
            thrower.join(30)
    assert statuses == [400] * 20
    assert answered > 0
