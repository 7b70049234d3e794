"""A real stack, a small model under constant traffic, and the means to break things."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.adapters import stack
from flows.domain.errors import DependencyDown
from flows.domain.promotion import Promotion
from flows.settings import Settings
from flows.wiring import ControlPlane, control_plane
from tests.free_ports import stack_variables

ROOT = Path(__file__).parents[2]
MODEL = "double"
RATE = 40
LEASE_SECONDS = 6

SPEC = """
name: double
signature:
  inputs: [{name: x, type: number}]
  outputs: [{name: y, type: number}]
serving:
  runtime: {kind: handler, file: model.json}
scan: {mode: record}
resources: {drain_seconds: 2}
promotion:
  steps: [10, 50, 100]
  dwell_seconds: 3
  window_seconds: 1
  min_requests: 5
  max_absolute: 0.3
  deadline_seconds: 150
  post_watch_seconds: 3
"""
HANDLER = """
import json


def load(folder, device):
    return json.loads((folder / "model.json").read_text())["factor"]


def predict(model, rows):
    return [{"y": model * row["x"]} for row in rows]
"""


class World:
    """The stack, its users, and what is seen of both."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.variables = {**os.environ, **variables}
        self.settings = Settings()
        self.plane: ControlPlane = control_plane(self.settings)
        self.log = folder / "requests.jsonl"
        self.version = 0

    def modelserve(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from flows.cli import main; main()", *words],
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

    def register(self) -> int:
        """A new release of the model; every one computes the same, so that none is rejected for itself."""
        self.version += 1
        folder = self.folder / f"v{self.version}"
        folder.mkdir()
        (folder / "model.yaml").write_text(SPEC)
        (folder / "handler.py").write_text(HANDLER)
        (folder / "model.json").write_text(json.dumps({"factor": 2, "version": self.version}))
        sample = {"instances": [{"x": 3}], "predictions": [6.0]}
        (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
        self.modelserve("register", str(folder), str(folder / "model.json"), "--version", str(self.version))
        return self.version

    def promote(self) -> tuple[int, str]:
        """Register and begin; (version, flow run id)."""
        version = self.register()
        return version, self.begin(version)

    def begin(self, version: int) -> str:
        from flows.following import start_promotion

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


@pytest.fixture(scope="session")
def stack_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("chaos")
    variables = {
        **stack_variables(folder / "state", 28000),
        "MODELSERVE_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    patch = pytest.MonkeyPatch()
    for name, value in variables.items():
        patch.setenv(name, value)
    settings = Settings()
    for name, value in settings.prefect_environment().items():
        patch.setenv(name, value)
        variables[name] = value
    world = World(folder, variables)
    users: subprocess.Popen[bytes] | None = None
    try:
        world.modelserve("up")
        users = _users(world)
        # Prefect read its settings when the first test module imported it.
        with temporary_settings({PREFECT_API_URL: settings.prefect_url}):
            version, _ = world.promote()
            assert world.ended(version).state == "promoted"
            yield world
    finally:
        if users is not None:
            users.send_signal(signal.SIGTERM)
            users.wait(30)
        world.modelserve("down")
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
    command = [sys.executable, "-m", "flows.traffic", "--rows", str(world.folder / "rows.parquet")]
    command += ["--model", MODEL, "--gateway", world.settings.gateway_url, "--rate", str(RATE), "--repeat"]
    command += ["--wait", "120", "--no-feedback", "--quiet", "--log", str(world.log)]
    return subprocess.Popen(command, cwd=ROOT, env=world.variables)


@pytest.fixture
def world(stack_world: World) -> World:
    """The world with a settled stable release, before and after."""
    stack_world.modelserve("up")
    standing = stack_world.plane.registry.standing(MODEL)
    assert standing.promotion is None, "the test before left a promotion open"
    return stack_world
