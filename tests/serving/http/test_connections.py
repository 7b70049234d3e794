"""What leaves a connection, answers in one piece, heads without bodies, and ends of connections."""

from __future__ import annotations

import gc
import re
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from serving.exchange import Call
from serving.http.protocol import GuardedProtocol
from serving.http.whole import WholeRequest
from tests.serving.model_bundles import affine
from tests.serving.server_runs import ThreadedServer, threaded

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


def test_offers_to_upgrade_are_ignored_in_a_pipeline_too(affine_server: ThreadedServer) -> None:
    offering = PREDICT.replace(b"host: x", OFFER)
    socket_offer = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    with connected(affine_server) as connection:
        connection.sendall((offering + PREDICT) * 500 + socket_offer)
        received = read_until(connection, b"ok\n")
        assert received.count(b"HTTP/1.1 200 OK") == received.count(b"HTTP/1.1") == 1001
        assert received.count(b"[[3.0,5.0,7.0]]") == 1000


def test_an_offer_takes_no_other_header_with_it(affine_server: ThreadedServer) -> None:
    with connected(affine_server) as connection:
        connection.sendall(PREDICT.replace(b"host: x", OFFER + b"\r\nx-request-timeout:"))
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 400 Bad Request")


def test_a_client_that_takes_us_for_a_proxy_is_refused(affine_server: ThreadedServer) -> None:
    with connected(affine_server) as connection:
        connection.sendall(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 400 Bad Request")


def send(connection: socket.socket, request: bytes, cuts: list[int]) -> None:
    """In pieces that end at the cuts, each in a packet of its own."""
    for start, stop in pairwise([0, *cuts, len(request)]):
        connection.sendall(request[start:stop])
        time.sleep(0.05 if cuts else 0)


def split(received: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, headers without those that differ from request to request, and body."""
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    assert len(headers) == len(lines), "a header twice"
    assert headers.pop(b"x-request-id")
    assert headers.pop(b"date")
    return status, headers, body


CHUNKED = (
    b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"8\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (BODY[:8], len(BODY) - 8, BODY[8:])
)


OFFER = b"host: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA"
"""What the JDK's HttpClient sends with every request to a plain address."""


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(PREDICT, id="length"),
        pytest.param(CHUNKED, id="chunked"),
        pytest.param(PREDICT.replace(b"3, 4]", b"3, x]"), id="broken"),
        pytest.param(PREDICT.replace(b"host: x", OFFER), id="length, offers HTTP/2"),
        pytest.param(CHUNKED.replace(b"host: x", OFFER), id="chunked, offers HTTP/2"),
    ],
)
def test_requests_that_arrive_whole_and_in_pieces_get_the_same_answer(
    affine_server: ThreadedServer, request_bytes: bytes
) -> None:
    head, _, _ = request_bytes.partition(b"\r\n\r\n")
    answers = []
    for cuts in ([], [len(head) + 4], [len(head) + 9], [10, len(head), len(request_bytes) - 1]):
        with connected(affine_server) as connection:
            send(connection, request_bytes, cuts)
            answers.append(split(read_until(connection, b"}")))
            # The connection is good for another one, which comes in one piece.
            connection.sendall(PREDICT)
            assert read_until(connection, b"7.0]]}").startswith(b"HTTP/1.1 200 OK\r\n")
    status = b"HTTP/1.1 400 Bad Request" if b"x]" in request_bytes else b"HTTP/1.1 200 OK"
    assert answers[0][0] == status
    ids = [re.sub(rb'"request_id":"[^"]*"', b"", body) for _, _, body in answers]
    assert len(set(ids)) == 1
    assert all(answer[:2] == answers[0][:2] for answer in answers)


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(PREDICT.replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(
            PREDICT.replace(b"1.1\r\n", b"1.0\r\nproxy-connection: keep-alive\r\n"), id="HTTP/1.0 by a proxy"
        ),
        pytest.param(PREDICT.replace(b"host: x", b"host: x\r\nconnection: close"), id="close"),
        pytest.param(PREDICT.replace(b"host: x", OFFER + b"\r\nconnection: close"), id="close after all"),
        pytest.param(PREDICT.replace(b"host: x", OFFER.replace(b"Upg", b"close, upg")), id="close and offer"),
        pytest.param(
            PREDICT.replace(b"host: x", OFFER.replace(b"Upg", b"close, upg")) + PREDICT,
            id="close, offer, and what nobody reads",
        ),
    ],
)
def test_the_last_answer_of_a_connection_says_so(affine_server: ThreadedServer, request_bytes: bytes) -> None:
    with connected(affine_server) as connection:
        connection.sendall(request_bytes)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    status, headers, body = split(received)
    assert status == b"HTTP/1.1 200 OK"
    assert headers[b"connection"] == b"close"
    assert body == b'{"predictions":[[3.0,5.0,7.0]]}'


