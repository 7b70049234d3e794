"""Clients that were written for other servers and ask for what those answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from serving.service import State
from tests.serving.model_bundles import affine
from tests.serving.server_runs import ThreadedServer, process, threaded


@pytest.fixture(params=[True, False], ids=["fast", "fastapi"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ThreadedServer]:
    with threaded(affine(tmp_path / "affine", limits={"max_rows": 100}), fast_path=request.param) as server:
        yield server


@pytest.fixture
def client(server: ThreadedServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def infer(client: triton.InferenceServerClient, rows: int, name: str = "affine") -> None:
    tensor = triton.InferInput("x", [rows, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, 4), dtype=np.float32))
    client.infer(name, [tensor])


def test_health_is_read_from_the_body(server: ThreadedServer) -> None:
    """KServe's client returns the members `live` and `ready`: with `{}` it said None."""
    with server.client() as plain:
        assert plain.get("/v2/health/live").json() == {"live": True}
        assert plain.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2/models/affine/ready", "/v2/models/affine/versions/7/ready"):
            assert plain.get(path).json() == {"name": "affine", "ready": True}
        assert plain.get("/v2/models").json() == {"models": ["affine"]}
        server.server.service.state = State.DRAINING
        for path in ("/v2/health/ready", "/v2/models/affine/ready"):
            assert plain.get(path).status_code == 503
        assert plain.get("/v2/health/live").json() == {"live": True}
        assert plain.post("/v2/repository/index", json={"ready": True}).json() == []
        [entry] = plain.post("/v2/repository/index").json()
        assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "draining")


def test_statistics_count_what_was_asked(client: triton.InferenceServerClient) -> None:
    """Triton's tools read throughput and queueing from them; they were 404."""
    for rows in (1, 3, 5):
        infer(client, rows)
    with pytest.raises(InferenceServerException):
        infer(client, 101)
    for answer in (
        client.get_inference_statistics(),
        client.get_inference_statistics("affine"),
        client.get_inference_statistics("affine", "7"),
    ):
        [model] = answer["model_stats"]
        counted = model["inference_stats"]
        assert (model["name"], model["version"]) == ("affine", "7")
        assert (model["inference_count"], model["execution_count"]) == (9, 3)
        assert (counted["success"]["count"], counted["fail"]["count"]) == (3, 1)
        assert counted["success"]["ns"] >= counted["compute_infer"]["ns"] > 0
        assert counted["queue"]["count"] == 3
        assert model["last_inference"] > 1_700_000_000_000
    for name, version in (("other", ""), ("affine", "8")):
        with pytest.raises(InferenceServerException):
            client.get_inference_statistics(name, version)


def test_statistics_are_those_of_all_workers(tmp_path: Path) -> None:
    """A client meets any of the workers: what it reads must not depend on which."""
    with process(affine(tmp_path / "affine"), workers=2) as server:
        for _ in range(12):
            with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
                infer(client, 2)
        counts = []
        time.sleep(1)  # each worker adds up four times a second
        for _ in range(4):
            with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
                [model] = client.get_inference_statistics("affine")["model_stats"]
                counts.append((model["inference_count"], model["inference_stats"]["success"]["count"]))
        assert set(counts) == {(24, 12)}


def test_configuration_says_how_to_send_rows(client: triton.InferenceServerClient) -> None:
    for configuration in (client.get_model_config("affine"), client.get_model_config("affine", "7")):
        assert configuration["name"] == "affine"
        assert configuration["max_batch_size"] == 100
        [tensor] = configuration["input"]
        assert (tensor["name"], tensor["data_type"], tensor["dims"]) == ("x", "TYPE_FP32", [4])
        [tensor] = configuration["output"]
        assert (tensor["name"], tensor["data_type"], tensor["dims"]) == ("scores", "TYPE_FP32", [3])


def test_the_one_model_is_loaded_and_stays(client: triton.InferenceServerClient) -> None:
    """Who loads before asking goes on, triton-inference-server/server#4168; nobody takes it from others."""
    client.load_model("affine")
    with pytest.raises(InferenceServerException, match="promote another"):
        client.load_model("affine", config='{"max_batch_size": 1}')
    with pytest.raises(InferenceServerException, match="no model other here"):
        client.load_model("other")
    with pytest.raises(InferenceServerException, match="when the server is stopped") as refused:
        client.unload_model("affine")
    assert refused.value.status() == "409"
    with pytest.raises(InferenceServerException, match="no model other here"):
        client.unload_model("other")
    infer(client, 1)
    extensions = client.get_server_metadata()["extensions"]
    assert {"model_repository", "statistics", "model_configuration"} <= set(extensions)


def test_kserve_s_first_protocol_is_another_name_of_predict(server: ThreadedServer) -> None:
    """Clients of `:predict`: readiness, rows and errors as they read them."""
    rows = {"instances": [[1, 2, 3, 4], {"x": [0, 0, 0, 0]}]}
    with server.client() as plain:
        answer = plain.post("/v1/models/affine:predict", json=rows)
        assert answer.json() == {"predictions": [[3, 5, 7], [1, 1, 1]]}
        assert answer.headers["x-model-version"] == "7"
        assert plain.post("/v1/models/affine%3Apredict", json=rows).json() == answer.json()
        assert plain.get("/").json() == {"status": "alive"}
        assert plain.get("/v1/models").json() == {"models": ["affine"]}
        assert plain.get("/v1/models/affine").json() == {"name": "affine", "ready": True}
        for refused, status in (
            (plain.post("/v1/models/other:predict", json=rows), 404),
            (plain.get("/v1/models/other"), 404),
            (plain.post("/v1/models/affine:explain", json=rows), 405),
            (plain.post("/v1/models/affine:predict", json={"instances": [[1]]}), 422),
            (plain.post("/v1/models/affine:predict", content=b"{"), 400),
        ):
            assert refused.status_code == status
            assert refused.json()["error"]
        counted = plain.get("/metrics").text
        assert 'modelserve_predictions_total{model="affine",outcome="success",version="7"} 2.0' in counted
        server.server.service.state = State.DRAINING
        assert plain.get("/v1/models/affine").status_code == 503
