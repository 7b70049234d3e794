"""The model server under other conditions than many small requests: large models and payloads, arrivals that
do not wait, other numbers of connections, and the times at which it has nothing to do yet, or at all."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from serving_load import (
    bodies,
    cpu_seconds,
    free_port,
    heads,
    measure,
    memory_megabytes,
    ours,
    random_rows,
    running,
    subject,
    write_script,
)
from serving_subjects import (
    CONV_HANDLER,
    CONV_ROWS,
    CONV_SPEC,
    IMAGE_HANDLER,
    IMAGE_SPEC,
    write_bundle,
    write_other,
)

_HERE = Path(__file__).parent
_IDLE_SECONDS = 20.0
"""CPU time is counted in hundredths of a second."""
_STARTS = 5


def large(folder: Path, seconds: float, rounds: int) -> None:
    """A convolutional net that takes 10 to 50 ms a batch, beside the bare model in a loop, in turns."""
    bundle = write_other(folder / "conv", CONV_SPEC, CONV_HANDLER)
    images = np.random.default_rng(0).random((8, 3, 32, 32)).round(3)
    script = write_script(
        folder / "bodies", [json.dumps({"instances": [image.tolist()]}).encode() for image in images]
    )
    port = free_port()
    command, variables = ours(bundle, port)
    served, bare = [], []
    with running(command, port, **variables) as pid:
        url = f"http://127.0.0.1:{port}"
        measure(f"{url}/predict", pid, script, 4 * CONV_ROWS, 1.0)
        for _ in range(rounds):
            served.append(measure(f"{url}/predict", pid, script, 4 * CONV_ROWS, seconds))
            loop = subject("loop", bundle, CONV_ROWS, seconds)
            output = subprocess.run(loop, capture_output=True, text=True, check=True).stdout
            rate, cpu = (float(figure) for figure in output.split())
            bare.append((rate, cpu))
        text = httpx.get(f"{url}/metrics").text
        size = _sample(text, "modelserve_batch_rows_sum") / _sample(text, "modelserve_batch_rows_count")
    rate, alone = statistics.median(r.rate for r in served), statistics.median(rate for rate, _ in bare)
    cpu, least = statistics.median(r.cpu for r in served), statistics.median(cpu for _, cpu in bare)
    print(f"convolutional net, {1e3 * CONV_ROWS / alone:.0f} ms a batch of {CONV_ROWS}, one thread")
    print(f"  the bare model in a loop   {alone:7.1f} rows/s {least:7.0f} CPU us/row")
    print(f"  served (batches of {size:.2f})   {rate:7.1f} rows/s {cpu:7.0f} CPU us/row  {rate / alone:.1%}")


def _sample(text: str, name: str) -> float:
    found = re.search(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def payloads(folder: Path, seconds: float) -> None:
    """A picture of 224x224x3 floats: JSON beside the binary tensor extension."""
    bundle = write_other(folder / "image", IMAGE_SPEC, IMAGE_HANDLER)
    image = np.random.default_rng(0).random((1, 3, 224, 224)).round(4).astype(np.float32)
    values = [round(float(value), 4) for value in image.ravel()]
    tensor = {"name": "x", "shape": [1, 3, 224, 224], "datatype": "FP32"}
    head = json.dumps(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": image.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    nested = json.dumps({"instances": [np.array(values).reshape(3, 224, 224).tolist()]}).encode()
    cases = {
        "/predict, JSON": ("/predict", nested, {}),
        "/v2 infer, JSON": (
            "/v2/models/image/infer",
            json.dumps({"inputs": [tensor | {"data": values}]}).encode(),
            {},
        ),
        "/v2 infer, binary": (
            "/v2/models/image/infer",
            head + image.tobytes(),
            {"Inference-Header-Content-Length": str(len(head))},
        ),
    }
    port = free_port()
    command, variables = ours(bundle, port)
    print("one picture of 3x224x224 floats, 8 connections")
    titles = ("MB", "req/s", "p99 ms", "CPU us", "rate x")
    print(f"  {'':18} {heads(titles, (5, 7, 7, 7, 7))}")
    base = 0.0
    with running(command, port, **variables) as pid:
        for name, (path, body, headers) in cases.items():
            media = "application/octet-stream" if headers else "application/json"
            url = f"http://127.0.0.1:{port}{path}"
            answer = httpx.post(url, content=body, headers={"content-type": media, **headers})
            answer.raise_for_status()
            script = write_script(folder / base64.b16encode(name.encode()).decode(), [body], media, headers)
            reading = measure(url, pid, script, 8, seconds)
            base = base or reading.rate
            print(
                f"  {name:18} {len(body) / 1e6:5.2f} {reading.rate:7.0f} {reading.p99:7.2f}"
                f" {reading.cpu:7.0f} {reading.rate / base:7.2f}"
                + (f"  {reading.errors} errors" if reading.errors else "")
            )


def connections(folder: Path, seconds: float) -> None:
    """Ours and plain FastAPI with few and with many clients."""
    bundle = write_bundle(folder / "mlp")
    script = write_script(folder / "bodies", bodies("instances", random_rows(64)))
    ports = free_port(), free_port()
    command, variables = ours(bundle, ports[0])
    print("connections")
    titles = ("req/s", "p50 ms", "p99 ms", "FastAPI", "p50 ms", "p99 ms", "rate x")
    print(f"{'':5} {heads(titles, (8, 7, 7, 8, 7, 7, 7))}")
    with (
        running(command, ports[0], **variables) as server,
        running(subject("fastapi", ports[1], bundle), ports[1]) as fastapi,
    ):
        for count in (1, 8, 64, 256):
            own, plain = (
                measure(f"http://127.0.0.1:{port}/predict", pid, script, count, seconds)
                for port, pid in zip(ports, (server, fastapi), strict=True)
            )
            print(
                f"{count:5} {own.rate:8.0f} {own.p50:7.2f} {own.p99:7.2f} {plain.rate:8.0f} {plain.p50:7.2f}"
                f" {plain.p99:7.2f} {own.rate / plain.rate:7.2f}"
            )


def arrivals(folder: Path, seconds: float) -> None:
    """Open loop at 70 % of what each server can do; ours also without garbage collection, and asked no more
    often than plain FastAPI: at ten thousand a second the generator's own hiccups are in the tail."""
    bundle = write_bundle(folder / "mlp")
    rows = bodies("instances", random_rows(64))
    script = write_script(folder / "bodies", rows)
    body = folder / "body"
    body.write_bytes(rows[0])
    print("open loop, Poisson arrivals at 70 % of the server's own capacity")
    titles = ("capacity", "offered", "answered", "p50 ms", "p99 ms", "p99.9", "worst", "lost")
    print(f"  {'':16} {heads(titles, (8, 8, 8, 7, 7, 7, 7, 5))}")
    port = free_port()
    command, variables = ours(bundle, port)
    cases = {
        "plain FastAPI": (subject("fastapi", port, bundle), {}),
        "ours, as often": (command, variables),
        "ours": (command, variables),
        "ours, gc off": (subject("ours", "gc"), variables),
    }
    slowest = math.inf
    for name, (line, options) in cases.items():
        with running(line, port, **options) as pid:
            capacity = measure(f"http://127.0.0.1:{port}/predict", pid, script, 32, seconds).rate
            rate = 0.7 * (min(slowest, capacity) if name.endswith("as often") else capacity)
            slowest = min(slowest, capacity)
            program = [sys.executable, str(_HERE / "serving_open_loop.py"), str(port), "/predict", str(body)]
            output = subprocess.run(
                [*program, str(rate), str(2 * seconds)], capture_output=True, text=True, check=True
            ).stdout
            result = json.loads(output)
            print(
                f"  {name:16} {capacity:8.0f} {rate:8.0f} {result['rate']:8.0f} {result['p50']:7.2f}"
                f" {result['p99']:7.2f} {result['p999']:7.2f} {result['worst']:7.1f} {result['lost']:5}"
            )


