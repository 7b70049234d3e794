"""Models that change their rows in place, and what was run again or kept on the changed rows."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import torch

from serving.inference.model import load_model
from serving.settings import Settings
from tests.serving.asking import eventually
from tests.serving.model_bundles import write_bundle
from tests.serving.refusals import refusal
from tests.serving.server_runs import threaded

SIGNATURE = {
    "inputs": [
        {"name": "n", "type": "number"},
        {"name": "v", "type": "number", "shape": [3]},
        {"name": "bad", "type": "boolean"},
    ],
    "outputs": [{"name": "y", "type": "number"}, {"name": "w", "type": "number", "shape": [3]}],
}
CHANGES = """
import time

def load(folder, device):
    return None

def predict(model, rows):
    for row in rows:
        row["n"] = row["n"] / 10
        row["v"] /= 10
        row["extra"] = {1, 2}
    bad = [row.pop("bad") for row in rows]
    time.sleep(0.005)
    if any(bad):
        raise ValueError("a bad row")
    return [{"y": row["n"], "w": row["v"]} for row in rows]
"""


def changing(folder: Path, **serving: object) -> Path:
    return write_bundle(
        folder,
        name="changing",
        signature=SIGNATURE,
        serving={"runtime": {"kind": "handler"}, **serving},
        files={"handler.py": CHANGES},
    )


def row(bad: bool = False) -> dict[str, object]:
    return {"n": 500.0, "v": [10.0, 20.0, 30.0], "bad": bad}


RIGHT = {"y": 50.0, "w": [1.0, 2.0, 3.0]}


def test_good_rows_beside_a_bad_one_are_run_again_as_they_came(tmp_path: Path) -> None:
    """81 of 280 good answers were scaled twice; also within one request, and for rows from binary tensors."""
    with threaded(changing(tmp_path)) as server, ThreadPoolExecutor(8) as clients:

        def ask(number: int) -> list[tuple[int, Any]]:
            with server.client() as client:
                answers = [
                    client.post("/predict", json={"instances": [row(number == 0 and turn % 2 == 0)]})
                    for turn in range(20)
                ]
                return [(answer.status_code, answer.json().get("predictions")) for answer in answers]

        answers = list(clients.map(ask, range(8)))
        assert [answer for client in answers[1:] for answer in client] == [(200, [RIGHT])] * 140
        with server.client() as client:
            mixed = client.post("/predict", json={"instances": [row(), row(bad=True), row()]})
            assert mixed.status_code == 500
            assert mixed.json()["errors"][0]["pointer"] == "#/instances/1"


def test_rows_of_a_job_are_run_again_as_they_came(tmp_path: Path) -> None:
    """A job was done with 63 of 99 rows wrong. Jobs give their rows to the batcher in one payload."""
    import asyncio

    from serving.inference.batcher import Batcher
    from serving.inference.rows import RecordResult
    from serving.telemetry import Telemetry

    loaded = load_model(Settings(bundle=str(changing(tmp_path))))

    async def run() -> list[Any]:
        telemetry = Telemetry()
        telemetry.bind("changing", "1")
        batcher = Batcher(loaded.engine, loaded.spec.serving.batching, cost=loaded.cost, observer=telemetry)
        rows = [row(bad=number == 7) for number in range(40)]
        outcomes = await batcher.background(loaded.codec.decode(orjson.dumps({"instances": rows})))
        batcher.close()
        return outcomes

    outcomes = asyncio.run(run())
    good = [outcome.rows[0] for outcome in outcomes if isinstance(outcome, RecordResult)]
    assert good == [RIGHT] * 39


def test_samples_hold_the_rows_that_came(tmp_path: Path, redis_server: str, database: Any) -> None:
    """Drift samples were scaled, or could not be written at all for the set that the handler had added."""
    with threaded(changing(tmp_path), redis_url=redis_server) as server, server.client() as client:
        assert client.post("/predict", json={"instances": [row()]}).json() == {"predictions": [RIGHT]}
        [(_, entry)] = eventually(lambda: database.xrange("samples:changing"))
    sample = orjson.loads(entry[b"data"])
    assert sample["features"] == row()
    assert sample["prediction"] == RIGHT


IN_PLACE = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(1)

    def forward(self, x):
        x.mul_(2)
        if self.last.shape == x.shape:
            self.last.copy_(x)
        else:
            self.last = x.clone()
        if (x < 0).any():
            raise ValueError("a bad row")
        return self.last

def build():
    return Model()
"""


def in_place(folder: Path, width: int) -> Path:
    vector = {"type": "number", "shape": [width]}
    return write_bundle(
        folder,
        name="inplace",
        signature={"inputs": [{"name": "x", **vector}], "outputs": [{"name": "y", **vector}]},
        serving={"runtime": {"kind": "pytorch", "file": "model.pt"}},
        files={"handler.py": IN_PLACE, "samples.jsonl": _samples(width)},
        write=lambda target: torch.save({}, target / "model.pt"),
    )


