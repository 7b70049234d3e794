"""A real stack, a small model under constant traffic, and the means to break things."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled

from flows.adapters import stack
from flows.domain.errors import DependencyDown
from flows.domain.promotion import Promotion, State
from flows.settings import Settings
from flows.steps.registration import register_release
from flows.wiring import ControlPlane, control_plane
from tests.free_ports import stack_variables

ROOT = Path(__file__).parents[2]
MODEL = "double"
RATE = 40
LEASE_SECONDS = 6
DISK_MEGABYTES = 2000

SPEC = """
name: double
signature:
  inputs: [{name: x, type: number}]
  outputs: [{name: y, type: number}]
serving:
  runtime: {kind: handler, file: model.json}
scan: {mode: record}
resources: {drain_seconds: 2, start_seconds: 20}
"""
PROMOTION = """
promotion:
  steps: [10, 50, 100]
  dwell_seconds: 3
  window_seconds: 1
  min_requests: 5
  max_absolute: 0.3
  deadline_seconds: 150
  post_watch_seconds: 3
"""
PATIENT = PROMOTION.replace("dwell_seconds: 3", "dwell_seconds: 40")
"""For stories that strike in the middle of a ramp: on a busy machine a quick one would be over before."""
HANDLER = """
import json


def load(folder, device):
    return json.loads((folder / "model.json").read_text())["factor"]


def predict(model, rows):
    return [{"y": model * row["x"]} for row in rows]
