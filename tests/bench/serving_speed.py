"""How fast the model server is: against the floor and plain FastAPI, and what each feature costs.

    python tests/bench/serving_speed.py [--seconds 5] [--rounds 3] [--connections 32] [--only table|features]

CPU microseconds a request of the server's process are the steadier figure; rates depend on who else uses the
machine. Answers are compared before anything is timed. Needs `wrk` and, for the features, `redis-server`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from serving_subjects import WIDTH, write_bundle

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")


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
def running(command: list[str], port: int, path: str = "/readyz", **variables: str) -> Iterator[int]:
    """Start a server and wait for it; its pid."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVING_")}
    process = subprocess.Popen(command, cwd=ROOT, env=clean | variables, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command}: did not start")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                    break
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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


def write_script(folder: Path, bodies: list[str], media: str = "application/json", headers: str = "") -> Path:
    """A wrk script that sends the bodies in turn."""
    (folder / "bodies").mkdir(exist_ok=True)
    for number, body in enumerate(bodies):
        (folder / "bodies" / str(number)).write_text(body)
    script = folder / "load.lua"
    script.write_text(
        f"""
local bodies = {{}}
for number = 0, {len(bodies) - 1} do
  local file = io.open("{folder}/bodies/" .. number, "rb")
  bodies[number] = file:read("*a")
  file:close()
end
local requests, turn = {{}}, 0
init = function(args)
  for number = 0, {len(bodies) - 1} do
    requests[number] = wrk.format("POST", nil, {{["Content-Type"] = "{media}"{headers}}}, bodies[number])
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
    """One run of wrk on one thread."""
    before = cpu_seconds(pid)
    output = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script), url],
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


def random_bodies(count: int) -> list[str]:
    source = random.Random(0)
    return [
        json.dumps({"instances": [[round(source.uniform(-3, 3), 4) for _ in range(WIDTH)]]})
        for _ in range(count)
    ]


def table(folder: Path, connections: int, seconds: float, rounds: int) -> None:
    """Ours, plain FastAPI and the floor, in turns, so that a noisy neighbour disturbs all of them alike."""
    bundle = write_bundle(folder / "mlp")
    script = write_script(folder, random_bodies(64))
    ports = [free_port() for _ in range(3)]
    subjects = str(Path(__file__).parent / "serving_subjects.py")
    command, variables = ours(bundle, ports[0])
    readings: dict[str, list[Reading]] = {"modelserve": [], "plain FastAPI": [], "floor": []}
    with (
        running(command, ports[0], **variables) as server,
        running([sys.executable, subjects, "fastapi", str(ports[1]), str(bundle)], ports[1]) as fastapi,
        running([sys.executable, subjects, "floor", str(ports[2])], ports[2]) as floor,
    ):
        body = random_bodies(1)[0]
        answers = [
            httpx.post(
                f"http://127.0.0.1:{port}/predict", content=body, headers={"content-type": "application/json"}
            )
            for port in ports[:2]
        ]
        ours_row, theirs_row = (answer.json()["predictions"][0] for answer in answers)
        assert all(abs(a - b) < 1e-4 for a, b in zip(ours_row, theirs_row, strict=True)), "answers differ"
        for _ in range(rounds):
            for name, port, pid in zip(readings, ports, (server, fastapi, floor), strict=True):
                url = f"http://127.0.0.1:{port}/predict"
                readings[name].append(measure(url, pid, script, connections, seconds))
    base = median(readings["plain FastAPI"])
    titles = ("req/s", "p50 ms", "p99 ms", "CPU us", "MB", "errors", "x FastAPI")
    print(f"{'server':16} {heads(titles, (8, 7, 7, 7, 5, 6, 9))}")
    for name, runs in readings.items():
        reading = median(runs)
        print(
            f"{name:16} {reading.rate:8.0f} {reading.p50:7.2f} {reading.p99:7.2f} {reading.cpu:7.1f}"
            f" {reading.memory:5.0f} {reading.errors:6} {reading.rate / base.rate:9.2f}"
        )


def features(folder: Path, connections: int, seconds: float, rounds: int) -> None:
    """What the optional parts cost: each alone, then all together. Every body is new to the cache."""
    port = free_port()
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--maxmemory", "256mb"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    script = write_script(folder, random_bodies(20_000))
    plain = write_bundle(folder / "plain")
    cached = write_bundle(folder / "cached", "  cache: {enabled: true, ttl_seconds: 1}\n")
    try:
        with contextlib.ExitStack() as stack:
            shadow_port = free_port()
            command, variables = ours(plain, shadow_port)
            stack.enter_context(running(command, shadow_port, **variables))
            shadow = {
                "SERVING_SHADOW_URL": f"http://127.0.0.1:{shadow_port}",
                "SERVING_SHADOW_SHARE": "0.1",
            }
            cases = {
                "none": (plain, {}),
                "samples": (plain, {"SERVING_REDIS_URL": url}),
                "shadow": (plain, shadow),
                "cache (all misses)": (cached, {"SERVING_REDIS_URL": url}),
                "all": (cached, {"SERVING_REDIS_URL": url, **shadow}),
            }
            servers = {}
            for name, (bundle, options) in cases.items():
                server_port = free_port()
                command, variables = ours(bundle, server_port, **options)
                servers[name] = (server_port, stack.enter_context(running(command, server_port, **variables)))
            readings: dict[str, list[Reading]] = {name: [] for name in cases}
            for _ in range(rounds):
                for name, (server_port, pid) in servers.items():
                    address = f"http://127.0.0.1:{server_port}/predict"
                    readings[name].append(measure(address, pid, script, connections, seconds))
        base = median(readings["none"])
        titles = ("req/s", "p99 ms", "CPU us", "errors", "CPU more", "rate less")
        print(f"{'features on':20} {heads(titles, (8, 7, 7, 6, 9, 9))}")
        for name, runs in readings.items():
            reading = median(runs)
            print(
                f"{name:20} {reading.rate:8.0f} {reading.p99:7.2f} {reading.cpu:7.1f} {reading.errors:6}"
                f" {reading.cpu / base.cpu - 1:9.1%} {1 - reading.rate / base.rate:9.1%}"
            )
    finally:
        redis.terminate()
        redis.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", choices=["table", "features"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.only != "features":
            table(folder, chosen.connections, chosen.seconds, chosen.rounds)
        if chosen.only != "table":
            features(folder, chosen.connections, chosen.seconds, chosen.rounds)


if __name__ == "__main__":
    main()
