"""One connection that holds the loop or the memory, and clients that speak less usual HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.model_bundles import people, person
from tests.serving.server_runs import ThreadedServer, process, threaded

HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "fastapi"])
def server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ThreadedServer]:
    with threaded(people(tmp_path_factory.mktemp("people")), fast_path=request.param) as server:
        yield server


def connected(server: ThreadedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def everything(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /healthz HTTP/1.1\r\nx-one: ", b"a" * 8192),
        (b"GET /healthz HTTP/1.1\r\n", b"x-many: y\r\n" * 800),
        (b"GET /", b"a" * 8192),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"x-many: y\r\n" * 800),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-one: ", b"a" * 8192),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n2;", b"a" * 8192),
    ],
    ids=["a header", "headers", "a path", "trailers", "a trailer", "a chunk's extension"],
)
def test_an_endless_head_or_trailer_is_refused_early(
    server: ThreadedServer, start: bytes, piece: bytes
) -> None:
    """A header of 47 MB held the event loop for 6 s."""
    sent = 0
    with connected(server) as connection, contextlib.suppress(OSError):
        connection.sendall(start)
        while sent < 16 << 20:
            connection.sendall(piece)
            sent += len(piece)
    assert sent < 12 << 20  # what the systems' buffers hold between us
    assert httpx.get(server.url + "/healthz").status_code == 200


def test_a_head_that_is_too_large_is_answered_with_431(server: ThreadedServer) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 66_000 + b"\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 431 ")
    large = {"x-large": "a" * 30_000}
    assert httpx.get(server.url + "/healthz", headers=large).status_code == 200


def test_a_large_body_in_small_chunks_is_no_head(server: ThreadedServer) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"instances":['
        yield from [b" " * 16] * 20_000
        yield b'{"age":30,"height":1.7,"name":"Ada","member":true}]}'

    headers = {"content-type": "application/json"}
    assert httpx.post(server.url + "/predict", content=chunks(), headers=headers).status_code == 200


def test_some_pipelined_requests_are_answered_in_order(server: ThreadedServer) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 60)
        connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = everything(connection)
    assert answer.count(b"HTTP/1.1 200 ") == 61
    assert answer.endswith(b"ready\n")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_head_on_a_probe_is_answered(server: ThreadedServer, path: str) -> None:
    """Load balancers and uptime checks send it."""
    with server.client() as client:
        for _ in range(2):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("name", ["Ada", "sleep 0.3"])
def test_a_client_that_closes_its_side_gets_its_answer(server: ThreadedServer, name: str) -> None:
    """`printf … | nc` and some HTTP/1.0 clients close their side after the request."""
    import orjson

    body = orjson.dumps({"instances": [person(name)]})
    with connected(server) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body))
        connection.shutdown(socket.SHUT_WR)
        answer = everything(connection)
    assert b"HTTP/1.1 200 " in answer
    assert b'"predictions"' in answer


REQUESTS = {
    "predictions": HEAD
    + b"content-length: 66\r\n\r\n"
    + b'{"instances":[{"age":30,"height":1.7,"name":"Ada","member":true}]}',
    "probes": b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "routed": b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n",
}


def resident_mib(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) >> 10


@pytest.mark.parametrize("kind", REQUESTS)
def test_requests_that_nobody_reads_the_answers_of_are_not_read_either(tmp_path: Path, kind: str) -> None:
    """170 000 requests on one connection took 450 MiB: what waits is bounded, in requests and in answers,
    and others are served meanwhile."""
    with process(people(tmp_path / "people")) as server:
        before = resident_mib(server.process.pid)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(2)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 170_000:
                    connection.sendall(REQUESTS[kind] * 1000)
                    sent += 1000
            assert sent < 170_000
            assert resident_mib(server.process.pid) - before < 60
            assert httpx.get(server.url + "/healthz").status_code == 200


@pytest.mark.parametrize("kind", REQUESTS)
def test_requests_sent_ahead_are_all_answered_to_who_reads(server: ThreadedServer, kind: str) -> None:
    """However they are cut, and whatever the last of them is."""
    last = HEAD + b"connection: close\r\ncontent-length: 6000\r\n\r\n" + b" " * 5998 + b"{}"
    data = REQUESTS[kind] * 3000 + last
    with connected(server) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        answer = everything(connection)
        sender.join()
    assert answer.count(b"HTTP/1.1 200 ") == 3000
    assert answer.count(b"HTTP/1.1 422 ") == 1


def test_too_many_small_requests_behind_a_large_one_end_the_connection(server: ThreadedServer) -> None:
    """They came in one piece with it and would all have been taken at once."""
    sleeper = b'{"instances":[{"age":30,"height":1.7,"name":"sleep 0.5","member":true}]}'
    body = sleeper + b" " * (6000 - len(sleeper))
    with connected(server) as connection:
        connection.sendall(HEAD + b"content-length: 6000\r\n\r\n" + body[:100])
        time.sleep(0.2)
        connection.sendall(body[100:] + REQUESTS["probes"] * 6000)
        answer = everything(connection)
    assert answer.count(b"HTTP/1.1 200 ") < 6000
    assert httpx.get(server.url + "/healthz").status_code == 200
