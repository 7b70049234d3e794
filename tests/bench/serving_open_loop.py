"""An open-loop load generator: requests arrive by themselves, whether or not earlier ones are answered.

`wrk` waits for an answer before it sends again, so a server that stalls is asked less and looks better than
it is. Here the arrivals are a Poisson process, and the latency counts from the moment at which a request was
due, including the wait for a free connection.

    python serving_open_loop.py PORT PATH BODY_FILE RATE SECONDS

prints one line of JSON. It spins on one CPU: at thousands of requests a second the clock of epoll is too
coarse.
"""

from __future__ import annotations

import collections
import json
import random
import select
import socket
import sys
import time
from pathlib import Path

_CONNECTIONS = 256
_PATIENCE_SECONDS = 5.0


class Connection:
    """One keep-alive connection, with at most one request on its way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._answer = b""

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self._answer = b""
        self.socket.sendall(request)

    def status(self) -> int | None:
        """Read what is there; the status once the answer is whole, 0 when the connection was closed."""
        part = self.socket.recv(65536)
        if not part:
            return 0
        self._answer += part
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found:
            return None
        _, _, rest = head.lower().partition(b"content-length:")
        if len(body) < int(rest.split(b"\r\n", 1)[0]):
            return None
        return int(self._answer[9:12])


def run(port: int, path: str, body: bytes, rate: float, seconds: float) -> dict[str, float]:
    """Milliseconds, answers a second, and how many were refused or lost."""
    request = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    source = random.Random(0)
    arrivals, due = collections.deque[float](), 0.0
    while due < seconds:
        due += source.expovariate(rate)
        arrivals.append(due)
    offered = len(arrivals)
    connections = [Connection(port) for _ in range(_CONNECTIONS)]
    free = list(connections)
    poll = select.epoll()
    by_number = {connection.socket.fileno(): connection for connection in connections}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    latencies: list[float] = []
    errors = 0
    began = time.perf_counter()
    while len(latencies) + errors < offered:
        now = time.perf_counter() - began
        if now > seconds + _PATIENCE_SECONDS:
            break
        while arrivals and arrivals[0] <= now and free:
            free.pop().send(request, arrivals.popleft())
        for number, _ in poll.poll(0):
            connection = by_number[number]
            status = connection.status()
            if status is None:
                continue
            if status == 200:
                latencies.append(time.perf_counter() - began - connection.due)
            else:
                errors += 1
            if status == 0:
                poll.unregister(number)
            else:
                free.append(connection)
    for connection in connections:
        connection.socket.close()
    latencies.sort()
    answered = len(latencies)
    return {
        "rate": answered / seconds,
        "p50": latencies[answered // 2] * 1e3,
        "p99": latencies[int(answered * 0.99)] * 1e3,
        "p999": latencies[int(answered * 0.999)] * 1e3,
        "worst": latencies[-1] * 1e3,
        "lost": offered - answered,
    }


if __name__ == "__main__":
    result = run(
        int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes(), float(sys.argv[4]), float(sys.argv[5])
    )
    print(json.dumps(result))