"""


@dataclass(frozen=True)
class Ending:
    """One line of the table that a run of these tests ends with."""

    fault: str
    state: str
    """How the promotion ended, and who serves."""
    seconds: float
    """From the fault until the traffic was where it is safe and the rows said so."""
    failed: int
    """Users' requests that got no good answer, from the story's begin to its end."""


class Story:
    """One fault under traffic: what was there before it, and when everybody was safe again."""

    def __init__(self, world: World, fault: str) -> None:
        self._world, self._fault = world, fault
        self.began = time.time()
        self._struck_at = self.began
        self._events: list[int] = []

    def strikes(self) -> None:
        """Now."""
        self._struck_at = time.time()
        self._events = [event.id for event in self._world.plane.registry.events(MODEL)]

    def ends(
        self,
        version: int,
        *states: State,
        serving: int,
        seconds: float = 120,
        own: bool = False,
        because: str = "",
    ) -> Promotion:
        """Wait until the promotion of `version` has ended and everybody is served by `serving`.

        `because` stands in the reason on record: which of the nets has caught it. Nothing that was on record
        before the fault is lost, and no user has noticed; where the fault is the release's `own`, only those
        whom the gateway had sent to it.
        """
        world = self._world
        ended = world.ended(version, seconds)
        world.serving(serving, seconds)
        safe_after = time.time() - self._struck_at
        assert ended.state in states, f"{ended.state}: {ended.reason}"
        assert because in (ended.reason or ""), f"caught by another net: {ended.reason}"
        events = [event.id for event in world.plane.registry.events(MODEL)]
        assert events[: len(self._events)] == self._events
        failures = world.failures_since(self.began)
        told = f"{ended.state}, v{serving} serves everybody"
        world.endings.append(Ending(self._fault, told, safe_after, len(failures)))
        if own:
            share = max(
                e.detail["weight"] for e in world.plane.registry.events(MODEL, ended) if e.kind == "weight"
            )
            # The gateway draws for each request, so more than the share may have gone there by chance.
            sent = RATE * (time.time() - self._struck_at) * share / 100
            most = sent + 4 * math.sqrt(sent) + 1
            assert len(failures) <= most, f"{len(failures)} failed of about {sent:.0f} sent to the release"
        else:
            assert failures == []
        return ended

    def settles(self, told: str, *, serving: int, seconds: float = 120, hurts: bool = False) -> None:
        """Wait until everybody is served by `serving`, where no promotion has to end for it.

        No user has noticed, unless the fault is one that `hurts` whoever is served when it strikes.
        """
        world = self._world
        world.serving(serving, seconds)
        safe_after = time.time() - self._struck_at
        failures = world.failures_since(self.began)
        world.endings.append(
            Ending(self._fault, f"{told}, v{serving} serves everybody", safe_after, len(failures))
        )
        assert hurts or failures == []


class World:
    """The stack, its users, and what is seen of both."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.variables = {**os.environ, **variables}
        self.settings = Settings()
        self.plane: ControlPlane = control_plane(self.settings)
        self.log = folder / "requests.jsonl"
        self.version = 0
        self.endings: list[Ending] = []

    def modelserve(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from flows.terminal.cli import main; main()", *words],
            cwd=ROOT,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def register(self, promotion: str = PROMOTION, *, handler: str = HANDLER, answer: float = 6.0) -> int:
        """A new release of the model; all compute the same, so that none is rejected for itself.

        `answer` is what its golden request expects for twice three.
        """
        self.version += 1
        folder = self.folder / f"v{self.version}"
        folder.mkdir()
        (folder / "model.yaml").write_text(SPEC + promotion)
        (folder / "handler.py").write_text(handler)
        (folder / "model.json").write_text(json.dumps({"factor": 2, "version": self.version}))
        sample = {"instances": [{"x": 3}], "predictions": [answer]}
        (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
        artifact = folder / "model.json"
        if self.version == 1:
            self.modelserve("register", str(folder), str(artifact), "--version", "1")
        else:  # the same without starting Python for each
            register_release(self.plane, folder, artifact, self.version)
        return self.version

    def promote(self, promotion: str = PROMOTION) -> tuple[int, str]:
        """Register and begin; (version, flow run id)."""
        version = self.register(promotion)
        return version, self.begin(version)

    def begin(self, version: int) -> str:
        from flows.steps.starting import start_promotion

        return str(start_promotion(self.plane, MODEL, version).run)

    def promotion(self, version: int) -> Promotion | None:
        found = [p for p in self.plane.registry.promotions(MODEL) if p.version == version]
        return found[-1] if found else None

    def ended(self, version: int, seconds: float = 120) -> Promotion:
        def over() -> bool:
            found = self.promotion(version)
            return found is not None and found.ended_at is not None

        self.until(over, seconds, f"v{version} to end")
        found = self.promotion(version)
        assert found is not None
        return found

    def at_weight(self, version: int, weight: int, seconds: float = 90) -> None:
        def reached() -> bool:
            found = self.promotion(version)
            assert found is None or found.ended_at is None, f"v{version} ended early: {found}"
            return found is not None and found.weight >= weight

        self.until(reached, seconds, f"v{version} to reach {weight} %")

    def weights(self) -> dict[str, int]:
        return {name: w for name, w in self.plane.platform.routes(MODEL).weights.items() if w}

    def serving(self, version: int, seconds: float = 60) -> None:
        """Everybody is served by this version, in the data plane and in the registry."""

        def settled() -> bool:
            standing = self.plane.registry.standing(MODEL)
            alone = self.weights() == {f"{MODEL}-v{version}": 100}
            return alone and standing.stable is not None and standing.stable.version == version

        self.until(settled, seconds, f"v{version} to serve everybody")

    def flow_process(self, run: str) -> psutil.Process:
        """The process in which the flow run executes."""
        for process in psutil.process_iter(["pid"]):
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        raise AssertionError(f"no process runs the flow run {run}")

    @property
    def stable(self) -> int:
        """The version that serves everybody between two stories."""
        found = self.plane.registry.standing(MODEL).stable
        assert found is not None
        return found.version

    def story(self, fault: str) -> Story:
        return Story(self, fault)

    @contextmanager
    def without(self, *parts: str) -> Iterator[None]:
        """These parts of the stack are stopped for as long as the body runs; their ports refuse."""
        supervisor = stack.Supervisor(self.settings)
        for name in parts:
            supervisor.stop(name)
        try:
            yield
        finally:
            for name in parts:
                supervisor.start(name)

    @contextmanager
    def unswept(self) -> Iterator[None]:
        """Nobody sweeps for as long as the body runs, so that what is caught was caught by another net."""
        with get_client(sync_client=True) as client:
            sweep = client.read_deployment_by_name("sweep/sweep")
            client.pause_deployment(sweep.id)
            self.cancel_scheduled("sweep")
            try:
                yield
            finally:
                client.resume_deployment(sweep.id)

    def cancel_scheduled(self, deployment: str) -> None:
        """Runs of this deployment that a worker would take up when it comes back never happen."""
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
                ),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployment])),
            ):
                client.set_flow_run_state(run.id, Cancelled(), force=True)

    def part(self, name: str) -> psutil.Process:
        (found,) = [part for part in stack.status(self.settings) if part.name == name]
        assert found.pid is not None
        return psutil.Process(found.pid)

    def failures_since(self, moment: float) -> list[str]:
        """Lines of users' requests since `moment` (unix seconds) that got no good answer."""
        bad = []
        for line in self.log.read_text().splitlines():
            try:
                request = json.loads(line)
            except ValueError:
                continue  # the last line is being written
            if request["at"] >= moment and not 200 <= request["status"] < 300:
                bad.append(line)
        return bad

    @staticmethod
    def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
        def met() -> bool:
            try:
                return condition()
            except DependencyDown:
                return False  # the very thing that the test has stopped

        deadline = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
            time.sleep(0.2)


