"""POST /predict as a client sees it: answers, refusals, and the headers around them."""

from __future__ import annotations

import gzip
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serving.model_bundles import affine, person
from tests.serving.server_runs import ThreadedServer, threaded


def problem(response: httpx.Response) -> dict[str, object]:
    assert response.headers["content-type"] == "application/problem+json"
    content: dict[str, object] = response.json()
    assert content["status"] == response.status_code
    assert content["request_id"] == response.headers["x-request-id"]
    return content


def pointer(response: httpx.Response) -> str:
    errors = problem(response)["errors"]
    assert isinstance(errors, list)
    return str(errors[0]["pointer"])


def test_bare_rows_and_named_rows_are_answered_alike(affine_client: httpx.Client) -> None:
    bare = affine_client.post("/predict", json={"instances": [[1, 2, 3, 4], [0, 0, 0, 0]]})
    named = affine_client.post("/predict", json={"instances": [{"x": [1, 2, 3, 4]}, [0, 0, 0, 0]]})
    assert bare.status_code == named.status_code == 200
    assert bare.json() == named.json() == {"predictions": [[3, 5, 7], [1, 1, 1]]}


def test_every_answer_names_version_and_request(affine_client: httpx.Client) -> None:
    body = {"instances": [[1, 2, 3, 4]]}
    given = affine_client.post("/predict", json=body, headers={"X-Request-Id": "trace-1"})
    assert given.headers["x-request-id"] == "trace-1"
    assert given.headers["x-model-version"] == "7"
    made = [affine_client.post("/predict", json=body).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert len(made[0]) >= 16
    odd = affine_client.post("/predict", json=body, headers={"X-Request-Id": "a b"})
    assert odd.headers["x-request-id"] != "a b"
    assert given.headers["x-content-type-options"] == "nosniff"


def test_rows_of_a_handler_come_back_as_objects(people_client: httpx.Client) -> None:
    response = people_client.post("/predict", json={"instances": [person(), person(age=75, member=False)]})
    assert response.json() == {
        "predictions": [{"score": 0.2, "label": "member"}, {"score": 0.5, "label": "guest"}]
    }


def test_a_nullable_input_may_be_null_or_left_out(people_client: httpx.Client) -> None:
    without = person()
    del without["height"]
    response = people_client.post("/predict", json={"instances": [person(height=None), without]})
    assert response.status_code == 200


def test_a_whole_number_may_be_written_as_a_float(people_client: httpx.Client) -> None:
    response = people_client.post("/predict", json={"instances": [person(age=30.0), person(age=75)]})
    assert [row["score"] for row in response.json()["predictions"]] == [0.2, 0.5]


def test_more_rows_than_a_batch_come_back_in_order(affine_client: httpx.Client) -> None:
    rows = [[i, i + 1, i + 2, 0] for i in range(100)]
    response = affine_client.post("/predict", json={"instances": rows})
    assert response.json()["predictions"] == [[2 * i + 1, 2 * i + 3, 2 * i + 5] for i in range(100)]


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ([1, 2, 3], "#/instances/0"),
        ([1, 2, 3, 4, 5], "#/instances/0"),
        ([1, None, 3, 4], "#/instances/0/1"),
        ([1, True, 3, 4], "#/instances/0/1"),
        ([1, "2", 3, 4], "#/instances/0/1"),
        ([1, 2, 3, 1e39], "#/instances/0/3"),
        ("text", "#/instances/0"),
        ({"x": [1, 2, 3, "4"]}, "#/instances/0/x/3"),
        ({"y": [1, 2, 3, 4]}, "#/instances/0"),
        ({"x": [1, 2, 3, 4], "y": 1}, "#/instances/0"),
        ({}, "#/instances/0"),
        (None, "#/instances/0"),
    ],
)
def test_a_bad_tensor_row_is_refused_with_its_place(
    affine_client: httpx.Client, row: object, where: str
) -> None:
    response = affine_client.post("/predict", json={"instances": [row]})
    assert response.status_code == 422
    assert pointer(response) == where


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"age": -1}, "#/instances/1/age"),
        ({"age": 151}, "#/instances/1/age"),
        ({"age": 30.5}, "#/instances/1/age"),
        ({"age": None}, "#/instances/1/age"),
        ({"age": "30"}, "#/instances/1/age"),
        ({"height": "tall"}, "#/instances/1/height"),
        ({"name": 3}, "#/instances/1/name"),
        ({"name": "x" * 70_000}, "#/instances/1/name"),
        ({"member": 1}, "#/instances/1/member"),
        ({"extra": 1}, "#/instances/1"),
    ],
)
def test_a_bad_column_is_refused_with_its_place(
    people_client: httpx.Client, changes: dict[str, object], where: str
) -> None:
    response = people_client.post("/predict", json={"instances": [person(), person(**changes)]})
    assert response.status_code == 422
    assert pointer(response) == where


