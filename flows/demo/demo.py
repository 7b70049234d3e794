"""The demonstration: everything on this machine, in five minutes, with real parts and real flights.

Three versions of a model are trained on flights of 2013 and promoted under live traffic that replays later
flights. The first has nobody to compare with, the second is better, the third is sick. Then the release in
service breaks, and an alert brings the old one back. Then later months arrive, and drift is found.
It ends with a table, and with exit code 0 only when every outcome was the right one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.adapters import stack
from flows.adapters.registry import ROLLED_BACK
from flows.bootstrap import bring_up
from flows.console.following import follow
from flows.console.tables import addresses
from flows.domain.drift.findings import Outcome as DriftOutcome
from flows.domain.errors import DependencyDown, ModelServeError
from flows.domain.promotion import State
from flows.domain.release import release_name
from flows.places import PACKAGES
from flows.settings import Settings
from flows.steps.registration import register_release
from flows.steps.starting import run_flow, start_promotion
from flows.wiring import ControlPlane, control_plane

MODEL = "flights"
VERSIONS = (1, 2, 3)
RATE = 150
KEPT = ("images",)
"""What an earlier demonstration leaves that is worth keeping: the base of all images."""
LIVE = ("2013-07-01", "2013-08-16")
LATER = ("2013-09-01", "2013-09-30")
LATER_SHARE, LATER_RATE = 0.3, 300
"""A third of a later month, fast: about 8 000 flights in half a minute."""
DRIFT_SECONDS = 180
"""How long the drift flow may take."""
ALERT_SECONDS = 120
"""How long an alert may take from the fault to traffic on the old release."""


@dataclass(frozen=True)
class Outcome:
    """A line of the final table."""

    release: str
    verdict: str
    why: str
    seconds: float
    right: bool


def run_demo(settings: Settings, console: Console, *, keep: bool) -> bool:
    """Run the demonstration; True when every outcome was the right one.

    `keep` leaves the stack and its data running, and the traffic stops.
    """
    began = time.monotonic()
    try:
        _heading(console, "1. The stack")
        plane = _empty_stack(settings, console)
        console.print(addresses(settings))
        folder = settings.state / "demo"
        outcomes = _stories(plane, folder, console)
        console.print(_table(outcomes, _statistics(folder)))
        _farewell(console, plane, outcomes, time.monotonic() - began, keep)
        return all(outcome.right for outcome in outcomes)
    finally:
        if not keep:
            stack.down(settings, lambda line: console.print(line, markup=False, style="dim"))


def _empty_stack(settings: Settings, console: Console) -> ControlPlane:
    """The stack, with nothing in it from an earlier demonstration. Models of yours are never touched."""

    def say(line: str) -> None:
        console.print(line, markup=False)

    bring_up(settings, say)
    plane = control_plane(settings)
    models = set(plane.registry.models())
    if models - {MODEL}:
        raise ModelServeError(
            f"{settings.state} holds models of yours ({', '.join(sorted(models - {MODEL}))}); "
            "set MODELSERVE_STATE to an empty folder for the demo"
        )
    if models:
        say("an earlier demo has left its data here: it goes, and the stack starts afresh")
        stack.down(settings)
        for entry in settings.state.iterdir():
            if entry.name not in KEPT:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        bring_up(settings, say)
    return control_plane(settings)


def _stories(plane: ControlPlane, folder: Path, console: Console) -> list[Outcome]:
    _heading(console, "2. Three versions of a model that says whether a flight will be late")
    _train(plane, folder, console)
    _heading(console, f"3. Live traffic: {RATE} real flights a second, in the order in which they left")
    with _traffic(plane, folder, console):
        _heading(console, "4. Version 1: the first release, nobody to compare with")
        outcomes = [_promotion(plane, 1, State.PROMOTED, console)]
        console.print()
        _heading(console, "   Version 2: trained on the weeks before, a canary beside version 1")
        outcomes.append(_promotion(plane, 2, State.PROMOTED, console))
        _heading(console, "5. Version 3: sick, though its integration test passes")
        outcomes.append(_promotion(plane, 3, State.REJECTED, console))
        _blame_v3(folder, plane, console)
        _heading(console, "6. Three in the morning: version 2 breaks, and an alert fires")
        outcomes.append(_alert(plane, console))
    _heading(console, "7. Autumn: a later month arrives, and with it drift")
    outcomes.append(_drift(plane, folder, console))
    return outcomes


def _train(plane: ControlPlane, folder: Path, console: Console) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with console.status("training on 336 776 flights of 2013 (about half a minute) …"):
        _python(["serving.models.flights.train", "--output", str(folder)], "training failed", console)
    source = PACKAGES / "serving" / "models" / MODEL
    for version in VERSIONS:
        name = release_name(MODEL, version)
        with console.status(f"registering {name} …"):
            # The predictions in it are out of fold: each day was scored by a network that had not seen it.
            training = folder / f"{name}.training.parquet"
            model = folder / name / "model.pt"
            release = register_release(plane, source, model, version, training, holdout=training)
        console.print(f"registered {release.name}, sha256 {release.sha256[:12]}…", markup=False)


@contextmanager
def _traffic(plane: ControlPlane, folder: Path, console: Console) -> Iterator[None]:
    """Users, for as long as the body runs: a process of its own."""
    command = [sys.executable, "-m", "flows.demo.traffic", "--rows", str(folder / "flights-2013.parquet")]
    command += ["--model", MODEL, "--gateway", plane.settings.gateway_url, "--rate", str(RATE)]
    command += ["--since", LIVE[0], "--until", LIVE[1], "--repeat", "--wait", "600", "--quiet"]
    command += ["--statistics", str(folder / "traffic.json"), "--log", str(folder / "requests.jsonl")]
    with (plane.settings.logs / "traffic.log").open("w") as log:
        users = subprocess.Popen(command, stdout=log, stderr=log, cwd=plane.settings.repository)
    console.print(f"they begin as soon as a release answers; statistics in {folder / 'traffic.json'}")
    try:
        yield
    finally:
        users.send_signal(signal.SIGTERM)
        try:
            users.wait(30)
        except subprocess.TimeoutExpired:
            users.kill()
            users.wait()


def _promotion(plane: ControlPlane, version: int, expected: State, console: Console) -> Outcome:
    began = time.monotonic()
    started = start_promotion(plane, MODEL, version)
    console.print(f"flow run: {started.url}", markup=False, style="dim")
    follow(plane, started, console)
    found = plane.registry.newest_promotion_of_run(str(started.run))
    state = found.state if found else State.FAILED
    why = found.reason or "" if found else "it never began"
    seconds = time.monotonic() - began
    return Outcome(release_name(MODEL, version), state, why, seconds, state is expected)


def _blame_v3(folder: Path, plane: ControlPlane, console: Console) -> None:
    """What the sick release cost its users."""
    answers = _statistics(folder).get("3")
    if not answers or not answers["first_failure_at"]:
        return
    back = [event.at.timestamp() for event in plane.registry.events(MODEL, kinds=(ROLLED_BACK,))]
    seconds = (
        f", {back[-1] - answers['first_failure_at']:.1f} s from the first of them to weight 0" if back else ""
    )
    console.print(
        f"cost: {answers['failed']} of {answers['requests']} requests to version 3 failed{seconds}",
        style="bold",
    )


def _alert(plane: ControlPlane, console: Console) -> Outcome:
    """Stop version 2's server behind the platform's back; Prometheus must notice and Alertmanager call."""
    began = time.monotonic()
    name = release_name(MODEL, 2)
    stable = plane.registry.standing(MODEL).stable
    if stable is None or stable.version != 2:
        # Its rollback would be read from an older story.
        why = f"not tried: {name} is not the stable release"
        console.print(why, markup=False)
        return Outcome(name, "not in service", why, 0.0, right=False)
    supervisor = stack.Supervisor(plane.settings)
    supervisor.stop(name)
    console.print(f"stopped the server of {name}; from now on its requests fail with 503")

    def is_back() -> bool:
        standing = plane.registry.standing(MODEL)
        return standing.stable is not None and standing.stable.version == 1 and standing.retreat is None

    with console.status("Prometheus' rule ReleaseFailing → Alertmanager → alert receiver → rollback …"):
        right = _until(is_back, ALERT_SECONDS)
    events = plane.registry.events(MODEL, kinds=(ROLLED_BACK,))
    why = str(events[-1].detail.get("reason")) if right and events else "no alert rolled it back"
    console.print(why, markup=False)
    return Outcome(name, "rolled back" if right else "still stable", why, time.monotonic() - began, right)


def _drift(plane: ControlPlane, folder: Path, console: Console) -> Outcome:
    """Send a sample of a later month, then check it as the schedule would."""
    began = time.monotonic()
    with console.status(f"replaying a sample of the flights from {LATER[0]} to {LATER[1]} …"):
        # The day after the last one ends the selection.
        until = str(date.fromisoformat(LATER[1]) + timedelta(days=1))
        arguments = ["flows.demo.traffic", "--rows", str(folder / "flights-2013.parquet"), "--model", MODEL]
        arguments += ["--gateway", plane.settings.gateway_url, "--since", LATER[0], "--until", until]
        arguments += ["--sample", str(LATER_SHARE), "--rate", str(LATER_RATE), "--feedback-delay", "1"]
        _python([*arguments, "--quiet"], "the replay failed", console)
    with console.status("the drift flow compares them with what the release was trained on …"):
        run_flow("drift/drift", {"model": MODEL, "since": LATER[0]}, DRIFT_SECONDS)
    checks = plane.registry.drift_checks(MODEL, limit=1)
    if not checks:
        return Outcome(MODEL, "never checked", "no check was recorded", time.monotonic() - began, False)
    _, outcome, result = checks[0]
    sentence = str(result["sentence"])
    console.print(sentence, markup=False)
    if performance := result.get("performance"):
        console.print(f"does it hurt? {performance['state']}: {performance['sentence']}", markup=False)
    if report := result.get("report"):
        console.print(f"report: {report}", markup=False)
    right = outcome in (DriftOutcome.DRIFTED, DriftOutcome.HARMED) and bool(report)
    return Outcome(str(result.get("release")), outcome, sentence, time.monotonic() - began, right)


def _statistics(folder: Path) -> dict[str, dict[str, Any]]:
    """By version: what the users got."""
    try:
        content = json.loads((folder / "traffic.json").read_text())
    except (OSError, ValueError):
        return {}
    return dict(content["releases"])


def _table(outcomes: list[Outcome], statistics: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="What happened", title_justify="left")
    for column in ("", "release", "verdict", "why", "seconds", "requests", "failed"):
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        answers = statistics.get(outcome.release.rpartition("-v")[2], {})
        table.add_row(
            "[green]✓[/]" if outcome.right else "[red]✗[/]",
            outcome.release,
            outcome.verdict,
            outcome.why,
            f"{outcome.seconds:.0f}",
            str(answers.get("requests", "")),
            str(answers.get("failed", "")),
        )
    nobody = statistics.get("none", {})
    if nobody:
        table.add_row(
            "", "gateway", "", "answered for a release that could not", "", "", str(nobody["failed"])
        )
    return table


def _farewell(
    console: Console, plane: ControlPlane, outcomes: list[Outcome], seconds: float, keep: bool
) -> None:
    wrong = sum(not outcome.right for outcome in outcomes)
    verdict = "every outcome was the right one"
    if wrong:
        verdict = f"{wrong} of {len(outcomes)} outcomes were wrong"
    console.print(f"[bold]{verdict}[/], after {seconds:.0f} s")
    if keep:
        console.print("the stack is still up; to look around:", markup=False)
    else:
        console.print(
            f"the stack stops now, and all of this stays in {plane.settings.state}; to look at it again:",
            markup=False,
        )
    for command in next_commands(plane, keep=keep):
        console.print(f"  {command}", markup=False, soft_wrap=True)
    if keep:
        console.print(addresses(plane.settings))


def next_commands(plane: ControlPlane, *, keep: bool) -> list[str]:
    """What to type after the demonstration, word for word, in this order."""
    verbs = ["status", f"history {MODEL}"]
    rejected = [one.id for one in plane.registry.promotions(MODEL) if one.state is State.REJECTED]
    if rejected:
        verbs.append(f"explain {rejected[-1][:8]}")
    if not keep:
        verbs.insert(0, "up")
    return [f"{program()} {verb}" for verb in [*verbs, "down"]]


def program() -> str:
    """How this person calls `modelserve`: by its name where the shell finds it, else by its path."""
    if shutil.which("modelserve"):
        return "modelserve"
    return os.path.relpath(Path(sys.executable).with_name("modelserve"))


def _python(module: list[str], problem: str, console: Console) -> None:
    """Run a module of ours in a process of its own, its lines shown as they come."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", *module],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            console.print(line.rstrip(), markup=False)
    if process.returncode:
        raise DependencyDown(f"{problem}: {line.strip()}")


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return condition()


def _heading(console: Console, text: str) -> None:
    console.rule(f"[bold]{text}", align="left")
