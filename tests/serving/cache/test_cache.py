"""The cache against a real Redis, present, slow, and gone."""

from __future__ import annotations

import gzip
import itertools
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from serving.cache.recent import RecentAnswers
from serving.errors import Unavailable
from tests.serving.asking import ask, eventually, metric
from tests.serving.model_bundles import PEOPLE_HANDLER, PEOPLE_SIGNATURE, affine, people, person, write_bundle
from tests.serving.server_runs import free_port, threaded

PATIENT = {"enabled": True, "timeout_seconds": 1.0}

"""These tests are about what is cached; on a busy machine Redis may be slower than the default patience."""


def test_equal_rows_are_computed_once(tmp_path: Path, redis_server: str, database: Any) -> None:
    bundle = affine(tmp_path, cache=PATIENT)
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        first = ask(client, [1, 2, 3, 4], [5, 6, 7, 8])
        assert "x-cache" not in first.headers
        assert eventually(lambda: len(database.keys("predictions:*")) == 2)
        again = ask(client, [1.0, 2.0, 3.0, 4.0], {"x": [5, 6, 7, 8]})
        assert again.headers["x-cache"] == "hit"
        assert again.content == first.content
        half = ask(client, [1, 2, 3, 4], [9, 9, 9, 9], [5, 6, 7, 8], [9, 9, 9, 9])
        assert "x-cache" not in half.headers
        assert half.json()["predictions"] == [[3, 5, 7], [19, 19, 19], [11, 13, 15], [19, 19, 19]]
        positive = ask(client, [0.0, 2, 3, 4])
        assert eventually(lambda: len(database.keys("predictions:*")) == 4)
        assert ask(client, [-0.0, 2, 3, 4]).content == positive.content
        assert metric(client, "cache_hits_total") >= 4
        assert metric(client, "cache_misses_total") == 4
        ttl = database.ttl(database.keys("predictions:*")[0])
        assert 0 < ttl <= 300


