"""The Open Inference Protocol with the stock client, and what a hostile client may send in binary."""

from __future__ import annotations

import asyncio
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient import http as triton
from tritonclient.http import aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.serving.server_runs import ThreadedServer, threaded

X = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], dtype=np.float32)
SCORES = np.array([[3, 5, 7], [1, 1, 1]], dtype=np.float32)


@pytest.fixture
def client(affine_server: ThreadedServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{affine_server.port}") as client:
        yield client


@pytest.fixture
def people(people_server: ThreadedServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{people_server.port}") as client:
        yield client


def x_input(values: np.ndarray = X, *, binary: bool = True, name: str = "x") -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "7")
    assert not client.is_model_ready("affine", "8")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    for metadata in (client.get_model_metadata("affine"), client.get_model_metadata("affine", "7")):
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert metadata["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]
        assert metadata["versions"] == ["7"]
    [entry] = client.get_model_repository_index()
    assert (entry["name"], entry["state"]) == ("affine", "READY")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer_in_every_form(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None, compression: str | None
) -> None:
    outputs = None if binary_out is None else [triton.InferRequestedOutput("scores", binary_data=binary_out)]
    answer = client.infer(
        "affine",
        [x_input(binary=binary_in)],
        outputs=outputs,
        request_id="42",
        model_version="7",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_allclose(answer.as_numpy("scores"), SCORES)
    head = answer.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("42", "affine", "7")


def test_infer_asynchronously(client: triton.InferenceServerClient) -> None:
    pending = [client.async_infer("affine", [x_input(X + step)]) for step in range(5)]
    for step, request in enumerate(pending):
        expected = (X + step)[:, :3] * 2 + 1
        np.testing.assert_allclose(request.get_result().as_numpy("scores"), expected)


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_of_a_handler(people: triton.InferenceServerClient, binary: bool) -> None:
    columns = {
        "age": np.array([30, 75], dtype=np.int64),
        "height": np.array([1.7, np.nan if binary else 1.8], dtype=np.float64),
        "name": np.array(["Ada", "Zoë"], dtype=np.object_),
        "member": np.array([True, False]),
    }
    datatypes = {"age": "INT64", "height": "FP64", "name": "BYTES", "member": "BOOL"}
    inputs = []
    for name, values in columns.items():
        tensor = triton.InferInput(name, [2], datatypes[name])
        tensor.set_data_from_numpy(values, binary_data=binary)
        inputs.append(tensor)
    for tensors in (inputs, [tensor for tensor in inputs if tensor.name() != "height"]):
        answer = people.infer("people", tensors)
        np.testing.assert_allclose(answer.as_numpy("score"), [0.2, 0.5])
        assert answer.as_numpy("label").tolist() == [b"member", b"guest"]


def refused(client: triton.InferenceServerClient, *inputs: triton.InferInput, **options: object) -> str:
    with pytest.raises(InferenceServerException) as raised:
        client.infer("affine", list(inputs), **options)
    assert raised.value.status() == "400"
    return str(raised.value.message())


def test_mistakes_of_the_client_are_400_and_named(client: triton.InferenceServerClient) -> None:
    doubles = triton.InferInput("x", [2, 4], "FP64")
    doubles.set_data_from_numpy(X.astype(np.float64))
    assert "FP64 is not FP32" in refused(client, doubles)
    assert "shape" in refused(client, x_input(np.zeros((2, 5), np.float32)))
    assert "shape" in refused(client, x_input(np.zeros((4,), np.float32)))
    assert "unknown input" in refused(client, x_input(name="z"))
    assert "missing" in refused(client)
    assert "twice" in refused(client, x_input(), x_input())
    assert "NaN" in refused(client, x_input(np.full((1, 4), np.nan, np.float32)))
    assert "unknown output" in refused(client, x_input(), outputs=[triton.InferRequestedOutput("y")])
    assert "101 rows" in refused(client, x_input(np.zeros((101, 4), np.float32)))
    classes = triton.InferRequestedOutput("scores", class_count=2)
    assert "classification" in refused(client, x_input(), outputs=[classes])


def test_an_unknown_model_is_404(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.infer("nobody", [x_input()])
    assert raised.value.status() == "404"
    with pytest.raises(InferenceServerException) as raised:
        client.infer("affine", [x_input()], model_version="99")
    assert raised.value.status() == "404"


def post(client: httpx.Client, head: bytes, data: bytes = b"", length: object = None) -> httpx.Response:
    headers = {"inference-header-content-length": str(len(head) if length is None else length)}
    return client.post("/v2/models/affine/infer", content=head + data, headers=headers)


def binary_head(rows: int = 1, size: object = 16, extra: str = "") -> bytes:
    return (
        f'{{"inputs":[{{"name":"x","shape":[{rows},4],"datatype":"FP32",'
        f'"parameters":{{"binary_data_size":{size}}}{extra}}}]}}'
    ).encode()


DATA = struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("head", "data", "length"),
    [
        (binary_head(), DATA[:-1], None),
        (binary_head(), DATA + b"x", None),
        (binary_head(size=-16), DATA, None),
        (binary_head(size='"16"'), DATA, None),
        (binary_head(size=2**70), DATA, None),
        (binary_head(rows=2), DATA, None),
        (binary_head(rows=10**15), DATA, None),
        (binary_head(rows=-1), DATA, None),
        (binary_head(extra=',"data":[1,2,3,4]'), DATA, None),
        (binary_head(), DATA, 10**9),
        (binary_head(), DATA, "-5"),
        (binary_head(), DATA, "abc"),
        (binary_head(), DATA, 3),
        (b'{"inputs":[]}', b"", None),
        (b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32"}]}', b"", None),
        (b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3]}]}', b"", None),
        (b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[[1,2],[3,4]]}]}', b"", None),
        (b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[[1,2,3,null]]}]}', b"", None),
        (b'{"inputs":[{"name":"x","shape":[2,4],"datatype":"FP32","data":[[1,2,3,4],[1]]}]}', b"", None),
        (b'{"inputs":{}}', b"", None),
        (b"", b"", None),
        (b"[" * 5000, b"", None),
    ],
)
def test_broken_messages_are_400(
    affine_server: ThreadedServer, head: bytes, data: bytes, length: object
) -> None:
    with affine_server.client() as client:
        response = post(client, head, data, length)
        assert response.status_code == 400, response.text
        assert response.json()["error"] == response.json()["detail"]
        assert post(client, binary_head(), DATA).status_code == 200


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))
"""Messages of each kind; a long search takes more."""


