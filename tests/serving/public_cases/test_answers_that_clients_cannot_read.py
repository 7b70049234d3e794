"""Large answers over thin lines, pages of other sites, and addresses of version 6."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow
import pytest
from tritonclient import http as triton

from tests.serving.model_bundles import affine
from tests.serving.server_runs import ThreadedServer, process, threaded

ROWS = {"instances": [[index, 2, 3, 4] for index in range(900)]}
PAGE = "https://shop.example.com"


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "fastapi"])
def server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ThreadedServer]:
    folder = tmp_path_factory.mktemp("affine")
    keys = folder / "keys"
    keys.write_text("shop:open sesame\n")
    with threaded(
        affine(folder / "bundle"),
        fast_path=request.param,
        compress_bytes=4096,
        cors_origins=(PAGE,),
        api_keys_file=keys,
    ) as server:
        yield server


@pytest.fixture
def client(server: ThreadedServer) -> Iterator[httpx.Client]:
    with server.client(headers={"x-api-key": "open sesame"}) as client:
        yield client


def raw(client: httpx.Client, accepted: str, rows: object = ROWS) -> tuple[str | None, bytes]:
    """The answer's encoding, and its bytes as they came."""
    with client.stream("POST", "/predict", json=rows, headers={"accept-encoding": accepted}) as answer:
        assert answer.status_code == 200
        content = b"".join(answer.iter_raw())
        assert int(answer.headers["content-length"]) == len(content)
        return answer.headers.get("content-encoding"), content


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, zstd", "zstd"),
        ("x-gzip", "x-gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0, deflate;q=0.1", "deflate"),
        ("GZIP", "gzip"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip;q=nonsense", None),
    ],
)
def test_large_answers_are_compressed_for_those_who_ask(
    client: httpx.Client, accepted: str, encoding: str | None
) -> None:
    """Large answers filled the line, SeldonIO/MLServer#319."""
    found, content = raw(client, accepted)
    assert found == encoding
    _, plain = raw(client, "identity")
    if encoding == "zstd":
        content = pyarrow.decompress(content, len(plain), codec="zstd", asbytes=True)
    elif encoding == "deflate":
        content = zlib.decompress(content)
    elif encoding is not None:
        content = gzip.decompress(content)
    assert content == plain
    assert len(json.loads(plain)["predictions"]) == 900


def test_small_answers_are_left_alone(client: httpx.Client) -> None:
    assert raw(client, "gzip, zstd", {"instances": [[1, 2, 3, 4]]})[0] is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_the_stock_client_reads_compressed_tensors(server: ThreadedServer, algorithm: str) -> None:
    values = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    tensor = triton.InferInput("x", [1000, 4], "FP32")
    tensor.set_data_from_numpy(values)
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        answer = client.infer(
            "affine",
            [tensor],
            headers={"x-api-key": "open sesame"},
            response_compression_algorithm=algorithm,
        )
    assert np.array_equal(answer.as_numpy("scores"), values[:, :3] * 2 + 1)


def test_pages_of_named_origins_may_read_all_answers(server: ThreadedServer, client: httpx.Client) -> None:
    """A browser asks first, without the key, openvinotoolkit/model_server#3417; refusals are shown too."""
    asking = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-api-key",
    }
    with server.client() as browser:
        before = browser.options("/predict", headers=asking)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == PAGE
        assert "POST" in before.headers["access-control-allow-methods"]
        assert before.headers["access-control-allow-headers"] == "content-type,x-api-key"
        refused = browser.post("/predict", json=ROWS, headers={"origin": PAGE})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == PAGE
        stranger = browser.options("/predict", headers=asking | {"origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in stranger.headers
    for path in ("/predict", "/v1/models/affine:predict"):
        answer = client.post(path, json=ROWS, headers={"origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = client.post(path, json=ROWS, headers={"origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in other.headers
    assert client.get("/nowhere", headers={"origin": PAGE}).headers["access-control-allow-origin"] == PAGE


def test_without_the_setting_no_page_may(tmp_path: Path) -> None:
    with threaded(affine(tmp_path / "affine")) as server, server.client() as client:
        answer = client.post("/predict", json={"instances": [[1, 2, 3, 4]]}, headers={"origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        asked = client.options("/predict", headers={"origin": PAGE, "access-control-request-method": "POST"})
        assert asked.status_code == 405


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("workers", [1, 2])
def test_all_addresses_are_all_with_one_worker_and_with_several(tmp_path: Path, workers: int) -> None:
    """`::` was version 6 alone with one worker, and both with two."""
    with process(affine(tmp_path / "affine"), host="::", workers=workers) as server:
        for address in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{address}:{server.port}/readyz").status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_said_in_the_same_words(tmp_path: Path, workers: int) -> None:
    with process(affine(tmp_path / "affine"), ready=False, workers=workers) as first:
        first.wait_ready()
        with process(tmp_path / "affine", ready=False, workers=workers, port=first.port) as second:
            assert second.process.wait(30) == 1
            assert "choose another SERVING_HOST or SERVING_PORT" in second.log


def test_probes_answer_head(client: httpx.Client) -> None:
    """Load balancers ask with HEAD."""
    for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
