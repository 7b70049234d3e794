"""Outcomes are what drift and the judge believe: only who was answered may report them, and once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.receipts import Receipts, request_of
from tests.serving.asking import ask
from tests.serving.model_bundles import affine
from tests.serving.server_runs import ThreadedServer, process, threaded

ROW = [1.0, 2.0, 3.0, 4.0]
SECRET = b"a secret of at least sixteen bytes"


@pytest.fixture
def server(tmp_path: Path, redis_server: str) -> Iterator[ThreadedServer]:
    bundle = affine(tmp_path / "m", samples={"max_length": 1000})
    with threaded(bundle, redis_url=redis_server, secret=SECRET.decode()) as server:
        yield server


@pytest.fixture
def client(server: ThreadedServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def tell(client: httpx.Client, receipt: str, *outcomes: Any, **headers: str) -> httpx.Response:
    return client.post("/feedback", json={"request_id": receipt, "outcomes": outcomes}, headers=headers)


def told(database: Any) -> list[tuple[str, int, Any]]:
    entries = [json.loads(fields[b"data"]) for _, fields in database.xrange("outcomes:affine")]
    return [(entry["request_id"], entry["row"], entry["outcome"]) for entry in entries]


def results(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("modelserve_outcomes_total{")]
    return {line.split('outcome="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in found}


def test_an_outcome_is_taken_once_and_what_contradicts_it_is_counted(
    client: httpx.Client, database: Any
) -> None:
    receipt = ask(client, ROW, ROW, ROW).headers["x-feedback-id"]
    assert tell(client, receipt, 1, None, 0).json() == {
        "status": "accepted",
        "kept": 2,
        "known": 0,
        "conflicting": 0,
    }
    again = tell(client, receipt, 1, 5, 1).json()
    assert (again["kept"], again["known"], again["conflicting"]) == (1, 1, 1)
    request = request_of(receipt)
    assert told(database) == [(request, 0, 1), (request, 2, 0), (request, 1, 5)]
    assert results(client) == {"kept": 3, "known": 1, "conflicting": 1}


@pytest.mark.parametrize(
    "forged",
    [
        lambda _: "trace-1",
        lambda receipt: receipt[:-1] + ("0" if receipt[-1] != "0" else "1"),
        lambda receipt: receipt.replace("-1-", "-400-"),
        lambda receipt: request_of(receipt),
        lambda _: Receipts(b"the secret of somebody else", "affine", 60).issue("", 1),
        lambda _: Receipts(SECRET, "another-model", 60).issue("", 1),
        lambda receipt: receipt + "\n",
        lambda receipt: "é" + receipt[1:],
    ],
    ids=["made-up", "mac", "rows", "without-mac", "secret", "model", "newline", "unicode"],
)
def test_what_no_answer_carried_is_refused(client: httpx.Client, database: Any, forged: Any) -> None:
    receipt = ask(client, ROW).headers["x-feedback-id"]
    answer = tell(client, forged(receipt), 1)
    assert answer.status_code == 404
    assert "X-Feedback-Id" in answer.json()["detail"]
    assert told(database) == []
    assert results(client) == {"refused": 1}


def test_there_are_not_more_outcomes_than_rows(client: httpx.Client, database: Any) -> None:
    answer = tell(client, ask(client, ROW).headers["x-feedback-id"], 1, 1)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/outcomes")
    wide = tell(client, ask(client, ROW).headers["x-feedback-id"], "x" * 5000)
    assert (wide.status_code, wide.json()["errors"][0]["pointer"]) == (422, "#/outcomes/0")
    assert told(database) == []


def test_ids_end(monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = Receipts(SECRET, "affine", 3600)
    receipt = receipts.issue("ann", 3)
    assert receipts.read(receipt, "ann") is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3602)
    assert receipts.read(receipt, "ann") is None
    monkeypatch.setattr(time, "time", lambda: now - 900)
    assert receipts.read(receipt, "ann") is None


def test_where_clients_have_keys_each_tells_of_its_own_answers_only(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:key-of-ann\nbob:key-of-bob\n")
    with (
        threaded(affine(tmp_path / "m"), redis_url=redis_server, api_keys_file=str(keys)) as server,
        server.client() as client,
    ):
        receipt = ask(client, ROW, **{"x-api-key": "key-of-ann"}).headers["x-feedback-id"]
        assert tell(client, receipt, 1, **{"x-api-key": "key-of-bob"}).status_code == 404
        assert told(database) == []
        assert tell(client, receipt, 1, **{"x-api-key": "key-of-ann"}).status_code == 202
    assert len(told(database)) == 1


def test_one_anonymous_megabyte_evicts_nothing_and_stops_nobody(
    client: httpx.Client, server: ThreadedServer, database: Any
) -> None:
    """520 000 outcomes in one body took the place of every genuine one, and the loop for fifteen seconds."""
    genuine = [ask(client, ROW).headers["x-feedback-id"] for _ in range(50)]
    for receipt in genuine:
        assert tell(client, receipt, 1).status_code == 202
    body = b'{"request_id":"%s","outcomes":[%s]}' % (genuine[0].encode(), b",".join([b"1"] * 520_000))
    statuses: list[int] = []

    def flood() -> None:
        with server.client() as own:
            for _ in range(5):
                statuses.append(own.post("/feedback", content=body).status_code)  # noqa: PERF401

    flooding = threading.Thread(target=flood)
    flooding.start()
    longest = 0.0
    while flooding.is_alive():
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        longest = max(longest, time.monotonic() - began)
    assert statuses == [422] * 5
    assert longest < 5, "before, the loop stood still for 14 to 17 s"
    assert [request for request, _, _ in told(database)] == [request_of(receipt) for receipt in genuine]


def test_many_rows_are_told_in_pieces(tmp_path: Path, redis_server: str, database: Any) -> None:
    with (
        threaded(affine(tmp_path / "m", limits={"max_rows": 4000}), redis_url=redis_server) as server,
        server.client() as client,
    ):
        receipt = ask(client, *[ROW] * 4000).headers["x-feedback-id"]
        assert tell(client, receipt, *range(4000)).json()["kept"] == 4000
        assert [row for _, row, _ in told(database)] == list(range(4000))
        commands = database.info("commandstats")["cmdstat_eval"]["calls"]
        assert commands >= 20


def test_replicas_and_workers_that_share_a_secret_take_each_other_s_outcomes(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    bundle = affine(tmp_path / "m")
    with (
        threaded(bundle, redis_url=redis_server, secret=SECRET.decode()) as one,
        threaded(bundle, redis_url=redis_server, secret=SECRET.decode(), version="8") as two,
        one.client() as first,
        two.client() as second,
    ):
        assert tell(second, ask(first, ROW).headers["x-feedback-id"], 1).status_code == 202
    # Without one, the workers of a server share what their supervisor has made.
    with process(bundle, redis_url=redis_server, workers=2) as server:
        by_worker: dict[str, str] = {}

        def once(_: int) -> None:
            with httpx.Client(base_url=server.url, timeout=20) as client:
                receipt = ask(client, *[ROW] * 20).headers.get("x-feedback-id")
                if receipt is not None:
                    by_worker[receipt[:16]] = receipt

        until = time.monotonic() + 30
        while len(by_worker) < 2 and time.monotonic() < until:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(once, range(64)))
        assert len(by_worker) == 2, "both workers have answered"
        with httpx.Client(base_url=server.url) as client:  # one connection: one worker
            for receipt in by_worker.values():
                assert tell(client, receipt, 1).status_code == 202
    assert len(told(database)) == 3


@pytest.mark.usefixtures("database")
def test_the_id_comes_with_every_answer_that_is_sampled(tmp_path: Path, redis_server: str) -> None:
    bundle = affine(tmp_path / "m", cache={"enabled": True, "timeout_seconds": 1.0})
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        computed = ask(client, ROW).headers["x-feedback-id"]
        time.sleep(0.2)
        cached = ask(client, ROW)
        assert cached.headers["x-cache"] == "hit"
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}]}
        inferred = client.post("/v2/models/affine/infer", json=body).headers["x-feedback-id"]
        assert "x-feedback-id" not in cached.headers, "no sample: its outcome could be joined with nothing"
        assert computed != inferred
        assert [tell(client, receipt, 1).status_code for receipt in (computed, inferred)] == [202] * 2
        assert "x-feedback-id" not in client.post("/predict", json={"instances": [[1]]}).headers


def test_nobody_keeps_outcomes_without_redis(tmp_path: Path) -> None:
    with threaded(affine(tmp_path / "m")) as server, server.client() as client:
        assert "x-feedback-id" not in ask(client, ROW).headers
        assert tell(client, "anything", 1).status_code == 503
