"""How fast the model server is: against its peers, plain FastAPI and the floor, and what each feature costs.

    python -m tests.bench.serving_speed [--seconds 5] [--rounds 2] [--connections 32]
                                        [--only PART] [--peer NAME]...

CPU microseconds a request of the server's process tree are the steadier figure; rates depend on who else uses
the machine, so every peer is measured in turns with ours, and the ratio is of neighbours in time. Answers are
compared before anything is timed. Needs `wrk`, and for the features `redis-server`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from serving_conditions import arrivals, connections, large, payloads, start
from serving_endurance import drains, memory
from serving_features import features
from serving_load import (
    Reading,
    bodies,
    free_port,
    heads,
    measure,
    median,
    ours,
    random_rows,
    running,
    scores,
    subject,
    write_script,
)
from serving_peers import NotInstalled, installed, serving, table_of_peers
from serving_subjects import write_bundle

_TITLES = ("req/s", "p50 ms", "p99 ms", "CPU us", "MB", "errors", "ours x", "CPU x")
_WIDTHS = (8, 7, 7, 7, 5, 6, 7, 6)
_BODIES = 64
_PARTS = ("peers", "features", "large", "payloads", "connections", "arrivals", "start", "drains", "memory")
_WARM_SECONDS = 3.0


def peers(folder: Path, connections: int, seconds: float, rounds: int, chosen: list[str]) -> None:
    """One peer at a time, in turns with ours, so that a noisy neighbour disturbs both alike."""
    bundle = write_bundle(folder / "mlp")
    rows = random_rows(_BODIES)
    scripts = {form: write_script(folder / form, bodies(form, rows)) for form in ("instances", "v2")}
    port = free_port()
    command, variables = ours(bundle, port)
    url = f"http://127.0.0.1:{port}/predict"
    settings, mine = [], []
    with running(command, port, **variables) as server:
        expected = _answer(url, bodies("instances", rows)[0])
        measure(url, server, scripts["instances"], connections, _WARM_SECONDS)
        print(f"{'server':22} {heads(_TITLES, _WIDTHS)}")

        def beside(name: str, address: str, pid: int, form: str, *, floor: bool = False) -> None:
            if not floor:
                answer = _answer(address, bodies(form, rows)[0])
                differences = [abs(a - b) for a, b in zip(answer, expected, strict=True)]
                assert max(differences) < 1e-4, f"{name} answers {answer}, expected {expected}"
            measure(address, pid, scripts[form], connections, _WARM_SECONDS)
            theirs, own = [], []
            for _ in range(rounds):
                theirs.append(measure(address, pid, scripts[form], connections, seconds))
                own.append(measure(url, server, scripts["instances"], connections, seconds))
            mine.extend(own)
            _print(name, median(theirs), median(own))

        if not chosen:
            fastapi = free_port()
            with running(subject("fastapi", fastapi, bundle), fastapi) as pid:
                beside("plain FastAPI", f"http://127.0.0.1:{fastapi}/predict", pid, "instances")
        for peer in table_of_peers():
            if chosen and peer.name not in chosen:
                continue
            place = folder / peer.program
            try:
                python = installed(peer)
                with serving(peer, python, bundle, place) as (address, pid):
                    beside(f"{peer.name} {peer.version}", address, pid, peer.form)
                settings.append(f"{peer.name}: {peer.settings}")
            except NotInstalled as error:
                print(f"{peer.name:22} skipped: {error}", flush=True)
        floor = free_port()
        with running(subject("floor", floor), floor) as pid:
            beside("the floor", f"http://127.0.0.1:{floor}/predict", pid, "instances", floor=True)
        _print("ModelServeAI", median(mine), median(mine))
    for line in settings:
        print(f"  {line}")


def _answer(url: str, body: bytes) -> list[float]:
    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30)
    answer.raise_for_status()
    return scores(answer.json())


def _print(name: str, theirs: Reading, own: Reading) -> None:
    print(
        f"{name:22} {theirs.rate:8.0f} {theirs.p50:7.2f} {theirs.p99:7.2f} {theirs.cpu:7.1f}"
        f" {theirs.memory:5.0f} {theirs.errors:6} {own.rate / theirs.rate:7.2f} {theirs.cpu / own.cpu:6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", choices=_PARTS)
    parser.add_argument("--peer", action="append", default=[], help="only this peer; may be repeated")
    chosen = parser.parse_args()
    load = chosen.connections, chosen.seconds, chosen.rounds
    parts: dict[str, Callable[[Path], None]] = {
        "peers": lambda folder: peers(folder, *load, chosen.peer),
        "features": lambda folder: features(folder, *load),
        "large": lambda folder: large(folder, chosen.seconds, chosen.rounds),
        "payloads": lambda folder: payloads(folder, chosen.seconds),
        "connections": lambda folder: connections(folder, chosen.seconds),
        "arrivals": lambda folder: arrivals(folder, chosen.seconds),
        "start": start,
        "drains": drains,
        "memory": memory,
    }
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before the start", flush=True)
    for name in _PARTS:
        if chosen.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                parts[name](Path(folder))
            print(flush=True)


if __name__ == "__main__":
    main()
