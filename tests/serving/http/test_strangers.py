"""What a stranger sends to make a release look bad: it is answered, and nothing of it is the release's fault.

A gateway counts answers of class 5 against the release, and connections that are reset before it has read an
answer; the judge compares what releases have predicted. None of these may be in the hands of one client.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.serving.model_bundles import people, person
from tests.serving.server_runs import ThreadedServer, threaded

TRIES = 20
LIMIT = 100_000
LARGE = 8 << 20
TENSORS = {
    "inputs": [
        {"name": "age", "shape": [1], "datatype": "INT64", "data": [30]},
        {"name": "height", "shape": [1], "datatype": "FP64", "data": [1.7]},
        {"name": "name", "shape": [1], "datatype": "BYTES", "data": ["Ada"]},
        {"name": "member", "shape": [1], "datatype": "BOOL", "data": [True]},
    ]
}
ROUTES = {"/predict": {"instances": [person()]}, "/v2/models/people/infer": TENSORS}


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "fastapi"])
def server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ThreadedServer]:
    limits = {"timeout_seconds": 1.0, "max_body_bytes": LIMIT}
    bundle = people(tmp_path_factory.mktemp("people"), limits=limits)
    with threaded(bundle, fast_path=request.param) as server:
        yield server


@contextlib.contextmanager
def busy(server: ThreadedServer, seconds: float) -> Iterator[None]:
    """Its model is at work meanwhile."""

    def ask() -> None:
        with server.client() as client:
            client.post("/predict", json={"instances": [person(f"sleep {seconds}")]})

    asking = threading.Thread(target=ask)
    asking.start()
    end = time.monotonic() + 10
    while not server.server.service.busy():
        assert time.monotonic() < end, "the model was not asked"
        time.sleep(0.005)
    yield
    asking.join()
    while server.server.service.busy():
        time.sleep(0.005)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("seconds", ["0.000000001", "1e-300", "0.999"])
def test_a_deadline_that_the_client_chose_is_its_own(
    server: ThreadedServer, route: str, seconds: str
) -> None:
    with busy(server, 2.0), server.client() as client:
        answer = client.post(route, json=ROUTES[route], headers={"x-request-timeout": seconds})
    assert answer.status_code == 408, answer.text
    assert answer.json()["title"] == "Your deadline passed"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("wanted", [{}, {"x-request-timeout": "1"}, {"x-request-timeout": "600"}])
def test_the_servers_own_limit_is_its_own_fault(
    server: ThreadedServer, route: str, wanted: dict[str, str]
) -> None:
    """Whether it passes, or is seen to be too short for the work that waits."""
    with busy(server, 2.0), server.client() as client:
        assert client.post(route, json=ROUTES[route], headers=wanted).status_code in (503, 504)


def large(server: ThreadedServer, head: bytes, piece: bytes) -> bytes:
    """The answer to a request that sends on and on, as a gateway reads it: only when it has sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        with contextlib.suppress(BrokenPipeError, TimeoutError):
            connection.settimeout(0.2)
            for _ in range(LARGE // len(piece)):
                connection.sendall(piece)
        connection.settimeout(10)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


POST = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("status", "head", "piece"),
    [
        (413, POST + b"content-length: %d\r\n\r\n" % LARGE, b"a" * 65536),
        (413, POST + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n"),
        (400, b"POST /predict HTTP/1.1\r\nhost: x\r\n: y\r\n\r\n", b"a" * 65536),
        (431, POST + b"x: " + b"a" * 66_000 + b"\r\n\r\n", b"a" * 65536),
    ],
    ids=["declared", "chunked", "malformed", "a large head"],
)
def test_a_refusal_is_read_by_whoever_sends_on(
    server: ThreadedServer, status: int, head: bytes, piece: bytes
) -> None:
    """A reset instead of an answer would be the gateway's 503."""
    for _ in range(TRIES):
        assert large(server, head, piece).startswith(b"HTTP/1.1 %d " % status)


def test_who_is_refused_and_stays_is_sent_away(server: ThreadedServer) -> None:
    """Lingering has an end, in time and in what is read."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % (1 << 40))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        sent, begun = 0, time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < begun + 30:
                connection.sendall(b"a" * 65536)
                sent += 65536
        assert time.monotonic() < begun + 30
    assert sent < 64 << 20


def predicted(server: ThreadedServer) -> float:
    with server.client() as client:
        text = client.get("/metrics").text
    return sum(float(value) for value in re.findall(r"^modelserve_outputs_total\{.*\} (\S+)$", text, re.M))


@pytest.mark.parametrize("route", ROUTES)
def test_who_names_the_release_does_not_count_among_its_predictions(
    server: ThreadedServer, route: str
) -> None:
    before = predicted(server)
    with server.client() as client:
        for _ in range(TRIES):
            pinned = client.post(route, json=ROUTES[route], headers={"X-Model-Version": "7"})
            assert pinned.status_code == 200
        assert predicted(server) == before
        assert client.post(route, json=ROUTES[route]).status_code == 200
    assert predicted(server) == before + 1


def test_a_request_counts_once_whatever_its_rows(server: ThreadedServer) -> None:
    """Who sends a thousand equal rows would else have a thousand words in what a release predicts."""
    before = predicted(server)
    with server.client() as client:
        for count in (1, 7, 300):
            answer = client.post("/predict", json={"instances": [person()] * count})
            assert len(answer.json()["predictions"]) == count
    assert predicted(server) == before + 3


def test_rows_that_are_run_again_one_by_one_count_once(server: ThreadedServer) -> None:
    before = predicted(server)
    with server.client() as client:
        answer = client.post("/predict", json={"instances": [person(), person("poison"), person()]})
    assert answer.status_code == 500
    assert predicted(server) == before + 1


def test_other_requests_are_answered_while_strangers_hurry(server: ThreadedServer) -> None:
    hurried = {"x-request-timeout": "1e-9"}

    def hurry() -> None:
        with httpx.Client(base_url=server.url) as client:
            for _ in range(50):
                client.post("/predict", json={"instances": [person()]}, headers=hurried)

    threads = [threading.Thread(target=hurry) for _ in range(4)]
    for thread in threads:
        thread.start()
    with server.client() as client:
        answers = [client.post("/predict", json={"instances": [person()]}).status_code for _ in range(50)]
    for thread in threads:
        thread.join()
    assert answers == [200] * 50
