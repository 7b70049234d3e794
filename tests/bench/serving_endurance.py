"""What the model server must not do over time: lose requests when replicas are replaced, or grow."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from serving_load import (
    ROOT,
    bodies,
    free_port,
    measure,
    memory_megabytes,
    ours,
    random_rows,
    redis_running,
    running,
    write_script,
)
from serving_subjects import write_bundle

_CLIENTS = 16
_PROBE_SECONDS = 0.1
_DRAINS = 4
_DRAIN_SECONDS = 3
_MILLION = 1_000_000
_SLICE_SECONDS = 10
_LONGEST_SECONDS = 300.0


class Replica:
    """A server that comes and goes; `ready` is what its readiness probe has last said."""

    def __init__(self, bundle: Path) -> None:
        self.port = free_port()
        self.ready = False
        command, variables = ours(bundle, self.port, SERVING_DRAIN_SECONDS=str(_DRAIN_SECONDS))
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"} | variables, stderr=subprocess.DEVNULL
        )


def drains(folder: Path) -> None:
    """One of two replicas is replaced again and again while clients ask both, as behind a load balancer that
    goes by the readiness probe. Nothing may fail."""
    bundle = write_bundle(folder / "mlp")
    outcomes, codes, seconds = asyncio.run(_replaced(bundle, bodies("instances", random_rows(64))))
    failed = {outcome: number for outcome, number in outcomes.items() if outcome != "200"}
    print(
        f"drain under load: {_DRAINS} replicas replaced in {seconds:.0f} s, {_CLIENTS} clients,"
        f" {sum(outcomes.values())} requests, {sum(failed.values())} failed {failed or ''}"
    )
    print(f"  exit codes of the replicas that left: {codes}")


async def _replaced(bundle: Path, rows: list[bytes]) -> tuple[Counter[str], list[int], float]:
    replicas = [Replica(bundle), Replica(bundle)]
    outcomes: Counter[str] = Counter()
    over = asyncio.Event()
    codes: list[int] = []
    try:
        probing = asyncio.create_task(_probe(replicas, over))
        await _until_ready(replicas)
        began = time.monotonic()
        clients = [
            asyncio.create_task(_ask(replicas, rows, turn, outcomes, over)) for turn in range(_CLIENTS)
        ]
        for number in range(_DRAINS):
            await asyncio.sleep(0.5)
            leaving = replicas[number % 2]
            replicas.append(Replica(bundle))
            await _until_ready(replicas)
            leaving.process.send_signal(signal.SIGTERM)
            codes.append(await asyncio.to_thread(leaving.process.wait, 30))
            replicas.remove(leaving)
        over.set()
        await asyncio.gather(probing, *clients)
        return outcomes, codes, time.monotonic() - began
    finally:
        for replica in replicas:
            replica.process.kill()
            replica.process.wait()


async def _until_ready(replicas: list[Replica]) -> None:
    async with asyncio.timeout(180):
        while not all(replica.ready for replica in replicas):
            await asyncio.sleep(0.02)


async def _probe(replicas: list[Replica], over: asyncio.Event) -> None:
    while not over.is_set():
        for replica in list(replicas):
            try:
                replica.ready = (await _request(replica.port, b"GET /readyz", b""))[0] == "200"
            except OSError:
                replica.ready = False
        await asyncio.sleep(_PROBE_SECONDS)


async def _ask(
    replicas: list[Replica], rows: list[bytes], turn: int, outcomes: Counter[str], over: asyncio.Event
) -> None:
    """One request after the other, on connections that are kept until the server says that it closes them."""
    connections: dict[int, Connection] = {}
    while not over.is_set():
        turn += 1
        ready = [replica.port for replica in replicas if replica.ready]
        port = ready[turn % len(ready)]
        try:
            connection = connections.pop(port, None) or await asyncio.open_connection("127.0.0.1", port)
            status, kept = await _exchange(connection, b"POST /predict", rows[turn % len(rows)])
            outcomes[status] += 1
            if kept:
                connections[port] = connection
            else:
                connection[1].close()
        except OSError as error:
            outcomes[type(error).__name__] += 1
        except asyncio.IncompleteReadError:
            outcomes["cut off"] += 1
    for _, writer in connections.values():
        writer.close()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _request(port: int, line: bytes, body: bytes) -> tuple[str, bool]:
    connection = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await _exchange(connection, line, body)
    finally:
        connection[1].close()


async def _exchange(connection: Connection, line: bytes, body: bytes) -> tuple[str, bool]:
    """The status, and whether the connection can be used again."""
    reader, writer = connection
    media = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body) if body else b""
    writer.write(line + b" HTTP/1.1\r\nhost: localhost\r\n" + media + b"\r\n" + body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return head[9:12].decode(), b"connection: close" not in head


def memory(folder: Path) -> None:
    """A million requests with everything switched on, and the memory on the way."""
    script = write_script(folder / "bodies", bodies("instances", random_rows(20_000)))
    shadow_port, port = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(redis_running(folder))
        command, variables = ours(write_bundle(folder / "plain"), shadow_port)
        stack.enter_context(running(command, shadow_port, **variables))
        command, variables = ours(
            write_bundle(folder / "cached", "  cache: {enabled: true, ttl_seconds: 1}\n"),
            port,
            SERVING_REDIS_URL=url,
            SERVING_SHADOW_URL=f"http://127.0.0.1:{shadow_port}",
            SERVING_SHADOW_SHARE="0.1",
        )
        pid = stack.enter_context(running(command, port, **variables))
        began, done, errors = time.monotonic(), 0.0, 0
        sizes: list[tuple[float, float]] = []
        while done < _MILLION and time.monotonic() - began < _LONGEST_SECONDS:
            reading = measure(f"http://127.0.0.1:{port}/predict", pid, script, 32, _SLICE_SECONDS)
            done += reading.rate * _SLICE_SECONDS
            errors += reading.errors
            sizes.append((done, memory_megabytes(pid)))
    print(f"memory, with cache, samples and shadow: {done / 1e6:.2f} million requests, {errors} errors")
    for number, size in sizes:
        print(f"  after {number / 1e3:6.0f} thousand {size:6.1f} MB")
    first = next(size for number, size in sizes if number >= done / 10)
    print(f"  growth after the first tenth: {sizes[-1][1] - first:+.1f} MB ({sizes[-1][1] / first - 1:+.1%})")