def test_too_many_and_no_rows_are_refused(affine_client: httpx.Client) -> None:
    many = affine_client.post("/predict", json={"instances": [[0, 0, 0, 0]] * 101})
    none = affine_client.post("/predict", json={"instances": []})
    assert (many.status_code, pointer(many)) == (422, "#/instances")
    assert (none.status_code, pointer(none)) == (422, "#/instances")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(affine_client: httpx.Client, text: str) -> None:
    response = affine_client.post(
        "/predict",
        content=f'{{"instances": [[1, {text}, 3, 4]]}}',
        headers={"content-type": "application/json"},
    )
    assert response.status_code in (400, 422)
    problem(response)


def test_json_broken_at_any_byte_is_the_clients_mistake(affine_client: httpx.Client) -> None:
    whole = b'{"instances": [{"x": [1.5, -2e1, 3, 4]}]}'
    statuses = set()
    for position in range(len(whole)):
        for broken in (whole[:position], whole[:position] + b"\xff" + whole[position + 1 :]):
            response = affine_client.post(
                "/predict", content=broken, headers={"content-type": "application/json"}
            )
            problem(response)
            statuses.add(response.status_code)
    assert statuses <= {400, 422}


def test_deep_nesting_is_the_clients_mistake(affine_client: httpx.Client) -> None:
    for body in (b"[" * 100_000, b'{"instances":' + b"[" * 50_000, b"1.5", b'{"instances":1.5}', b"[1.5]"):
        response = affine_client.post("/predict", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (400, 422)


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/vnd.example+json", 200),
        (None, 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_media_types(affine_client: httpx.Client, media: str | None, status: int) -> None:
    headers = {} if media is None else {"content-type": media}
    body = json.dumps({"instances": [[1, 2, 3, 4]]}).encode()
    response = affine_client.post("/predict", content=body, headers=headers)
    assert response.status_code == status


def test_gzip_is_read_and_nonsense_in_it_is_not(affine_client: httpx.Client) -> None:
    body = json.dumps({"instances": [[1, 2, 3, 4]]}).encode()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert affine_client.post("/predict", content=gzip.compress(body), headers=headers).status_code == 200
    assert affine_client.post("/predict", content=body, headers=headers).status_code == 400
    assert (
        affine_client.post("/predict", content=gzip.compress(body)[:-9], headers=headers).status_code == 400
    )
    headers["content-encoding"] = "br"
    assert affine_client.post("/predict", content=body, headers=headers).status_code == 415
    bomb = gzip.compress(b" " * (17 << 20))
    headers["content-encoding"] = "gzip"
    assert affine_client.post("/predict", content=bomb, headers=headers).status_code == 413


def test_a_large_body_is_refused_before_it_is_read(affine_server: ThreadedServer) -> None:
    with socket.create_connection(("127.0.0.1", affine_server.port), timeout=5) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 99999999999\r\n\r\n"
        )
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer


def test_a_chunked_body_is_counted_while_it_is_read(affine_client: httpx.Client) -> None:
    def chunks() -> object:
        for _ in range(40):
            yield b" " * (1 << 20)

    try:
        response = affine_client.post(
            "/predict",
            content=chunks(),  # type: ignore[arg-type]
            headers={"content-type": "application/json"},
        )
    except httpx.WriteError:
        return  # the server has closed while we were still sending: as good a refusal
    assert response.status_code == 413


def test_methods_and_unknown_routes(affine_client: httpx.Client) -> None:
    wrong = affine_client.get("/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    problem(wrong)
    unknown = affine_client.get("/nothing/here")
    assert unknown.status_code == 404
    problem(unknown)


def test_bytes_that_are_not_http_get_a_problem_too(affine_server: ThreadedServer) -> None:
    with socket.create_connection(("127.0.0.1", affine_server.port), timeout=5) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00nonsense\r\n\r\n")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer


def test_a_poisoned_row_fails_alone(people_server: ThreadedServer) -> None:
    names = ["sleep 0.2"] + ["Ada"] * 6 + ["poison"] + ["Bob"] * 6

    def ask(name: str) -> httpx.Response:
        with people_server.client() as client:
            return client.post("/predict", json={"instances": [person(name)]})

    with ThreadPoolExecutor(len(names)) as pool:
        responses = list(pool.map(ask, names))
    statuses = {
        name: {r.status_code for r, n in zip(responses, names, strict=True) if n == name} for name in names
    }
    assert statuses == {"sleep 0.2": {200}, "Ada": {200}, "Bob": {200}, "poison": {500}}


def test_the_failing_row_of_a_request_is_named_and_nothing_leaks(people_client: httpx.Client) -> None:
    response = people_client.post("/predict", json={"instances": [person(), person("poison"), person()]})
    assert response.status_code == 500
    assert pointer(response) == "#/instances/1"
    assert "passwd" not in response.text
    assert "Traceback" not in response.text
    assert people_client.post("/predict", json={"instances": [person()]}).status_code == 200


@pytest.mark.parametrize("name", ["nan", "high", "forget", "short"])
def test_an_answer_that_breaks_the_signature_is_the_servers_fault(
    people_client: httpx.Client, name: str
) -> None:
    response = people_client.post("/predict", json={"instances": [person(name)]})
    assert response.status_code == 500
    problem(response)


def test_a_connection_survives_every_kind_of_refusal(affine_server: ThreadedServer) -> None:
    """A proxy reports a closed connection as a failure of its own."""
    requests = [
        (b"POST /predict", b'{"instances": [1]}', 422),
        (b"POST /predict", b"nonsense", 400),
        (b"GET /nothing", b"", 404),
        (b"POST /v2/models/affine/infer", b"{}", 400),
        (b"POST /predict", b'{"instances": [[1, 2, 3, 4]]}', 200),
    ]
    with socket.create_connection(("127.0.0.1", affine_server.port), timeout=5) as connection:
        for line, body, status in requests:
            head = b"%s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            connection.sendall(head % (line, len(body)) + body)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 %d" % status), answer
            assert b"connection: close" not in answer


@pytest.mark.parametrize("step", ["decode", "encode"])
@pytest.mark.parametrize("fast_path", [True, False])
def test_a_fault_of_the_server_itself_is_a_500_and_the_connection_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, fast_path: bool
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("a secret")

    request = b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 29\r\n\r\n{"instances": [[1, 2, 3, 4]]}'
    with threaded(affine(tmp_path), fast_path=fast_path) as server:
        codec = server.server.service.model.codec
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            for _ in range(2):
                with monkeypatch.context() as broken:
                    broken.setattr(codec, step, fault)
                    connection.sendall(request)
                    answer = connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 500 ")
                assert b"secret" not in answer
                assert b"connection: close" not in answer
                connection.sendall(request)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.1)  # a request is counted after its answer has been sent
        assert server.server.service.telemetry.in_flight == 0


def test_health_answers_while_the_model_runs(people_server: ThreadedServer) -> None:
    def slow() -> int:
        with people_server.client() as client:
            return client.post("/predict", json={"instances": [person("sleep 1.0")]}).status_code

    with ThreadPoolExecutor(1) as pool, people_server.client() as client:
        client.get("/healthz")
        running = pool.submit(slow)
        time.sleep(0.1)
        times = []
        while not running.done():
            started = time.monotonic()
            assert client.get("/healthz").status_code == 200
            times.append(time.monotonic() - started)
            time.sleep(0.02)
        assert running.result() == 200
    assert len(times) > 10
    assert sorted(times)[len(times) // 2] < 0.05
    assert max(times) < 0.5, "a probe waited for the model"