def start(folder: Path) -> None:
    """From the start of the process to ready, beside a program that imports torch and loads the model; then
    the memory and the idle CPU, beside plain FastAPI. Medians; CPU time is the steadier figure."""
    bundle = write_bundle(folder / "mlp")
    programs = {
        "import torch, load": lambda _: subject("load", bundle),
        "ours to ready": lambda port: ours(bundle, port)[0],
        "plain FastAPI": lambda port: subject("fastapi", port, bundle),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    used: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(_STARTS):
        for name, program in programs.items():
            port = free_port()
            began = time.perf_counter()
            if name == "import torch, load":
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(program(port), check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds[name].append(time.perf_counter() - began)
                used[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
                continue
            with running(program(port), port, **ours(bundle, port)[1]) as pid:
                seconds[name].append(time.perf_counter() - began)
                used[name].append(cpu_seconds(pid))
    base = statistics.median(seconds["import torch, load"])
    print(f"cold start, median of {_STARTS}")
    for name, times in seconds.items():
        taken = statistics.median(times)
        print(f"  {name:20} {taken:5.2f} s {statistics.median(used[name]):5.2f} CPU s {taken / base:5.2f} x")
    ports = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        command, variables = ours(bundle, ports[0])
        own = stack.enter_context(running(command, ports[0], **variables))
        plain = stack.enter_context(running(subject("fastapi", ports[1], bundle), ports[1]))
        script = write_script(folder / "bodies", bodies("instances", random_rows(64)))
        for port, pid in zip(ports, (own, plain), strict=True):
            measure(f"http://127.0.0.1:{port}/predict", pid, script, 32, 2.0)
        memory = memory_megabytes(own), memory_megabytes(plain)
        time.sleep(1.0)
        before_idle, began = cpu_seconds(own), time.perf_counter()
        time.sleep(_IDLE_SECONDS)
        idle = (cpu_seconds(own) - before_idle) / (time.perf_counter() - began)
    print(f"memory after traffic: {memory[0]:.0f} MB, plain FastAPI {memory[1]:.0f} MB", end="")
    print(f" ({memory[0] / memory[1]:.2f} x); idle CPU {idle:.2%}")
