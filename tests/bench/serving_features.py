"""What the optional parts of the model server cost: each alone, then all together."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from serving_load import (
    Reading,
    bodies,
    free_port,
    heads,
    measure,
    median,
    ours,
    processes,
    random_rows,
    redis_running,
    running,
    subject,
    write_script,
)
from serving_subjects import write_bundle

_ROWS = 50_000
"""More than any of the servers answers within the second for which it remembers them."""


def features(folder: Path, connections: int, seconds: float, rounds: int) -> None:
    """What the optional parts cost: each alone, then all together. Every body is new to the cache, or one of
    a hundred where it says hits; half and half where it says half.

    The servers have a CPU to themselves where there are two: Redis, the shadow and the clients, which are
    other machines otherwise, would take turns with them on it. The second server with nothing on tells how
    much of a difference is chance.
    """
    rows = bodies("instances", random_rows(_ROWS))
    hot = rows[:100]
    misses = write_script(folder / "misses", rows)
    hits = write_script(folder / "hits", hot)
    mixed = [row for cold, row in zip(rows, itertools.cycle(hot), strict=False) for row in (cold, row)]
    half = write_script(folder / "half", mixed)
    scripts = {"all misses": misses, "half hits": half, "all hits": hits}
    plain = write_bundle(folder / "plain")
    cached = write_bundle(folder / "cached", "  cache: {enabled: true, ttl_seconds: 1}\n")
    thrifty = write_bundle(
        folder / "thrifty", "  cache: {enabled: true, ttl_seconds: 1, redis: when_cheaper}\n"
    )
    with contextlib.ExitStack() as stack:
        servers_cpu = stack.enter_context(others_elsewhere())
        redis = {"SERVING_REDIS_URL": stack.enter_context(redis_running(folder))}
        shadow_port = free_port()
        command, variables = ours(plain, shadow_port)
        stack.enter_context(running(command, shadow_port, **variables))
        shadow = {
            "SERVING_SHADOW_URL": f"http://127.0.0.1:{shadow_port}",
            "SERVING_SHADOW_SHARE": "0.1",
        }
        variants: dict[str, tuple[Path, dict[str, str]]] = {
            "none": (plain, {}),
            "none, again": (plain, {}),
            "metrics": (plain, {}),
            "samples": (plain, redis),
            "shadow": (plain, shadow),
            "cache": (cached, redis),
            "all": (cached, redis | shadow),
            "cache, Redis when cheaper": (thrifty, redis),
            "all, Redis when cheaper": (thrifty, redis | shadow),
        }
        servers = {}
        for name, (bundle, options) in variants.items():
            server_port = free_port()
            command, variables = ours(bundle, server_port, **options)
            if name.startswith("none"):
                command = subject("ours", "metrics")
            pid = stack.enter_context(running(command, server_port, **variables))
            confine(pid, servers_cpu)
            servers[name] = (server_port, pid)
        cases = [
            (name, hit)
            for name, (bundle, _) in variants.items()
            for hit in scripts
            if hit == "all misses" or bundle is not plain
        ]
        readings: dict[tuple[str, str], list[Reading]] = {case: [] for case in cases}
        # Turns of a second: whatever else the machine does then falls on all of them alike.
        for _ in range(round(seconds * rounds)):
            for name, hit in cases:
                server_port, pid = servers[name]
                address = f"http://127.0.0.1:{server_port}/predict"
                readings[name, hit].append(measure(address, pid, scripts[hit], connections, 1))
    titles = ("req/s", "p99 ms", "CPU us", "errors", "CPU more", "rate less")
    print(f"{'features on':26} {'rows':10} {heads(titles, (8, 7, 7, 6, 9, 9))}")
    for (name, hit), runs in readings.items():
        reading = median(runs)
        pairs = list(zip(runs, readings["none", "all misses"], strict=True))
        more = statistics.median(run.cpu / base.cpu for run, base in pairs) - 1
        less = 1 - statistics.median(run.rate / base.rate for run, base in pairs)
        print(
            f"{name:26} {hit:10} {reading.rate:8.0f} {reading.p99:7.2f} {reading.cpu:7.1f}"
            f" {reading.errors:6} {more:9.1%} {less:9.1%}"
        )


@contextlib.contextmanager
def others_elsewhere() -> Iterator[set[int]]:
    """This process and what it starts leave one CPU alone, whose set this gives; all where there is one."""
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    os.sched_setaffinity(0, everywhere - one or everywhere)
    try:
        yield one
    finally:
        os.sched_setaffinity(0, everywhere)


def confine(root: int, cpus: set[int]) -> None:
    """Let all threads of a process tree run on these CPUs only."""
    for pid in processes(root):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cpus)
