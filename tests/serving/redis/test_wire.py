"""The hot path's own connection to Redis: every kind of reply, cut anywhere, late, wrong, or never."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.inference.codec import array_of
from serving.redis.link import RedisAbsent, RedisLink
from serving.redis.wire import RedisRefused, RedisWire, bulk, opened, packed
from tests.serving.server_runs import free_port

REPLIES: list[tuple[bytes, object]] = [
    (b"+OK\r\n", b"OK"),
    (b":-7\r\n", -7),
    (b"$-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"$4\r\na\r\nb\r\n", b"a\r\nb"),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*3\r\n$-1\r\n$-1\r\n$-1\r\n", [None, None, None]),
    (b"*3\r\n$-1\r\n$1\r\nx\r\n:2\r\n", [None, b"x", 2]),
]


class Sink:
    """As much of a transport as the wire uses."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True


@given(st.lists(st.sampled_from(REPLIES), min_size=1, max_size=8), st.data())
def test_replies_cut_anywhere(replies: list[tuple[bytes, object]], data: st.DataObject) -> None:
    stream = b"".join(text for text, _ in replies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))

    async def run() -> list[object]:
        wire = RedisWire()
        wire.connection_made(Sink())  # type: ignore[arg-type]
        futures = [wire.send(b"") for _ in replies]
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if start < stop:
                wire.data_received(stream[start:stop])
        return [future.result() for future in futures]

    assert asyncio.run(run()) == [value for _, value in replies]


def test_an_error_is_of_one_command_and_garbage_of_all() -> None:
    async def run() -> None:
        wire, sink = RedisWire(), Sink()
        wire.connection_made(sink)  # type: ignore[arg-type]
        first, second, third = wire.send(b""), wire.send(b""), wire.send(b"")
        wire.data_received(b"-ERR no\r\n+OK\r\n")
        with pytest.raises(RedisRefused, match="ERR no"):
            await first
        assert await second == b"OK"
        wire.data_received(b"HTTP/1.1 200 OK\r\n")
        with pytest.raises(RedisRefused):
            await third
        assert sink.closed
        wire.connection_lost(None)
        with pytest.raises(ConnectionResetError):
            await wire.send(b"")

    asyncio.run(run())


def test_whoever_stops_waiting_does_not_shift_the_replies() -> None:
    async def run() -> None:
        wire = RedisWire()
        wire.connection_made(Sink())  # type: ignore[arg-type]
        first, second = wire.send(b""), wire.send(b"")
        first.cancel()
        wire.data_received(b":1\r\n:2\r\n")
        assert await second == 2

    asyncio.run(run())


def test_password_and_database_of_a_real_redis(tmp_path: Path) -> None:
    port = free_port()
    command = [
        "redis-server",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--requirepass",
        "s3",
    ]
    process = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)

    async def run() -> None:
        options = {"host": "127.0.0.1", "port": port, "password": "s3", "db": 3}
        until = time.monotonic() + 10
        while True:
            try:
                wire = await opened(options)
                break
            except OSError:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)
        assert await wire.send(packed([bulk(b"SET"), bulk(b"k"), bulk(b"v")])) == b"OK"
        wire.close()
        other = await opened(options | {"db": 0})
        assert await other.send(packed([bulk(b"GET"), bulk(b"k")])) is None
        other.close()
        with pytest.raises(RedisRefused):
            await opened(options | {"password": "wrong"})

    try:
        asyncio.run(run())
    finally:
        process.terminate()
        process.wait(10)


def test_our_own_lateness_is_not_held_against_redis(redis_server: str) -> None:
    async def run() -> None:
        link = RedisLink(redis_server)
        await link.connect()
        command = asyncio.create_task(link.command(packed([bulk(b"PING")]), 0.005))
        await asyncio.sleep(0)
        time.sleep(0.1)  # the loop stands still, as it does while a model runs in it
        assert await command == b"PONG"
        stuck = packed([bulk(b"BLPOP"), bulk(b"nothing-here"), bulk(b"2")])
        started = time.monotonic()
        with pytest.raises(RedisAbsent):
            await link.command(stuck, 0.005)
        assert time.monotonic() - started < 0.5
        with pytest.raises(RedisAbsent):  # the circuit is open
            await link.command(packed([bulk(b"PING")]), 0.005)
        await link.close()

    asyncio.run(run())


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(
                st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=width, max_size=width
            ),
            min_size=1,
            max_size=5,
        )
    ),
    st.sampled_from([np.float32, np.float64]),
)
def test_packed_floats_are_numpys(rows: list[list[float]], dtype: type) -> None:
    found = array_of(rows, dtype)
    expected = np.array(rows, dtype=dtype)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()
    assert found.flags.writeable


def test_a_row_that_is_null_becomes_what_numpy_makes_of_it() -> None:
    assert np.isnan(array_of([None, 1.5], np.float32)).tolist() == [True, False]
    assert array_of([[1, 2]], np.int64).tolist() == [[1, 2]]
