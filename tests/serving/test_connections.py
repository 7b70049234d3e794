"""What leaves a connection, answers in one piece, heads without bodies, and ends of connections."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from model_bundles import affine
from server_runs import ThreadedServer, threaded

BODY = b'{"instances": [[1, 2, 3, 4]]}'
PREDICT = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


def connected(server: ThreadedServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        part = connection.recv(65536)
        assert part, f"closed after {received!r}"
        received += part
    return received


def test_an_answer_arrives_in_one_piece(affine_server: ThreadedServer) -> None:
    with connected(affine_server) as connection:
        for _ in range(50):
            connection.sendall(PREDICT)
            assert connection.recv(65536).endswith(b'{"predictions":[[3.0,5.0,7.0]]}')


def test_a_head_without_a_body_is_not_held_back(affine_server: ThreadedServer) -> None:
    with connected(affine_server) as connection:
        connection.sendall(b"HEAD /predict HTTP/1.1\r\nhost: x\r\n\r\n")
        head = read_until(connection, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405")
        assert head.endswith(b"\r\n\r\n")
        connection.sendall(PREDICT)
        assert b"200 OK" in read_until(connection, b"7.0]]}")


def test_pipelined_requests_are_answered_in_order(affine_server: ThreadedServer) -> None:
    with connected(affine_server) as connection:
        second = PREDICT.replace(b"[1, 2, 3, 4]", b"[5, 6, 7, 8]")
        connection.sendall(PREDICT + second + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        received = read_until(connection, b"ok\n")
        places = [received.index(part) for part in (b"[[3.0,5.0,7.0]]", b"[[11.0,13.0,15.0]]", b"ok\n")]
        assert places == sorted(places)
        assert received.count(b"HTTP/1.1 200 OK") == 3


def test_a_client_that_waits_to_be_told_to_go_on(affine_server: ThreadedServer) -> None:
    with connected(affine_server) as connection:
        head, _, _ = PREDICT.partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert read_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_until(connection, b"7.0]]}").startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(PREDICT, id="idle after an answer"),
        pytest.param(b"POST /predict HT", id="a head that does not end"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_connections_that_wait_for_too_long_are_closed(tmp_path: Path, sent: bytes) -> None:
    options: dict[str, object] = {"keep_alive_seconds": 0.4, "header_seconds": 0.4}
    with threaded(affine(tmp_path), **options) as server, connected(server) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        while connection.recv(65536):
            pass
        assert 0.3 < time.monotonic() - started < 5


def test_a_connection_in_use_outlives_the_patience_for_idle_ones(tmp_path: Path) -> None:
    with threaded(affine(tmp_path), keep_alive_seconds=0.5) as server, connected(server) as connection:
        for _ in range(10):
            connection.sendall(PREDICT)
            read_until(connection, b"7.0]]}")
            time.sleep(0.1)


def test_a_slow_body_is_refused_and_the_connection_closed(tmp_path: Path) -> None:
    bundle = affine(tmp_path, limits={"body_seconds": 0.3})
    with threaded(bundle) as server, connected(server) as connection:
        connection.sendall(PREDICT[:-5])
        received = b""
        while part := connection.recv(65536):
            received += part
        assert received.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in received


def test_fastapis_part_is_there_at_the_first_request_that_needs_it(tmp_path: Path) -> None:
    with threaded(affine(tmp_path)) as server, server.client() as client:
        assert client.get("/openapi.json").status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/nowhere").status_code == 404
