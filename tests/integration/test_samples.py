"""Samples on a real Redis and a real folder: each entry exactly once, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
import redis

from flows.adapters.samples import SampleStore, archive, open_samples
from flows.adapters.samples.archive import GROUP
from flows.domain.drift.findings import FindingKind
from flows.domain.drift.frames import compared_columns
from flows.domain.drift.policy import DriftPolicy
from flows.domain.errors import DependencyDown
from flows.domain.signature import Column, Signature
from tests.free_ports import free_ports
from tests.integration.s3_server import ACCESS, BUCKET

DAY = 86400.0
START = 1_372_636_800.0  # 2013-07-01
SIGNATURE = Signature(
    inputs=(
        Column(name="when", type="integer"),
        Column(name="carrier", type="string"),
        Column(name="temperature", type="number", nullable=True),
        Column(name="pixels", type="number", shape=(2, 2)),
    ),
    outputs=(Column(name="late", type="number"),),
)
POLICY = DriftPolicy(time_column="when")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    assert program, "redis-server is needed: apt-get install redis-server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
    yield url
    process.terminate()
    process.wait(10)


@pytest.fixture
def client(redis_server: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        yield client


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    return SampleStore((tmp_path / "samples").as_uri())


@pytest.fixture
def bucket(s3_endpoint: str) -> SampleStore:
    options = {**ACCESS, "endpoint_url": s3_endpoint}
    return SampleStore(f"s3://{BUCKET}/{uuid.uuid4().hex}/samples", options)


def sample(number: int, **features: Any) -> dict[str, Any]:
    return {
        "release": "flights-v2",
        "request_id": f"r{number // 2}",
        "row": number % 2,
        "at": 1_800_000_000.0 + number,
        "features": {
            "when": int(START + number * DAY / 10),
            "carrier": "AA",
            "temperature": 70.5,
            "pixels": [[1, 2], [3, 4]],
            **features,
        },
        "prediction": {"late": 0.25},
    }


def send(
    client: redis.Redis, *samples: dict[str, Any], stream: str = "samples:flights", most: int = 100_000
) -> None:
    for one in samples:
        client.xadd(stream, {"data": json.dumps(one)}, maxlen=most, approximate=False)


def read(store: SampleStore, **limits: Any) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(), *open_samples(store, "flights", **limits)], ignore_index=True)


def test_rows_come_back_as_they_were_sent(client: redis.Redis, redis_server: str, store: SampleStore) -> None:
    send(client, *[sample(n) for n in range(25)], sample(25, temperature=None))
    outcome = {"request_id": "r3", "row": 1, "outcome": True, "at": 1_800_000_100.0}
    correction = outcome | {"outcome": False, "at": 1_800_000_200.0}
    unknown = outcome | {"request_id": "never-sampled"}
    send(client, outcome, correction, unknown, stream="outcomes:flights")

    moved = archive(redis_server, store, "flights", SIGNATURE, POLICY, batch=10)
    reading = open_samples(store, "flights", release="flights-v2")
    frame = pd.concat(list(reading), ignore_index=True)

    assert (moved.samples, moved.outcomes, moved.lost) == (26, 3, 0)
    assert len(frame) == 26
    assert frame["when"].tolist() == [int(START + n * DAY / 10) for n in range(26)]
    assert frame["@time"].tolist() == frame["when"].tolist(), "the row's own time, not that of arrival"
    assert frame["pixels"][0].tolist() == [1, 2, 3, 4]
    assert frame["temperature"].isna().sum() == 1
    known = frame[frame["@outcome"].notna()]
    assert known[["@request_id", "@row", "@outcome"]].to_numpy().tolist() == [["r3", 1, 0.0]], (
        "the newest counts"
    )
    assert reading.unknown_outcomes == 1
    assert reading.findings() == []
    days = {path.name for path in Path(store.uri.removeprefix("file://"), "samples/flights").iterdir()}
    assert days == {"day=2013-07-01", "day=2013-07-02", "day=2013-07-03"}


def test_a_stretch_of_time_is_read_alone(client: redis.Redis, redis_server: str, store: SampleStore) -> None:
    send(client, *[sample(n) for n in range(30)])
    archive(redis_server, store, "flights", SIGNATURE, POLICY, batch=7)

    frame = read(store, since=START + 0.5 * DAY, until=START + 1.5 * DAY)

    assert frame["when"].tolist() == [int(START + n * DAY / 10) for n in range(5, 15)]


class Crash(BaseException):
    """The process dies."""


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_crash_between_writing_and_acknowledging_neither_loses_nor_repeats(
    client: redis.Redis, redis_server: str, store: SampleStore, crash_at: int
) -> None:
    send(client, *[sample(n) for n in range(25)])
    written = 0

    def crash() -> None:
        nonlocal written
        written += 1
        if written == crash_at:
            raise Crash

    with pytest.raises(Crash):
        archive(redis_server, store, "flights", SIGNATURE, POLICY, batch=10, after_write=crash)
    send(client, *[sample(n) for n in range(25, 40)])
    first = archive(redis_server, store, "flights", SIGNATURE, POLICY, batch=10, abandoned_seconds=3600)
    assert first.samples == 40 - 10 * (crash_at - 1) - (10 if crash_at < 3 else 5), (
        "the batch is not abandoned yet"
    )
    archive(redis_server, store, "flights", SIGNATURE, POLICY, batch=10, abandoned_seconds=0)

    assert sorted(read(store)["@at"].tolist()) == [1_800_000_000.0 + n for n in range(40)]
    assert client.xpending("samples:flights", GROUP)["pending"] == 0
    assert client.get("archived:samples:flights") == b"40"


def test_a_slow_archiver_and_its_successor_count_each_entry_once(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    send(client, *[sample(n) for n in range(10)])
    successor: list[int] = []

    def overtaken() -> None:
        if not successor:
            successor.append(-1)
            moved = archive(redis_server, store, "flights", SIGNATURE, POLICY, abandoned_seconds=0)
            successor[0] = moved.samples

    archive(redis_server, store, "flights", SIGNATURE, POLICY, after_write=overtaken)

    assert successor == [10]
    assert len(read(store)) == 10
    assert client.get("archived:samples:flights") == b"10"


def test_entries_pushed_out_of_the_stream_are_counted_as_lost(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    send(client, *[sample(n) for n in range(50)], most=20)

    assert archive(redis_server, store, "flights", SIGNATURE, POLICY).lost == 30
    send(client, *[sample(n) for n in range(50, 60)], most=20)
    assert archive(redis_server, store, "flights", SIGNATURE, POLICY).lost == 30, "still the same thirty"


def test_values_that_do_not_fit_become_findings(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    odd = sample(1, carrier=7, surprise=True)
    del odd["features"]["temperature"]
    send(client, odd, sample(2))
    client.xadd("samples:flights", {"data": b"{broken"})
    client.xadd("samples:flights", {"other": b"field"})

    moved = archive(redis_server, store, "flights", SIGNATURE, POLICY)
    reading = open_samples(store, "flights")
    frame = pd.concat(list(reading))

    assert (moved.samples, moved.unreadable) == (2, 2)
    assert frame["carrier"].isna().sum() == 1
    assert {finding.kind: (finding.column, finding.breach) for finding in reading.findings()} == {
        FindingKind.CHANGED_TYPE: ("carrier", True),
        FindingKind.MISSING_COLUMN: ("temperature", False),
        FindingKind.NEW_COLUMN: ("surprise", False),
    }


@pytest.mark.parametrize("when", [1_372_636_800_000, -(10**12), 10**18, None, "soon", [1], True])
def test_a_time_that_is_none_counts_as_the_time_of_arrival_and_is_named(
    client: redis.Redis, redis_server: str, store: SampleStore, when: Any
) -> None:
    """Milliseconds, for one: such a client must not stop the archive of all the others."""
    send(client, *[sample(n) for n in range(3)], sample(3, when=when))

    moved = archive(redis_server, store, "flights", SIGNATURE, POLICY)
    reading = open_samples(store, "flights")
    frame = pd.concat(list(reading))

    assert (moved.samples, moved.unreadable) == (4, 0)
    assert sorted(frame["@time"])[-1] == 1_800_000_003.0
    untimed = [f for f in reading.findings() if f.kind is FindingKind.NO_TIME]
    assert [(finding.column, finding.count) for finding in untimed] == [("when", 1)]


@pytest.mark.parametrize("odd", [{"temperature": 2**60 + 1}, {"carrier": "\ud800"}, {"pixels": [10**400]}])
def test_a_value_that_parquet_cannot_hold_costs_its_own_row(
    client: redis.Redis, redis_server: str, store: SampleStore, odd: dict[str, Any]
) -> None:
    send(client, *[sample(n) for n in range(3)], sample(3, **odd), sample(4))

    moved = archive(redis_server, store, "flights", SIGNATURE, POLICY)

    assert (moved.samples, moved.unreadable) == (4, 1)
    assert sorted(read(store)["@at"]) == [1_800_000_000.0 + n for n in (0, 1, 2, 4)]
    assert client.xpending("samples:flights", GROUP)["pending"] == 0


def test_a_few_wrong_clocks_do_not_say_which_day_is_the_newest(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    send(client, *[sample(n) for n in range(25)])
    send(client, *[sample(25 + n, when=int(START + 5000 * DAY)) for n in range(5)])
    archive(redis_server, store, "flights", SIGNATURE, POLICY, batch=10)

    assert store.newest_day("flights", rows=20) == "2013-07-03"
    assert store.newest_day("nobody", rows=20) is None
    for path in Path(store.uri.removeprefix("file://")).rglob("day=2013-07-03/*.parquet"):
        path.write_bytes(b"PAR1 cut off")
    assert store.newest_day("flights", rows=20) == "2013-07-02"


def entry(client: redis.Redis, stream: str, data: dict[str, Any], at: float) -> None:
    client.xadd(stream, {"data": json.dumps(data)}, id=f"{int(at * 1000)}-*")


def test_outcomes_from_before_the_oldest_sample_are_not_read(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    """Else every check would read the outcomes of all years."""
    outcome = {"request_id": "r0", "row": 0, "outcome": 1}
    before, after = 1_799_000_000.0, 1_800_000_050.0
    entry(client, "outcomes:flights", outcome | {"at": before, "request_id": "old"}, before)
    archive(redis_server, store, "flights", SIGNATURE, POLICY)
    entry(client, "outcomes:flights", outcome | {"at": after}, after)
    for n in range(4):
        entry(client, "samples:flights", sample(n), 1_800_000_000.0 + n)
    archive(redis_server, store, "flights", SIGNATURE, POLICY)
    old, _ = sorted(Path(store.uri.removeprefix("file://"), "outcomes").rglob("*.parquet"))
    old.write_bytes(b"nobody opens this")

    reading = open_samples(store, "flights")
    frame = pd.concat(list(reading))

    assert frame["@outcome"].notna().sum() == 1
    assert (reading.unknown_outcomes, reading.findings()) == (0, [])


def test_outcomes_of_another_release_are_not_unknown(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    send(client, sample(0), sample(1), sample(2) | {"release": "flights-v3"})
    for request in ("r0", "r1", "never-sampled"):
        outcome = {"request_id": request, "row": 0, "outcome": 1, "at": 1_800_000_100.0}
        send(client, outcome, stream="outcomes:flights")
    archive(redis_server, store, "flights", SIGNATURE, POLICY)

    reading = open_samples(store, "flights", release="flights-v2")
    frame = pd.concat(list(reading))

    assert frame["@outcome"].notna().sum() == 1
    assert reading.other_releases == {"flights-v3": 1}
    assert reading.unknown_outcomes == 1


def test_a_part_without_the_columns_of_a_part_is_damaged(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    send(client, *[sample(n) for n in range(30)])
    archive(redis_server, store, "flights", SIGNATURE, POLICY)
    part = sorted(Path(store.uri.removeprefix("file://")).rglob("samples/**/*.parquet"))[0]
    pd.DataFrame({"@entry": ["1-0"], "other": [1]}).to_parquet(part)

    reading = open_samples(store, "flights")

    assert sum(len(frame) for frame in reading) == 20
    assert [finding.kind for finding in reading.findings()] == [FindingKind.CORRUPT_PART]


def damage(change: Callable[[bytes], bytes], store: SampleStore) -> None:
    part = sorted(Path(store.uri.removeprefix("file://")).rglob("samples/**/*.parquet"))[0]
    part.write_bytes(change(part.read_bytes()))


@pytest.mark.parametrize("change", [lambda _: b"", lambda b: b[: len(b) // 2], lambda b: b"x" * len(b)])
def test_a_damaged_part_costs_its_own_rows_and_is_named(
    client: redis.Redis, redis_server: str, store: SampleStore, change: Callable[[bytes], bytes]
) -> None:
    send(client, *[sample(n) for n in range(30)])
    archive(redis_server, store, "flights", SIGNATURE, POLICY)
    damage(change, store)

    reading = open_samples(store, "flights")
    frame = pd.concat(list(reading))

    assert len(frame) == 20
    (finding,) = reading.findings()
    assert finding.kind is FindingKind.CORRUPT_PART
    assert "day=2013-07-01" in finding.sentence


def test_a_bucket_keeps_what_a_folder_keeps(
    client: redis.Redis, redis_server: str, bucket: SampleStore, store: SampleStore
) -> None:
    send(client, *[sample(n) for n in range(25)])
    send(
        client, {"request_id": "r3", "row": 1, "outcome": 1, "at": 1_800_000_100.0}, stream="outcomes:flights"
    )
    for place in (bucket, store):
        moved = archive(redis_server, place, "flights", SIGNATURE, POLICY, batch=10)
        assert (moved.samples, moved.outcomes, moved.lost) == (25, 1, 0)
        for stream in ("samples:flights", "outcomes:flights"):
            client.xgroup_destroy(stream, GROUP)  # the next archiver begins again
        client.delete("archived:samples:flights", "archived:outcomes:flights")

    assert bucket.newest_day("flights") == store.newest_day("flights") == "2013-07-03"
    pd.testing.assert_frame_equal(read(bucket), read(store))
    assert read(bucket)["@outcome"].notna().sum() == 1
    assert len(read(bucket, since=START + DAY, until=START + 2 * DAY)) == 10


def test_a_part_of_a_bucket_that_is_damaged_costs_its_own_rows(
    client: redis.Redis, redis_server: str, bucket: SampleStore
) -> None:
    send(client, *[sample(n) for n in range(30)])
    archive(redis_server, bucket, "flights", SIGNATURE, POLICY)
    part = bucket.parts("samples", "flights", None, None)[0]
    filesystem, _ = fsspec.url_to_fs(bucket.uri, **bucket._options)
    filesystem.pipe_file(part.path, b"PAR1 cut off")

    reading = open_samples(bucket, "flights")

    assert sum(len(frame) for frame in reading) == 20
    assert [finding.kind for finding in reading.findings()] == [FindingKind.CORRUPT_PART]


def test_a_bucket_that_is_away_is_a_dependency_down(client: redis.Redis, redis_server: str) -> None:
    options = {**ACCESS, "endpoint_url": f"http://127.0.0.1:{free_ports(1)[0]}"}
    options["config_kwargs"] = {"retries": {"max_attempts": 1}}  # type: ignore[assignment]
    away = SampleStore(f"s3://{BUCKET}/samples", options)
    send(client, sample(0))
    with pytest.raises(DependencyDown, match="sample archive: s3://models/samples cannot be used"):
        archive(redis_server, away, "flights", SIGNATURE, POLICY)
    assert client.xpending("samples:flights", GROUP)["pending"] == 1, "it waits for the next archiver"


def test_personal_columns_are_kept_only_as_hashes_and_never_compared(
    client: redis.Redis, redis_server: str, store: SampleStore
) -> None:
    inputs = (
        *SIGNATURE.inputs,
        Column(name="email", type="string", personal="hash"),
        Column(name="age", type="integer", personal="drop"),
    )
    signature = Signature(inputs=inputs, outputs=SIGNATURE.outputs)
    send(client, *[sample(n, email="0f" * 16) for n in range(3)], sample(3))

    archive(redis_server, store, "flights", signature, POLICY)
    reading = open_samples(store, "flights")
    frame = pd.concat(list(reading))

    assert frame["@personal.email"].fillna("").tolist() == ["0f" * 16] * 3 + [""]
    assert not {"email", "age"} & set(frame.columns)
    assert reading.findings() == []
    assert not {"email", "age"} & {column.name for column in compared_columns(signature, POLICY)}


def test_a_silent_redis_is_a_dependency_down(store: SampleStore) -> None:
    with pytest.raises(DependencyDown, match="Redis does not answer"):
        archive("redis://127.0.0.1:1/0", store, "flights", SIGNATURE, POLICY)
