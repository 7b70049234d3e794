"""Columns marked as personal leave the server as they are by no way out: Redis, metrics, jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.errors import SpecProblem, StartupError
from serving.inference.bundle import seal
from serving.personal import Personal
from serving.receipts import request_of
from serving.spec import read_model_file
from tests.serving.asking import ask, eventually
from tests.serving.model_bundles import PEOPLE_SIGNATURE, people, person
from tests.serving.server_runs import process, threaded

KEY = "a secret that nobody else has"
PATIENT = {"enabled": True, "timeout_seconds": 1.0}


def marked(folder: Path, marks: dict[str, str], **serving: Any) -> Path:
    """The model of people with some of its columns marked."""
    signature = {
        side: [
            {**column, **({"personal": marks[column["name"]]} if column["name"] in marks else {})}
            for column in PEOPLE_SIGNATURE[side]
        ]
        for side in ("inputs", "outputs")
    }
    bundle = people(folder, signature=signature, **serving)
    seal(bundle)
    return bundle


def everything(database: Any) -> bytes:
    """All that stands in Redis."""
    parts = []
    for key in database.scan_iter():
        parts.append(key)
        kind = database.type(key)
        if kind == b"stream":
            parts += [fields[b"data"] for _, fields in database.xrange(key)]
        elif kind == b"hash":
            parts += [part for pair in database.hgetall(key).items() for part in pair]
        elif kind == b"string":
            parts.append(database.get(key))
    return b"\n".join(parts)


@pytest.mark.parametrize("how", ["hash", "drop"])
def test_a_personal_output_leaves_neither_by_redis_nor_by_metrics(
    tmp_path: Path, redis_server: str, database: Any, how: str
) -> None:
    """The cache kept the answer in plain, `/feedback` wrote the outcome in plain, and a label of
    modelserve_outputs_total was its value."""
    bundle = marked(tmp_path / "m", {"label": how, "score": "drop", "name": "drop"}, cache=PATIENT)
    with (
        threaded(bundle, redis_url=redis_server, personal_key=KEY) as server,
        server.client() as client,
    ):
        answers = [ask(client, person("Ada", age=60)) for _ in range(2)]
        assert answers[0].json()["predictions"][0]["label"] == "member", "the client gets all of it"
        assert answers[1].headers["x-cache"] == "hit", "remembered by the process itself"
        receipt = answers[0].headers["x-feedback-id"]
        content = {"request_id": receipt, "outcomes": [{"label": "member", "score": 0.25}]}
        assert client.post("/feedback", json=content).status_code == 202
        assert eventually(lambda: database.xlen("samples:people"))
        page = client.get("/metrics").text
    kept = everything(database)
    assert not [text for text in (b':"member"', b"Ada", b"0.25") if text in kept]
    assert database.keys("predictions:*") == []
    assert 'bin="member"' not in page
    outcomes = [json.loads(fields[b"data"]) for _, fields in database.xrange("outcomes:people")]
    assert [outcome["request_id"] for outcome in outcomes] == [request_of(receipt)] * (how == "hash")
    assert [set(outcome["outcome"]) for outcome in outcomes] == [{"label"}] * (how == "hash")


def test_an_outcome_without_a_name_is_the_monitored_output_s(tmp_path: Path) -> None:
    model = read_model_file(marked(tmp_path / "m", {"label": "hash"}) / "model.yaml")
    personal = Personal(model, KEY.encode())
    assert personal.outcome(0.5) == 0.5, "the first output is the score"
    model = read_model_file(marked(tmp_path / "n", {"score": "drop"}) / "model.yaml")
    assert Personal(model, None).outcome(0.5) is None
    model = read_model_file(marked(tmp_path / "o", {"score": "hash"}) / "model.yaml")
    hashed = Personal(model, KEY.encode()).outcome(0.5)
    assert hashed == Personal(model, KEY.encode()).prediction({"score": 0.5})["score"], "they can be compared"
    assert hashed != Personal(model, b"another key of that length").outcome(0.5)


def test_a_hash_without_a_key_does_not_start(tmp_path: Path, redis_server: str) -> None:
    """It was dropped without a word, and joins on it were empty for as long as nobody looked."""
    bundle = marked(tmp_path / "m", {"name": "hash"})
    with process(bundle, ready=False, redis_url=redis_server) as server:
        assert server.wait_exit(60) == 1
    assert "SERVING_PERSONAL_KEY" in server.log
    assert "personal: hash of name needs a key" in server.log
    with threaded(bundle) as alone, alone.client() as client:
        ask(client, person())  # nothing leaves a server without Redis and jobs


def test_who_reads_redis_cannot_try_out_names(tmp_path: Path, redis_server: str, database: Any) -> None:
    """With the bundle, which many may read, the keys of the cache could be computed for any guess."""
    bundle = people(tmp_path / "m", cache=PATIENT)
    kept = []
    for secret in ("one secret of the replicas", "one secret of the replicas", "another one of the replicas"):
        with threaded(bundle, redis_url=redis_server, secret=secret) as server, server.client() as client:
            ask(client, person("Ada"))
            assert eventually(lambda: database.keys("predictions:*"))
        kept.append(sorted(database.keys("predictions:*")))
    assert kept[0] == kept[1], "replicas with the same secret share what they know"
    assert len(kept[2]) == 2


def test_metrics_do_not_name_a_personal_output(tmp_path: Path) -> None:
    bundle = people(tmp_path / "m", monitor={"output": "label"})
    text = (bundle / "model.yaml").read_text().replace("- name: label", "- name: label\n    personal: drop")
    (bundle / "model.yaml").write_text(text)
    with pytest.raises(SpecProblem, match="label is personal"):
        read_model_file(bundle / "model.yaml")


def test_rows_with_personal_columns_are_stored_for_jobs_only_when_the_model_says_so(tmp_path: Path) -> None:
    refused = read_model_file(marked(tmp_path / "m", {"name": "drop"}) / "model.yaml")
    assert not Personal(refused, None).jobs
    kept = read_model_file(marked(tmp_path / "n", {"name": "drop"}, jobs={"personal": "keep"}) / "model.yaml")
    assert Personal(kept, None).jobs
    with pytest.raises(StartupError):
        Personal(read_model_file(marked(tmp_path / "o", {"name": "hash"}) / "model.yaml"), None)
