"""How long a bad release keeps its users once an alert fires: `make bench-rollback`.

A real stack under traffic. Each round promotes a release, breaks it behind the platform's back, and waits
until the alert has brought the old one back. Every part of the wait is read from the clock of whoever did it:
Prometheus says when the alert began to fire, the registry when the receiver got it and the weight was 0.

    python -m tests.bench.rollback [--rounds 10]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import psycopg2
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flows.adapters import stack
from flows.adapters.registry import ROLLED_BACK
from tests.chaos.world import MODEL, World, running_world

PROMISED_SECONDS = 15.0
"""95 of 100 rollbacks are done this long after their alert fired."""


@dataclass(frozen=True)
class Round:
    """One rollback; all in seconds."""

    noticed: float
    """From the first failed request to the firing alert: scrape, evaluation, and the rule's own `for`."""
    handed_over: float
    """From the firing alert to the receiver: Prometheus' sending and Alertmanager's grouping."""
    acted: float
    """From the receiver to weight 0: attribution, Prefect, the earlier release's start, the gateway."""
    total: float
    """From the firing alert to weight 0: what is promised."""
    failed: int
    """Users' requests that failed from the first to the last."""


HEADINGS = {
    "noticed": "first failure → firing (Prometheus)",
    "handed_over": "firing → receiver (Alertmanager)",
    "acted": "receiver → weight 0 (ours)",
    "total": "firing → weight 0 (promised)",
    "failed": "requests failed in all",
}


def play(world: World) -> Round:
    """Promote, break, and see it rolled back."""
    version, _ = world.promote()
    before = world.plane.registry.standing(MODEL).stable
    assert before is not None
    assert world.ended(version).state == "promoted"
    broken_at = time.time()
    stack.Supervisor(world.settings).stop(f"{MODEL}-v{version}")
    world.serving(before.version, 120)
    world.until(lambda: _alert(world, broken_at) is not None, 30, "the alert to be settled")
    found = _alert(world, broken_at)
    assert found is not None
    fired_at, received_at = found
    rolled_back = [e for e in world.plane.registry.events(MODEL) if e.kind == ROLLED_BACK][-1]
    assert rolled_back.version == version
    back_at = rolled_back.at.timestamp()
    time.sleep(1)  # the last answers reach the users' log
    failures = world.failures_since(broken_at)
    assert failures, "a release without servers failed nobody: nothing was measured"
    first = float(json.loads(failures[0])["at"])
    return Round(
        noticed=fired_at - first,
        handed_over=received_at - fired_at,
        acted=back_at - received_at,
        total=back_at - fired_at,
        failed=len(failures),
    )


def _alert(world: World, since: float) -> tuple[float, float] | None:
    """When the alert that has rolled back since then fired, and when the receiver got it, in Unix seconds."""
    with psycopg2.connect(world.settings.registry_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT extract(epoch FROM starts_at), extract(epoch FROM received_at) FROM alerts"
            " WHERE outcome = 'rolled-back' AND received_at > to_timestamp(%s)",
            (since,),
        )
        row = cursor.fetchone()
    return None if row is None else (float(row[0]), float(row[1]))


def percentile_95(values: list[float]) -> float:
    """With few rounds this is close to the worst one, as it should be."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def table(rounds: list[Round]) -> Table:
    shown = Table(title=f"{len(rounds)} rollbacks by alert, seconds", title_justify="left")
    for column in ("", "median", "p95", "worst"):
        shown.add_column(column, justify="left" if not column else "right")
    for field in fields(Round):
        values = [float(getattr(one, field.name)) for one in rounds]
        figures = (statistics.median(values), percentile_95(values), max(values))
        shown.add_row(HEADINGS[field.name], *(f"{figure:.1f}" for figure in figures))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rollbacks to measure, two at least")
    rounds = max(2, parser.parse_args().rounds)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="modelserve-bench-") as folder:
        console.print("starting a stack of its own …")
        # Each round is an incident of its own; elsewhere the second in a row waits for a person.
        with running_world(Path(folder), MODELSERVE_COOLDOWN_SECONDS="0") as world:
            found = [play(world) for _ in track(range(rounds), "rolling back", console=console)]
    console.print(table(found))
    reached = percentile_95([one.total for one in found])
    if reached > PROMISED_SECONDS:
        raise SystemExit(
            f"p95 from firing to weight 0 is {reached:.1f} s; promised are {PROMISED_SECONDS:g} s"
        )
    console.print(f"p95 from firing to weight 0: {reached:.1f} s; promised: under {PROMISED_SECONDS:g} s")


if __name__ == "__main__":
    main()
