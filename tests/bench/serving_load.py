"""The instruments of the serving benchmark: start a server, load it with `wrk`, read what it cost.

CPU time and memory are those of the server's whole process tree, since half of the peers are many processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving_subjects import WIDTH

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0


class DidNotStart(Exception):
    """A server ended or stayed silent; the message ends with the last line it wrote."""


@dataclass(frozen=True)
class Reading:
    """One run of the load generator. Milliseconds, megabytes, CPU microseconds a request."""

    rate: float
    p50: float
    p99: float
    errors: int
    cpu: float
    memory: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def processes(root: int) -> list[int]:
    """The process and all below it."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of the whole process tree."""
    total = 0
    for pid in processes(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory_megabytes(root: int) -> float:
    """Resident memory of the whole process tree."""
    total = 0
    for pid in processes(root):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


@contextlib.contextmanager
def running(
    command: list[str],
    port: int,
    path: str = "/readyz",
    *,
    log: Path | None = None,
    patience: float = _START_SECONDS,
    **variables: str,
) -> Iterator[int]:
    """Start a server and wait for it; its pid. Afterwards nothing of its process tree is left."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVING_")}
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log is not None else subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=ROOT, env=clean | variables, stdout=output, stderr=output)
        family = {process.pid}
        try:
            until = time.monotonic() + patience
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    raise DidNotStart(f"{Path(command[0]).name} {command[1]}: {_last_line(log)}")
                if _is_ready(port, path):
                    break
                time.sleep(0.01)
            yield process.pid
        finally:
            family.update(processes(process.pid))
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _end(family - {process.pid})


@contextlib.contextmanager
def redis_running(folder: Path) -> Iterator[str]:
    """A Redis of its own that keeps nothing on disk; its URL."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen([*command, "--maxmemory", "256mb"], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int, path: str) -> bool:
    """By hand: a client that takes 20 ms to make would show in the cold start."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return link.recv(64).split(b" ", 2)[1:2] == [b"200"]
    except OSError:
        return False


def _end(left: set[int]) -> None:
    """Kill what a server has left behind, now that its parent is gone."""
    until = time.monotonic() + 2.0
    while left and time.monotonic() < until:
        left = {pid for pid in left if Path(f"/proc/{pid}/fd").exists()}
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


def _last_line(log: Path | None) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log is not None else []
    return lines[-1][:200] if lines else "did not start"


def ours(bundle: Path, port: int, **variables: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of our server on that bundle."""
    settings = {
        "SERVING_BUNDLE": str(bundle),
        "SERVING_HOST": "127.0.0.1",
        "SERVING_PORT": str(port),
        "SERVING_VERSION": "1",
        "SERVING_DRAIN_SECONDS": "0",
    }
    return [sys.executable, "-m", "serving", "serve"], settings | variables


def subject(kind: str, *arguments: object) -> list[str]:
    """The command of one of the programs in serving_subjects.py."""
    program = str(Path(__file__).parent / "serving_subjects.py")
    return [sys.executable, program, kind, *(str(argument) for argument in arguments)]


def write_script(
    folder: Path, bodies: list[bytes], media: str = "application/json", headers: dict[str, str] | None = None
) -> Path:
    """A wrk script that sends the bodies in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(bodies):
        (folder / f"{number}.body").write_bytes(body)
    fields = {"Content-Type": media} | (headers or {})
    lua = ", ".join(f'["{name}"] = "{value}"' for name, value in fields.items())
    script = folder / "load.lua"
    script.write_text(
        f"""
local requests, turn = {{}}, 0
init = function(args)
  for number = 0, {len(bodies) - 1} do
    local file = io.open("{folder}/" .. number .. ".body", "rb")
    requests[number] = wrk.format("POST", nil, {{{lua}}}, file:read("*a"))
    file:close()
  end
end
request = function()
  turn = (turn + 1) % {len(bodies)}
  return requests[turn]
end
"""
    )
    return script


def measure(url: str, pid: int, script: Path, connections: int, seconds: float) -> Reading:
    """One run of wrk on one thread; whole seconds, since wrk knows no others."""
    before = cpu_seconds(pid)
    output = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "-s",
            str(script),
            url,
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    used = cpu_seconds(pid) - before
    requests = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    errors = int(refused[1]) if refused else 0
    errors += sum(int(count) for count in broken.groups()) if broken else 0
    return Reading(
        rate=float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),  # type: ignore[index]
        p50=_milliseconds(re.search(r"50%\s+([\d.]+)(us|ms|s)", output)),
        p99=_milliseconds(re.search(r"99%\s+([\d.]+)(us|ms|s)", output)),
        errors=errors,
        cpu=used / max(1, requests) * 1e6,
        memory=memory_megabytes(pid),
    )


def _milliseconds(found: re.Match[str] | None) -> float:
    assert found is not None
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def heads(titles: tuple[str, ...], widths: tuple[int, ...]) -> str:
    """A table's head, each title over the right end of its column."""
    return " ".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))


def median(readings: list[Reading]) -> Reading:
    """The median of each figure; errors are added up."""
    return Reading(
        rate=statistics.median(reading.rate for reading in readings),
        p50=statistics.median(reading.p50 for reading in readings),
        p99=statistics.median(reading.p99 for reading in readings),
        errors=sum(reading.errors for reading in readings),
        cpu=statistics.median(reading.cpu for reading in readings),
        memory=max(reading.memory for reading in readings),
    )


def random_rows(count: int) -> list[list[float]]:
    source = random.Random(0)
    return [[round(source.uniform(-3, 3), 4) for _ in range(WIDTH)] for _ in range(count)]


def bodies(form: str, rows: list[list[float]]) -> list[bytes]:
    """One request a row: `instances` (ours, KServe v1 and most others) or `v2` (Open Inference as JSON)."""
    if form == "instances":
        return [json.dumps({"instances": [row]}).encode() for row in rows]
    return [
        json.dumps(
            {"inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}]}
        ).encode()
        for row in rows
    ]


def scores(answer: object) -> list[float]:
    """The scores of the one row in an answer, whichever server gave it."""
    found = answer
    if isinstance(found, dict):
        found = found["predictions"] if "predictions" in found else found["outputs"][0]["data"]
    assert isinstance(found, list)
    if isinstance(found[0], list):
        found = found[0]
    return [float(value) for value in found]