def binary_message(*tensors: tuple[str, str, list[int], bytes]) -> tuple[bytes, bytes]:
    """Head and data of a request with tensors in binary."""
    inputs = [
        {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in tensors
    ]
    return orjson.dumps({"inputs": inputs}), b"".join(data for *_, data in tensors)


VALID = {
    "affine": binary_message(("x", "FP32", [2, 4], DATA * 2)),
    "people": binary_message(
        ("age", "INT64", [2], struct.pack("<2q", 30, 75)),
        ("height", "FP64", [2], struct.pack("<2d", 1.7, math.nan)),
        ("name", "BYTES", [2], b"\3\0\0\0Ada\4\0\0\0Zo\xc3\xab"),
        ("member", "BOOL", [2], b"\1\0"),
    ),
}


@st.composite
def broken_messages(draw: st.DrawFn) -> tuple[str, bytes, int]:
    """A valid message with a few bytes changed, put in or taken out: model, body, length of the head."""
    model = draw(st.sampled_from(sorted(VALID)))
    head, data = VALID[model]
    body = bytearray(head + data)
    for _ in range(draw(st.integers(0, 3))):
        # Half of the damage is done to the data: it is shorter, and most of it is still a valid message.
        low = draw(st.sampled_from([0, len(head)]))
        place = draw(st.integers(min(low, len(body)), len(body)))
        taken = draw(st.sampled_from([0, 1, 1, 1, 2, 8]))
        body[place : place + taken] = draw(st.binary(min_size=taken, max_size=taken) | st.binary(max_size=8))
    if draw(st.integers(0, 9)) == 0:
        del body[draw(st.integers(0, len(body))) :]
    return model, bytes(body), len(head) + draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1, 7, -30]))