def test_another_replica_answers_from_redis_and_hot_rows_need_no_redis(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    bundle = affine(tmp_path, cache=PATIENT)
    with (
        threaded(bundle, redis_url=redis_server) as one,
        threaded(bundle, redis_url=redis_server) as other,
        one.client() as client,
        other.client() as neighbour,
    ):
        first = ask(client, [1, 2, 3, 4])
        assert eventually(lambda: len(database.keys("predictions:*")) == 1)
        again = ask(neighbour, [1, 2, 3, 4])
        assert again.headers["x-cache"] == "hit"
        assert again.content == first.content
        database.flushdb()
        assert ask(neighbour, [1, 2, 3, 4]).headers["x-cache"] == "hit"
        assert eventually(lambda: "x-cache" not in ask(neighbour, [1, 2, 3, 4]).headers)


def test_rows_that_are_cheaper_to_compute_than_to_look_up_are_only_remembered(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    bundle = affine(tmp_path, cache={**PATIENT, "redis": "when_cheaper"})
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        first = ask(client, [1, 2, 3, 4])
        assert "x-cache" not in first.headers
        again = ask(client, [1, 2, 3, 4])
        assert again.headers["x-cache"] == "hit"
        assert again.content == first.content
        other = ask(client, [1, 2, 3, 4], [9, 9, 9, 9])
        assert "x-cache" not in other.headers
        assert other.json()["predictions"] == [[3, 5, 7], [19, 19, 19]]
        # In pieces it comes by ASGI, and finds the same.
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            body = other.request.content
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
            time.sleep(0.1)
            connection.sendall(body)
            answer = connection.recv(65536)
        assert b"x-cache: hit" in answer
        assert answer.endswith(other.content)
        # What is compressed is compared after it was undone.
        headers = {"content-encoding": "gzip", "content-type": "application/json"}
        packed = client.post("/predict", content=gzip.compress(body), headers=headers)
        assert (packed.headers["x-cache"], packed.content) == ("hit", other.content)
        # A known body excuses nothing else.
        late = client.post("/predict", content=body, headers={"x-request-timeout": "soon"})
        assert late.status_code == 400
        assert client.post("/predict", content=body, headers={"content-type": "text/csv"}).status_code == 415
        assert (metric(client, "cache_hits_total"), metric(client, "cache_misses_total")) == (5, 3)
        # What was remembered is sampled once.
        assert eventually(lambda: database.xlen("samples:affine") == 3)
        time.sleep(0.4)
        assert database.xlen("samples:affine") == 3
        assert eventually(lambda: "x-cache" not in ask(client, [1, 2, 3, 4]).headers)
        assert database.keys("predictions:*") == []


def test_rows_that_are_cheaper_to_look_up_are_looked_up(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    slow = PEOPLE_HANDLER.replace("answers = []", "answers = []\n    time.sleep(0.001 * len(rows))")
    bundle = write_bundle(
        tmp_path,
        name="people",
        signature=PEOPLE_SIGNATURE,
        serving={"runtime": {"kind": "handler"}, "cache": {**PATIENT, "redis": "when_cheaper"}},
        files={"handler.py": slow},
    )
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        ask(client, person("Ada"))
        assert eventually(lambda: len(database.keys("predictions:*")) == 1)


def test_recent_answers_last_for_half_of_their_lifetime_at_least_and_the_whole_at_most() -> None:
    timers: list[tuple[float, Callable[[], None]]] = []
    recent = RecentAnswers(1.0, 100, lambda seconds, turn: timers.append((seconds, turn)))
    for number in range(3):
        recent.put(b"early %d" % number, b"1", 1)
    [(seconds, turn)] = timers
    assert seconds == 0.5
    recent.put(b"late", b"2", 3)
    turn()
    assert recent.get(b"late") == (b"2", 3)
    assert recent.get(b"early 0") == (b"1", 1)
    # The rest happens whether anybody asks or not: what clients sent does not stay.
    for _, turn in timers[1:]:
        turn()
    assert recent.get(b"late") is None
    assert len(timers) == 2
    recent.put(b"again", b"1", 1)
    assert len(timers) == 3


def test_recent_answers_are_bounded() -> None:
    recent = RecentAnswers(1.0, 1 << 20, lambda _seconds, _turn: None)

    def kept(of: int) -> list[int]:
        return [number for number in range(of) if recent.get(b"%d" % number) is not None]

    for number in range(100):
        recent.put(b"%d" % number, bytes(1_000_000), 1)
    assert kept(100) == list(range(88, 100))
    # An answer that many waited for is one answer.
    for _ in range(100):
        recent.put(b"99", bytes(1_000_000), 1)
    assert kept(100) == list(range(88, 100))
    # Bodies count as answers do.
    for number in range(16):
        recent.put(bytes([number]) * 1_000_000, b"1", 1)
    assert kept(100) == []
    recent.put(bytes(1 << 20), b"1", 1)
    assert recent.get(bytes(1 << 20)) is None
    small = RecentAnswers(1.0, 10, lambda _seconds, _turn: None)
    small.put(b"one", bytes(11), 1)
    small.put(b"two", bytes(11), 2)
    assert (small.get(b"one"), small.get(b"two")) == (None, (bytes(11), 2))


def test_another_release_never_answers_from_this_ones_cache(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    cache = PATIENT
    first = affine(tmp_path / "a", cache=cache)
    with threaded(first, redis_url=redis_server) as server, server.client() as client:
        ask(client, [1, 2, 3, 4])
        assert eventually(lambda: database.keys("predictions:*"))
    # The same name and version with other content, as after a rebuilt database of releases.
    other = affine(tmp_path / "b", cache=cache, limits={"max_rows": 5})
    with threaded(other, redis_url=redis_server) as server, server.client() as client:
        assert "x-cache" not in ask(client, [1, 2, 3, 4]).headers


@pytest.mark.usefixtures("database")
def test_concurrent_equal_requests_run_the_model_once(tmp_path: Path, redis_server: str) -> None:
    bundle = people(tmp_path, cache=PATIENT)
    with (
        threaded(bundle, redis_url=redis_server) as server,
        server.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        rows = [person("sleep 0.3")] * 8
        responses = list(pool.map(lambda row: ask(client, row), rows))
        assert len({response.content for response in responses}) == 1
        assert metric(client, "batch_rows_sum") == 1
        assert metric(client, "cache_misses_total") == 1


@pytest.mark.usefixtures("database")
def test_a_failing_leader_does_not_fail_its_followers_for_good(tmp_path: Path, redis_server: str) -> None:
    bundle = people(tmp_path, cache=PATIENT)
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:

        def leave() -> None:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + "/predict", json={"instances": [person("sleep 0.6")]}, timeout=0.15)

        with ThreadPoolExecutor(4) as pool:
            blocker = pool.submit(ask, client, person("sleep 0.5"))
            time.sleep(0.1)
            gone = pool.submit(leave)
            time.sleep(0.05)
            follower = pool.submit(ask, client, person("sleep 0.6"))
            assert follower.result().status_code == 200
            gone.result()
            blocker.result()


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("redis_is", ["always", "when_cheaper"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("step", "status"), [("fragments", 500), ("encode", 500), ("canonical", 500), ("submit_then", 503)]
)
def test_a_fault_on_the_way_is_answered_and_leaves_nothing_behind(
    tmp_path: Path,
    redis_server: str,
    monkeypatch: pytest.MonkeyPatch,
    redis_is: str,
    rows: int,
    step: str,
    status: int,
) -> None:
    def fault(*_: object) -> None:
        raise Unavailable("the queue is full") if step == "submit_then" else RuntimeError("a secret")

    bundle = affine(tmp_path, cache={**PATIENT, "redis": redis_is})
    used = {"fragments", "canonical"} if redis_is == "always" else {"encode"}
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        service = server.server.service
        target = service.batcher if step == "submit_then" else service.model.codec
        body = {"instances": [[number, 2, 3, 4] for number in range(rows)]}
        with monkeypatch.context() as broken:
            broken.setattr(target, step, fault)
            answer = client.post("/predict", json=body)
        assert answer.status_code == (status if step in used or step == "submit_then" else 200)
        # The same rows, written otherwise: nobody waits for the one that failed.
        again = client.post("/predict", content=orjson.dumps(body, option=orjson.OPT_INDENT_2))
        assert again.json() == {"predictions": [[2 * number + 1, 5, 7] for number in range(rows)]}
        assert eventually(lambda: service.telemetry.in_flight == 0)


def test_a_dead_redis_costs_little_and_once(tmp_path: Path) -> None:
    bundle = affine(tmp_path, cache={"enabled": True})
    url = f"redis://127.0.0.1:{free_port()}/0"
    with threaded(bundle, redis_url=url, rate_limit=1000) as server, server.client() as client:
        times = []
        for number in range(30):
            started = time.monotonic()
            ask(client, [number, 0, 0, 0])
            times.append(time.monotonic() - started)
        assert sorted(times)[len(times) // 2] < 0.02
        assert metric(client, "cache_errors_total") >= 1


def test_a_silent_redis_costs_its_patience_and_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        bundle = affine(tmp_path, cache={"enabled": True, "timeout_seconds": 0.005})
        with threaded(bundle, redis_url=f"redis://127.0.0.1:{port}/0") as server, server.client() as client:
            ask(client, [0, 0, 0, 1])
            times = []
            for number in range(30):
                started = time.monotonic()
                ask(client, [number, 0, 0, 0])
                times.append(time.monotonic() - started)
            assert sorted(times)[len(times) // 2] < 0.02


def test_the_circuit_closes_when_redis_comes_back(tmp_path: Path) -> None:
    port = free_port()
    bundle = affine(tmp_path, cache={"enabled": True, "timeout_seconds": 0.1})
    with threaded(bundle, redis_url=f"redis://127.0.0.1:{port}/0") as server, server.client() as client:
        ask(client, [1, 2, 3, 4])
        process = subprocess.Popen(
            [
                "redis-server",
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(tmp_path),
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            # Rows that the server cannot remember by itself: each request is written in its own way.
            found = (
                client.post("/predict", content=b'{"instances":%s[[1,2,3,4]]}' % (b" " * number))
                for number in itertools.count()
            )
            assert eventually(lambda: next(found).headers.get("x-cache") == "hit", 8)
        finally:
            process.terminate()
            process.wait(10)
