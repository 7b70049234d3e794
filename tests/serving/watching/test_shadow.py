"""The shadow is invisible whatever it does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.spec import ShadowSpec
from serving.watching.shadow import compare
from tests.serving.model_bundles import affine, people, person
from tests.serving.server_runs import ThreadedServer, free_port, threaded

BODY = {"instances": [[1, 2, 3, 4]]}


def metrics(client: httpx.Client, *names: str) -> list[float]:
    lines = client.get("/metrics").text.splitlines()
    return [
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"modelserve_{name}{{"))
        for name in names
    ]


def wait_for(client: httpx.Client, name: str, value: float) -> None:
    until = time.monotonic() + 5
    while metrics(client, name)[0] < value:
        assert time.monotonic() < until, f"{name} is {metrics(client, name)[0]}, expected {value}"
        time.sleep(0.02)


def test_a_shadow_that_agrees(affine_server: ThreadedServer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shadow_url": affine_server.url, "shadow_share": 1.0}
    with threaded(affine(tmp_path), **options) as server, server.client() as client:
        for _ in range(10):
            assert client.post("/predict", json=BODY).status_code == 200
        wait_for(client, "shadow_compared_total", 10)
        assert metrics(client, "shadow_sent_total", "shadow_disagreed_total", "shadow_difference_count") == [
            10,
            0,
            10,
        ]


def test_a_shadow_that_answers_otherwise(people_server: ThreadedServer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shadow_url": people_server.url, "shadow_share": 1.0}
    bundle = people(tmp_path)
    handler = (bundle / "handler.py").read_text().replace("/ 150", "/ 151")
    (bundle / "handler.py").write_text(handler)
    from serving.inference.bundle import seal

    seal(bundle)
    with threaded(bundle, **options) as server, server.client() as client:
        client.post("/predict", json={"instances": [person(age=30), person(age=0)]})
        wait_for(client, "shadow_compared_total", 2)
        assert metrics(client, "shadow_disagreed_total") == [1]


def misbehaving(behaviour: Callable[[socket.socket], None]) -> tuple[str, Callable[[], None]]:
    """A server that does one odd thing to each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            behaviour(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def stop() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in held:
            connection.close()

    return f"http://127.0.0.1:{listener.getsockname()[1]}", stop


def garbage(answer: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)
        connection.close()

    return behave


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(lambda _: None, id="hangs"),
        pytest.param(lambda connection: connection.close(), id="closes"),
        pytest.param(garbage(b"\x00\xff nonsense\r\n\r\n"), id="not-http"),
        pytest.param(garbage(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{]}!!"), id="not-json"),
        pytest.param(garbage(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"), id="not-predictions"),
        pytest.param(garbage(b"HTTP/1.1 200 OK\r\ncontent-length: -7\r\n\r\n"), id="bad-length"),
        pytest.param(garbage(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno"), id="fails"),
        pytest.param(garbage(b"x" * 200_000), id="endless-head"),
    ],
)
def test_a_shadow_that_misbehaves_is_never_seen(
    tmp_path: Path, behaviour: Callable[[socket.socket], None]
) -> None:
    url, stop = misbehaving(behaviour)
    bundle = affine(tmp_path, shadow={"timeout_seconds": 0.3, "max_pending": 4})
    with threaded(bundle, shadow_url=url, shadow_share=1.0) as server, server.client() as client:
        times = []
        for _ in range(20):
            started = time.monotonic()
            assert client.post("/predict", json=BODY).json() == {"predictions": [[3, 5, 7]]}
            times.append(time.monotonic() - started)
        assert sorted(times)[10] < 0.05
        wait_for(client, "shadow_failed_total", 1)
        sent, dropped = metrics(client, "shadow_sent_total", "shadow_dropped_total")
        assert sent >= 1
        assert sent + dropped <= 20
        assert dropped >= 4
    stop()


CONTENT = b'{"predictions":[[3,5,7]]}'


def well_behaved(
    connections: list[int], end: bytes = b"", patience: float | None = None, together: int = 1
) -> Callable[[socket.socket], None]:
    """Answers as the affine model does. `end`: more lines of the head; `patience`: closes a connection that
    is idle for so long; `together`: answers when so many have asked."""
    barrier = threading.Barrier(together)
    answer = b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (end, len(CONTENT), CONTENT)

    def serve(connection: socket.socket) -> None:
        try:
            while connection.recv(65536):
                barrier.wait(5)
                connection.sendall(answer)
        except OSError:
            connection.shutdown(socket.SHUT_RDWR)

    def behave(connection: socket.socket) -> None:
        connections.append(1)
        connection.settimeout(patience)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()

    return behave


def test_copies_leave_together(tmp_path: Path) -> None:
    url, stop = misbehaving(well_behaved([], together=5))
    with threaded(affine(tmp_path), shadow_url=url, shadow_share=1.0) as server, server.client() as client:
        for _ in range(5):
            client.post("/predict", json=BODY)
        wait_for(client, "shadow_compared_total", 5)
    stop()


@pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"])
def test_copies_keep_their_connections_where_they_may(tmp_path: Path, end: bytes) -> None:
    opened: list[int] = []
    url, stop = misbehaving(well_behaved(opened, end))
    with threaded(affine(tmp_path), shadow_url=url, shadow_share=1.0) as server, server.client() as client:
        for number in range(1, 9):
            client.post("/predict", json=BODY)
            wait_for(client, "shadow_compared_total", number)
            time.sleep(0.15)
        assert metrics(client, "shadow_failed_total", "shadow_disagreed_total") == [0, 0]
        # One, and a few more where this machine took longer than connections are kept.
        assert len(opened) == 8 if end else len(opened) <= 4
    stop()


def test_a_connection_that_the_shadow_closes_just_then_is_no_failure(tmp_path: Path) -> None:
    opened: list[int] = []
    url, stop = misbehaving(well_behaved(opened, patience=0.2))
    with threaded(affine(tmp_path), shadow_url=url, shadow_share=1.0) as server, server.client() as client:
        for number in range(1, 16):
            client.post("/predict", json=BODY)
            wait_for(client, "shadow_compared_total", number)
            time.sleep(0.1 + 0.002 * number)
        assert metrics(client, "shadow_failed_total") == [0]
        assert len(opened) > 1
    stop()


def test_a_shadow_that_reads_nothing_holds_nothing(tmp_path: Path) -> None:
    """A body that the kernel's buffers cannot take would keep a closed connection open for ever."""
    url, stop = misbehaving(lambda _: None)
    address = httpx.URL(url)
    bundle = affine(tmp_path, shadow={"timeout_seconds": 0.2}, limits={"max_rows": 1_000_000})
    with threaded(bundle, shadow_url=url, shadow_share=1.0) as server, server.client() as client:
        body = b'{"instances":[[1,2,3,4]%s]}' % (b" " * 15_000_000)
        assert client.post("/predict", content=body).status_code == 200
        wait_for(client, "shadow_failed_total", 1)
        until = time.monotonic() + 5
        while any(c.raddr and c.raddr.port == address.port for c in psutil.Process().net_connections()):
            assert time.monotonic() < until, "the connection is still there"
            time.sleep(0.02)
    stop()


def test_a_shadow_that_is_not_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with threaded(affine(tmp_path), shadow_url=url, shadow_share=1.0) as server, server.client() as client:
        for _ in range(5):
            assert client.post("/predict", json=BODY).status_code == 200
        wait_for(client, "shadow_failed_total", 1)


SPEC = ShadowSpec()


@given(
    st.recursive(
        st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.booleans()
        | st.none()
        | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_every_prediction_agrees_with_itself(value: object) -> None:
    agrees, difference = compare(value, value, SPEC)
    assert agrees
    assert difference in (None, 0)


def test_comparison_by_class_and_by_tolerance() -> None:
    assert compare(1.0, 1.00005, SPEC)[0]
    assert not compare(1.0, 1.1, SPEC)[0]
    assert not compare([1.0], [1.0, 2.0], SPEC)[0]
    assert not compare(True, 1, SPEC)[0]
    assert not compare({"a": 1}, {"b": 1}, SPEC)[0]
    assert not compare([0.1, 0.9], [0.3, 0.7], SPEC)[0]
    assert compare([0.1, 0.9], [0.3, 0.7], ShadowSpec(classes=True))[0]
    assert not compare([0.6, 0.4], [0.3, 0.7], ShadowSpec(classes=True))[0]
