"""Drift samples and outcomes against a real Redis."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.receipts import request_of
from tests.serving.asking import ask, eventually, metric
from tests.serving.model_bundles import PEOPLE_SIGNATURE, affine, people, person
from tests.serving.server_runs import threaded

PATIENT = {"enabled": True, "timeout_seconds": 1.0}

"""These tests are about what is cached; on a busy machine Redis may be slower than the default patience."""


def test_answered_rows_become_samples_and_outcomes_join_them(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    bundle = people(tmp_path, cache=PATIENT)
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        first = ask(client, person(), person("Bob", age=60)).headers["x-feedback-id"]
        assert eventually(lambda: len(database.keys("predictions:*")) == 2)
        ask(client, person())  # cached
        answer = client.post("/feedback", json={"request_id": first, "outcomes": [None, 1]})
        assert answer.status_code == 202
        entries = eventually(
            lambda: len(database.xrange("samples:people")) == 2 and database.xrange("samples:people")
        )
        samples = [json.loads(fields[b"data"]) for _, fields in entries]
        assert [sample["row"] for sample in samples] == [0, 1]
        assert {sample["release"] for sample in samples} == {"people-v7"}
        assert {sample["request_id"] for sample in samples} == {request_of(first)}
        assert samples[1]["features"] == person("Bob", age=60)
        assert samples[1]["prediction"] == {"score": 0.4, "label": "member"}
        assert abs(samples[0]["at"] - time.time()) < 60
        [(_, fields)] = database.xrange("outcomes:people")
        outcome = json.loads(fields[b"data"])
        assert (outcome["request_id"], outcome["row"], outcome["outcome"]) == (request_of(first), 1, 1)


def test_personal_data_never_leaves_the_server_as_it_is(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    marks = {"name": "hash", "height": "drop"}
    inputs = [
        {**column, **({"personal": marks[column["name"]]} if column["name"] in marks else {})}
        for column in PEOPLE_SIGNATURE["inputs"]
    ]
    outputs = [PEOPLE_SIGNATURE["outputs"][0], {**PEOPLE_SIGNATURE["outputs"][1], "personal": "drop"}]
    bundle = people(tmp_path, signature={"inputs": inputs, "outputs": outputs})
    options = {"personal_key": "a secret that nobody else has"}
    with threaded(bundle, redis_url=redis_server, **options) as server, server.client() as client:
        answer = ask(client, person("Ada", height=1.71), person("Bob"), person("Ada"))
        assert answer.json()["predictions"][0]["label"] == "member", "the client gets all of it"
        assert eventually(lambda: database.xlen("samples:people") == 3)
    raw = [fields[b"data"] for _, fields in database.xrange("samples:people")]
    assert not any(text in entry for entry in raw for text in (b"Ada", b"Bob", b"1.71", b"height", b"label"))
    features = [json.loads(entry)["features"] for entry in raw]
    assert all(row["age"] == 30 for row in features)
    first, second, third = (row["name"] for row in features)
    assert first == third != second
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert hashlib.sha256(b"Ada").hexdigest()[:32] != first


def test_samples_are_bounded_and_counted(tmp_path: Path, redis_server: str, database: Any) -> None:
    bundle = affine(tmp_path, samples={"per_second": 10}, limits={"max_rows": 100})
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        for number in range(10):
            ask(client, *[[number, row, 0, 0] for row in range(10)])
        assert eventually(
            lambda: metric(client, "samples_sent_total") + metric(client, "samples_dropped_total") == 100
        )
        assert 10 <= database.xlen("samples:affine") <= 30


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        ({"request_id": "a", "outcomes": [1]}, 503, None),
        ({"request_id": "a"}, 422, "#"),
        ({"request_id": 1, "outcomes": []}, 422, "#/request_id"),
        ({"request_id": "", "outcomes": []}, 422, "#/request_id"),
        ({"request_id": "a", "outcomes": [], "x": 1}, 422, "#"),
    ],
)
def test_feedback_is_checked(
    affine_client: httpx.Client, body: dict[str, object], status: int, where: str | None
) -> None:
    response = affine_client.post("/feedback", json=body)
    assert response.status_code == status
    if where is not None:
        assert response.json()["errors"][0]["pointer"] == where