@st.composite
def made_up_messages(draw: st.DrawFn) -> tuple[str, bytes, int]:
    """One tensor whose fields contradict each other or the data."""
    sizes = st.integers(-2, 6) | st.sampled_from([4, 4, 2**31, 2**63, -(2**63)])
    shape = draw(st.lists(sizes, max_size=4))
    tensor = {
        "name": draw(st.sampled_from(["x", "x", "x", "name", "age", "member", "height", "é", ""])),
        "datatype": draw(st.sampled_from(["FP32", "FP32", "FP64", "INT64", "BOOL", "BYTES", "FP16", "?"])),
        "parameters": draw(st.just({}) | st.integers(-4, 80).map(lambda size: {"binary_data_size": size})),
        "shape": [],
    }
    head = orjson.dumps({"inputs": [tensor]}).replace(b'"shape":[]', b'"shape":' + str(shape).encode())
    return draw(st.sampled_from(sorted(VALID))), head + draw(st.binary(max_size=80)), len(head)


@pytest.mark.parametrize("messages", [broken_messages, made_up_messages])
def test_no_binary_message_breaks_the_server(
    affine_server: ThreadedServer,
    people_server: ThreadedServer,
    messages: Callable[[], st.SearchStrategy[tuple[str, bytes, int]]],
) -> None:
    statuses: dict[int, int] = {}
    with affine_server.client() as first, people_server.client() as second:
        clients = {"affine": first, "people": second}

        @settings(max_examples=EXAMPLES, deadline=None, database=None)
        @given(messages())
        def send(message: tuple[str, bytes, int]) -> None:
            model, body, length = message
            response = clients[model].post(
                f"/v2/models/{model}/infer",
                content=body,
                headers={"inference-header-content-length": str(max(0, length))},
            )
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code in (200, 400), response.text

        send()
        for model, (head, data) in VALID.items():
            length = {"inference-header-content-length": str(len(head))}
            answer = clients[model].post(f"/v2/models/{model}/infer", content=head + data, headers=length)
            assert answer.status_code == 200, "it still answers"
    print(
        f"{messages.__name__}: {sum(statuses.values())} requests, by status {dict(sorted(statuses.items()))}"
    )
    assert 400 in statuses
    assert messages is made_up_messages or statuses[200] > EXAMPLES / 50, "some damage leaves a valid message"


def test_json_only_requests_need_no_content_type(affine_client: httpx.Client) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'
    response = affine_client.post("/v2/models/affine/infer", content=body)
    assert response.json()["outputs"][0]["data"] == [3, 5, 7]
    assert response.headers["content-type"] == "application/json"


def test_a_server_that_is_not_ready_says_so_in_the_protocols_form(tmp_path: Path) -> None:
    from tests.serving.model_bundles import people as make

    with threaded(make(tmp_path)) as server, server.client() as client:
        server.server.service.drain()
        assert client.get("/v2/health/live").status_code == 200
        not_ready = client.get("/v2/health/ready")
        assert not_ready.status_code == 503
        assert "draining" in not_ready.json()["error"]


def test_the_asynchronous_client(affine_server: ThreadedServer) -> None:
    async def ask() -> list[np.ndarray]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{affine_server.port}") as client:
            assert await client.is_model_ready("affine")
            answers = await asyncio.gather(
                *(client.infer("affine", [x_input(X + step, binary=step % 2 == 0)]) for step in range(4))
            )
            with pytest.raises(InferenceServerException, match="unknown input"):
                await client.infer("affine", [x_input(name="z")])
            return [answer.as_numpy("scores") for answer in answers]

    for step, scores in enumerate(asyncio.run(ask())):
        np.testing.assert_allclose(scores, (X + step)[:, :3] * 2 + 1)