def mount_small_disk(folder: Path) -> None:
    """A disk of its own for the stack, so that a story can fill it."""
    options = f"size={DISK_MEGABYTES}m,mode=755,uid={os.getuid()},gid={os.getgid()}"
    as_root("mount", "-t", "tmpfs", "-o", options, "modelserve", str(folder))


def as_root(*command: str) -> None:
    """As root, or by sudo, which setting up this machine has needed as well."""
    subprocess.run([*(() if os.geteuid() == 0 else ("sudo",)), *command], check=True)


@contextmanager
def running_world(folder: Path, **settings: str) -> Iterator[World]:
    """A stack of its own in `folder`, under traffic, with a first stable release; gone afterwards.

    `settings` are more variables for every `modelserve` command.
    """
    # Not in pytest's own folders: it could not tidy up what a killed run leaves mounted there.
    state = Path(tempfile.mkdtemp(prefix="modelserve-chaos-"))
    variables = {
        **stack_variables(state, 28000),
        "MODELSERVE_LEASE_SECONDS": str(LEASE_SECONDS),
        "COLUMNS": "200",
        **settings,
    }
    patch = pytest.MonkeyPatch()
    for name, value in variables.items():
        patch.setenv(name, value)
    chosen = Settings()
    for name, value in chosen.prefect_environment().items():
        patch.setenv(name, value)
        variables[name] = value
    world = World(folder, variables)
    users: subprocess.Popen[bytes] | None = None
    mount_small_disk(state)
    try:
        world.modelserve("up")
        users = _users(world)
        # Prefect read its settings when the first module imported it.
        with temporary_settings({PREFECT_API_URL: chosen.prefect_url}):
            version, _ = world.promote()
            assert world.ended(version).state == "promoted"
            yield world
    finally:
        if users is not None:
            users.send_signal(signal.SIGTERM)
            users.wait(30)
        world.modelserve("down")
        as_root("umount", "--lazy", str(state))
        state.rmdir()
        patch.undo()


def _users(world: World) -> subprocess.Popen[bytes]:
    begin = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    rows = pa.table(
        {
            "at": [begin + timedelta(seconds=n) for n in range(5000)],
            "outcome": [float(n % 7) for n in range(5000)],
            "x": [float(n % 100) for n in range(5000)],
        }
    )
    pq.write_table(rows, world.folder / "rows.parquet")
    command = [sys.executable, "-m", "flows.demo.traffic", "--rows", str(world.folder / "rows.parquet")]
    command += ["--model", MODEL, "--gateway", world.settings.gateway_url, "--rate", str(RATE), "--repeat"]
    command += ["--wait", "120", "--no-feedback", "--quiet", "--log", str(world.log)]
    return subprocess.Popen(command, cwd=ROOT, env=world.variables)