def _samples(width: int) -> str:
    rows = [[1.0] * width, [2.0] * width]
    return orjson.dumps({"instances": rows, "predictions": [[2.0] * width, [4.0] * width]}).decode()


@pytest.mark.parametrize("width", [3, 3000])
def test_a_module_that_changes_its_input_and_gives_its_own_buffer(
    tmp_path: Path, redis_server: str, database: Any, width: int
) -> None:
    """`x.mul_()` on the request's own memory, and an answer that the next call overwrites."""
    with threaded(in_place(tmp_path, width), redis_url=redis_server) as server, server.client() as client:
        for value in (1.0, 2.0):
            answer = client.post("/predict", json={"instances": [[value] * width]})
            assert answer.json() == {"predictions": [[2 * value] * width]}
        bad = client.post("/predict", json={"instances": [[1.0] * width, [-1.0] * width]})
        assert bad.status_code == 500
        tensor = {"name": "x", "shape": [1, width], "datatype": "FP32", "data": [3.0] * width}
        answer = client.post("/v2/models/inplace/infer", json={"inputs": [tensor]})
        assert answer.json()["outputs"][0]["data"] == [6.0] * width
        if width == 3:
            entries = eventually(lambda: (found := database.xrange("samples:inplace"))[2:] and found)
            samples = [orjson.loads(entry[b"data"]) for _, entry in entries]
            assert [sample["features"]["x"][0] for sample in samples] == [1, 2, 3]
            assert [sample["prediction"]["y"][0] for sample in samples] == [2, 4, 6]


REUSES = """
def load(folder, device):
    return [{"y": 0.0, "w": [0.0, 0.0, 0.0]} for _ in range(64)]

def predict(model, rows):
    for answer, row in zip(model, rows):
        answer["y"] = row["n"]
        answer["w"][:] = row["v"].tolist()
    return model[:len(rows)]
"""


def test_answers_that_a_handler_keeps_and_changes_are_as_they_were_given(
    tmp_path: Path, redis_server: str, database: Any
) -> None:
    bundle = write_bundle(
        tmp_path,
        name="reuses",
        signature=SIGNATURE,
        serving={"runtime": {"kind": "handler"}},
        files={"handler.py": REUSES},
    )
    with threaded(bundle, redis_url=redis_server) as server, server.client() as client:
        for number in range(3):
            client.post("/predict", json={"instances": [{**row(), "n": float(number)}]})
        entries = eventually(lambda: (found := database.xrange("samples:reuses"))[2:] and found)
    samples = [orjson.loads(entry[b"data"]) for _, entry in entries]
    assert [sample["prediction"]["y"] for sample in samples] == [0, 1, 2]


def handler(folder: Path, code: str) -> Path:
    signature = {
        "inputs": [{"name": "n", "type": "number"}],
        "outputs": [{"name": "y", "type": "number"}],
    }
    files = {"handler.py": "def load(folder, device): return None\n" + code}
    return write_bundle(
        folder, name="m", signature=signature, serving={"runtime": {"kind": "handler"}}, files=files
    )


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("async def predict(model, rows): return [{'y': 1.0} for _ in rows]", "write `def predict`"),
        ("def predict(model, rows):\n    for row in rows: yield {'y': 1.0}", "return a list"),
        ("import numpy\ndef predict(model, rows): return numpy.zeros(len(rows))", "gave a ndarray"),
        ("def predict(model, rows): return {'y': [1.0]}", "gave a dict, expected a list of 1 dicts"),
        ("def predict(model, rows): return [1.0 for _ in rows]", "Expected `object`, got `float`"),
        ("def predict(model, rows): return [{'z': 1.0} for _ in rows]", "unknown field `z`"),
        ("def predict(model, rows): return [{'y': '1'} for _ in rows]", "Expected `float`, got `str`"),
        ("def predict(model, rows): return [{'y': float(len(rows))} for _ in rows]", "row 0 alone gives 1.0"),
        (
            "import asyncio\nasync def one(): return []\ndef predict(model, rows): return one()",
            "gave a coroutine",
        ),
    ],
)
def test_handlers_that_cannot_be_served_do_not_become_ready(tmp_path: Path, code: str, says: str) -> None:
    """Async and generator handlers answered every request with a 500 (as in pytorch/serve#2853: a number of
    answers that is not the number of requests)."""
    assert says in refusal(handler(tmp_path, code))


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise KeyboardInterrupt", "raise GeneratorExit"])
def test_a_handler_that_ends_its_thread_fails_its_row_and_not_the_server(tmp_path: Path, end: str) -> None:
    code = f"""
import sys

def predict(model, rows):
    if any(row["n"] == 9 for row in rows):
        {end}
    return [{{"y": row["n"]}} for row in rows]
"""
    with threaded(handler(tmp_path, code)) as server, server.client() as client:
        assert client.post("/predict", json={"instances": [9]}).status_code == 500
        assert client.post("/predict", json={"instances": [8]}).json() == {"predictions": [8.0]}
        time.sleep(0.1)
        assert httpx.get(server.url + "/healthz").status_code == 200