def test_a_broken_chunk_of_a_whole_request_is_a_400(affine_server: ThreadedServer) -> None:
    with connected(affine_server) as connection:
        connection.sendall(CHUNKED.replace(b"\r\n8\r\n", b"\r\nzz\r\n"))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 400 Bad Request")
    assert received.count(b"HTTP/1.1") == 1


def test_what_a_trailer_names_is_no_header(affine_server: ThreadedServer) -> None:
    trailer = CHUNKED.removesuffix(b"\r\n") + b"x-request-id: from-the-trailer\r\n\r\n"
    for cuts in ([], [len(trailer) - 60]):
        with connected(affine_server) as connection:
            send(connection, trailer, cuts)
            answer = read_until(connection, b"7.0]]}")
            assert b"from-the-trailer" not in answer
            assert answer.startswith(b"HTTP/1.1 200 OK")


def kept(kind: type) -> list[object]:
    """Objects of a class that live on although nobody should hold them, without a collection of circles."""
    return [found for found in gc.get_objects() if type(found) is kind]


@pytest.mark.parametrize("body", [BODY, BODY.replace(b"4]", b"x]"), b'{"instances": [[1, 2, 3, "x"]]}'])
def test_nothing_of_a_request_outlives_its_connection(affine_server: ThreadedServer, body: bytes) -> None:
    request = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    gc.collect()
    gc.disable()
    try:
        before = {kind: len(kept(kind)) for kind in (GuardedProtocol, WholeRequest, Call)}
        for _ in range(20):
            with connected(affine_server) as connection:
                connection.sendall(request)
                read_until(connection, b"}")
        until = time.monotonic() + 5
        while time.monotonic() < until and any(len(kept(kind)) > count for kind, count in before.items()):
            time.sleep(0.05)
        # Fewer when a connection of an earlier test has ended meanwhile.
        assert {kind: len(kept(kind)) for kind, count in before.items() if len(kept(kind)) > count} == {}
    finally:
        gc.enable()


def test_an_idle_connection_holds_no_body(affine_server: ThreadedServer) -> None:
    padded = BODY + b" " * 100_000
    request = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(padded), padded)
    with connected(affine_server) as connection:
        connection.sendall(request)
        read_until(connection, b"7.0]]}")
        time.sleep(0.1)
        held = [value for value in gc.get_objects() if type(value) is GuardedProtocol and value.cycle]
        assert held
        for protocol in held:
            assert not getattr(protocol, "_body", None)
            assert len(protocol.cycle.body) == 0


def test_a_client_that_reads_late_gets_every_answer(affine_server: ThreadedServer) -> None:
    """More answers than the sockets hold: the server waits, and neither grows nor loses one."""
    count = 20_000
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", affine_server.port))
        writer = threading.Thread(target=lambda: connection.sendall(PREDICT * count))
        writer.start()
        time.sleep(0.5)
        received, rest = 0, b""
        while received < count:
            part = connection.recv(1 << 20)
            assert part, f"closed after {received} answers"
            rest += part
            found = rest.count(b"7.0]]}")
            received += found
            if found:
                rest = rest[rest.rindex(b"7.0]]}") + 6 :]
        writer.join()


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
