"""Handlers that use multiprocessing: what a forked child inherits must not reach the server."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.model_bundles import write_bundle
from tests.serving.server_runs import ServerProcess

HANDLERS = {
    "pool in predict": """
def square(n): return float(n) * n
def load(folder, device): return None
def predict(model, rows):
    with fork.Pool(2) as pool:  # ends its workers by SIGTERM
        return [{"y": value} for value in pool.map(square, [row["n"] for row in rows])]
""",
    "pool in load": """
def square(n): return float(n) * n
def load(folder, device): return fork.Pool(2)
def predict(model, rows): return [{"y": value} for value in model.map(square, [row["n"] for row in rows])]
""",
    "terminated process": """
import time
def load(folder, device): return None
def predict(model, rows):
    process = fork.Process(target=time.sleep, args=(60,))
    process.start()
    time.sleep(0.1)
    process.terminate()
    process.join(5)
    assert process.exitcode == -15, process.exitcode
    return [{"y": float(row["n"]) ** 2} for row in rows]
""",
}
ORPHAN = """
import time
def load(folder, device): return None
def predict(model, rows):
    process = fork.Process(target=time.sleep, args=(30,), daemon=True)
    process.start()
    return [{"y": float(process.pid)} for row in rows]
"""


def bundle(folder: Path, code: str) -> Path:
    signature = {"inputs": [{"name": "n", "type": "integer"}], "outputs": [{"name": "y", "type": "number"}]}
    return write_bundle(
        folder,
        name="forks",
        signature=signature,
        serving={"runtime": {"kind": "handler"}, "deterministic": False},
        files={"handler.py": 'import multiprocessing\nfork = multiprocessing.get_context("fork")\n' + code},
    )


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    server = ServerProcess(bundle(tmp_path, request.param))
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


@pytest.mark.parametrize("server", HANDLERS.values(), ids=HANDLERS.keys(), indirect=True)
def test_a_child_that_is_terminated_does_not_drain_the_server(server: ServerProcess) -> None:
    """fastapi/fastapi#1487, Kludex/uvicorn#548: the child's SIGTERM arrived at the parent's event loop."""
    for _ in range(3):
        answer = httpx.post(server.url + "/predict", json={"instances": [3]}, timeout=20)
        assert answer.json() == {"predictions": [9.0]}
    time.sleep(0.5)
    assert httpx.get(server.url + "/readyz").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_exit() == 0


@pytest.mark.parametrize("server", [ORPHAN], indirect=True)
def test_a_child_holds_neither_the_port_nor_a_connection(server: ServerProcess) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        body = b'{"instances":[1]}'
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        answer = b""
        while part := connection.recv(65536):  # ends only if the child does not hold the connection
            answer += part
    child = int(float(answer.rsplit(b"[", 1)[1].rstrip(b"]}")))
    os.kill(child, 0)
    server.process.kill()
    server.wait_exit()
    os.kill(child, 0)  # it has outlived its parent
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
        again.listen()
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("server", [ORPHAN], indirect=True)
def test_children_end_with_the_server(server: ServerProcess) -> None:
    answer = httpx.post(server.url + "/predict", json={"instances": [1]}, timeout=20)
    child = int(answer.json()["predictions"][0])
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    until = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
