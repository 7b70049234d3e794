"""Drift under a real Prefect server (runs, artifacts, training), and without one, as the CronJob runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Failed
from prefect.testing.utilities import prefect_test_harness
from prefect.utilities.importtools import import_object

from flows import drift, training
from flows.archive import ARCHIVE
from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.promotion import State
from flows.domain.release import Phase, Release
from flows.domain.spec import parse_spec
from flows.steps.drift_check import check_model, read_reference
from tests.flows.drift_world import SPEC, World, rows

ROOT = Path(__file__).parents[2]
SHIFT = 3.0


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    request.getfixturevalue("server")
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def flows_see(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The flows work with this test's registry, Redis and artifact store."""
    monkeypatch.setattr(drift, "control_plane", lambda: world.plane)
    return world


def artifact(client: SyncPrefectClient, key: str) -> str:
    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    found = client.read_artifacts(artifact_filter=chosen, sort=ArtifactSort.CREATED_DESC, limit=1)
    assert found, f"no artifact {key}"
    return str(found[0].data)


def deployment(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    return next(dict(one) for one in content["deployments"] if one["name"] == name)


def deployed(name: str) -> Flow[Any, Any]:
    """The flow that prefect.yaml names."""
    found = import_object(deployment(name)["entrypoint"])
    assert isinstance(found, Flow)
    assert found.name == name
    return found


def test_a_run_shows_its_verdict_and_its_report(flows_see: World, client: SyncPrefectClient) -> None:
    flows_see.serve()
    flows_see.send(rows(1200, 2, shift=SHIFT))

    said = deployed("drift")(model="paint")

    assert said.startswith("drifted: 2 of 3 columns drifted: width")
    page = artifact(client, "drift-paint")
    assert "# paint: drifted" in page
    assert "| `width` | **yes** |" in page
    assert any(bar in page for bar in "▃▄▅▆▇█"), "small plots of the distance over the windows"
    link = artifact(client, "drift-report-paint")
    report = link[link.index("file://") + len("file://") :].split(")")[0]
    assert "<svg" in Path(report).read_text()


@pytest.mark.usefixtures("server")
def test_a_check_that_cannot_be_finished_fails_its_run(
    flows_see: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows_see.serve()
    monkeypatch.setattr("flows.steps.drift_check.read_reference", lambda *_: {}["no reference"])

    state = deployed("drift")(model="paint", return_state=True)

    assert state.is_failed()
    assert "paint: 'no reference'" in str(state.message)
    assert flows_see.plane.registry.drift_checks("paint")[0][1] == "failed"


def test_the_frequent_run_checks_what_is_due_and_only_that(
    flows_see: World, client: SyncPrefectClient
) -> None:
    assert deployment("drift-due")["schedules"][0]["interval"] <= 900
    flows_see.serve()
    flows_see.serve("glass")
    flows_see.send(rows(600, 2, shift=SHIFT))
    flows_see.send(rows(600, 3), model="glass")

    first, second = deployed("drift-due")(), deployed("drift-due")()

    assert [line.split(":")[:2] for line in first] == [["glass", " stable"], ["paint", " drifted"]]
    assert second == []
    shown = artifact(client, "drift")
    assert "glass" in shown
    assert "drifted" in artifact(client, "drift-paint")


@pytest.mark.parametrize("models", [30, pytest.param(200, marks=pytest.mark.thorough)])
def test_many_models_are_checked_in_one_flow_run(
    flows_see: World, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, models: int
) -> None:
    world = flows_see
    names = [f"paint{number:03}" for number in range(models)]
    for name in names:
        world.serve(name, training=400)
    world.send(rows(300, 8, shift=3), model=names[7])
    for name in names[8:]:
        world.send(rows(120, 9), model=name, hours=2)
    running = most = 0
    lock = threading.Lock()
    check_model = drift.check_model

    def counted(*arguments: Any, **options: Any) -> DriftResult:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return check_model(*arguments, **options)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(drift, "check_model", counted)

    said = [line.split(": ")[:2] for line in deployed("drift-due")(limit=4)]

    assert most == 4
    assert [name for name, _ in said] == names
    outcomes = [outcome for _, outcome in said]
    assert outcomes[:7] == ["no_samples"] * 7
    assert outcomes[7] == "drifted"
    assert outcomes[8:] == ["stable"] * (models - 8)
    assert all(world.plane.registry.drift_checks(name) for name in names)
    assert "# paint007: drifted" in artifact(client, "drift-paint007")
    assert all(name in artifact(client, "drift") for name in names)


def test_drift_starts_the_training_flow_once(world: World, client: SyncPrefectClient) -> None:
    flow = client.create_flow_from_name("train")
    started = client.create_deployment(flow_id=flow, name="paint", enforce_parameter_schema=False)
    world.serve(consequence="retrain")
    world.send(rows(1200, 2, shift=SHIFT))

    said = [check_model(world.plane, "paint", draw="never").consequence for _ in range(2)]

    assert all(str(one).startswith("training 'train/paint' was started") for one in said)
    (run,) = [one for one in client.read_flow_runs() if one.deployment_id == started]
    assert run.parameters["model"] == "paint"
    client.set_flow_run_state(run.id, Failed(), force=True)
    for _ in range(2):
        check_model(world.plane, "paint", draw="never")
    runs = [one for one in client.read_flow_runs() if one.deployment_id == started]
    assert len(runs) == 2, "what failed is started again, and that once, too"
    assert "2 of 3 columns drifted" in run.parameters["reason"]
    assert world.plane.registry.standing("paint").frozen is None


TRAINER = """
import pathlib, shutil, sys
import numpy as np, pandas as pd
output = pathlib.Path(sys.argv[1])
for path in pathlib.Path(__file__).parent.glob("model*"):
    shutil.copy(path, output)
(output / "model.pt").write_bytes(b"weights of today")
(output / "handler.py").write_text("def load(folder, device): ...\\ndef predict(model, rows): ...\\n")
sample = '{"instances": [{"width": 1.0, "colour": "red"}], "predictions": [3.0]}'
(output / "samples.jsonl").write_text(sample)
width = np.random.default_rng(1).normal(13, 2, 2000)
frame = pd.DataFrame({"width": width, "colour": "red", "price": 3 * width})
frame.to_parquet(output / "training.parquet")
print("learned", file=sys.stderr)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def trained(flows_see: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Put a model with a training command of its own into service; its answer is the command's exit code."""
    monkeypatch.setattr(training, "control_plane", lambda: flows_see.plane)

    def put(exit_code: int) -> None:
        folder = tmp_path / "project"
        folder.mkdir()
        command = f"[python, {folder}/trainer.py, '{{{{output}}}}', '{exit_code}']"
        text = SPEC.replace("train/paint}}", f"train/train, trainer: {command}}}}}")
        text += "serving: {{runtime: {{kind: handler, file: model.pt}}}}\n"
        (folder / "model.yaml").write_text(text.format(consequence="retrain"))
        (folder / "trainer.py").write_text(TRAINER)
        flows_see.serve(spec=(folder / "model.yaml").read_text())

    return put


def test_the_training_flow_registers_a_candidate_and_starts_its_promotion(
    flows_see: World, trained: Callable[[int], None], client: SyncPrefectClient
) -> None:
    """From drift to a candidate that still has to pass every gate."""
    deployments = {}
    for name in ("train", "promote"):
        made = client.create_flow_from_name(name)
        deployments[name] = client.create_deployment(flow_id=made, name=name, enforce_parameter_schema=False)
    trained(0)
    flows_see.send(rows(1200, 2, shift=SHIFT))
    assert "was started" in str(check_model(flows_see.plane, "paint", draw="never").consequence)
    (asked,) = [run for run in client.read_flow_runs() if run.deployment_id == deployments["train"]]

    said = deployed("train")(**asked.parameters)

    assert said.startswith("paint v2 was trained (drift check of paint-v1: drifted: 2 of 3 columns drifted")
    release = flows_see.plane.registry.release("paint", 2)
    assert read_reference(flows_see.plane, release).columns[0].mean == pytest.approx(13, abs=0.2)
    (promotion,) = [run for run in client.read_flow_runs() if run.deployment_id == deployments["promote"]]
    assert promotion.parameters == {"model": "paint", "version": 2}
    stable = flows_see.plane.registry.standing("paint").stable
    assert stable is not None
    assert stable.version == 1, "trained is not promoted"


@pytest.mark.usefixtures("server")
def test_a_training_that_fails_registers_nothing(flows_see: World, trained: Callable[[int], None]) -> None:
    trained(3)

    state = deployed("train")(model="paint", return_state=True)

    assert state.is_failed()
    assert "the training ended with 3: learned" in str(state.message)
    assert [release.version for release in flows_see.plane.registry.releases("paint")] == [1]


def test_drift_rolls_back_the_release_that_was_checked(world: World) -> None:
    world.serve()
    world.serve(version=2, consequence="rollback")
    world.send(rows(1200, 2, shift=SHIFT), version=2)

    result = check_model(world.plane, "paint", draw="never")

    assert result.consequence is not None
    assert result.consequence.startswith("paint v2 was taken out (drift check of paint-v2: drifted")
    phases = {release.version: release.phase for release in world.plane.registry.releases("paint")}
    assert phases[1] is Phase.STABLE
    assert world.plane.platform.routes("paint").weights == {"paint-v1": 100}


def test_a_second_rollback_waits_for_a_person(world: World) -> None:
    for version in (1, 2, 3):
        world.serve(version=version, consequence="rollback")
        world.send(rows(1200, 2, shift=SHIFT), version=version)

    first, second = (check_model(world.plane, "paint", draw="never") for _ in range(2))

    assert "paint v3 was taken out" in str(first.consequence)
    assert second.release == "paint-v2"
    assert second.consequence == "not rolled back: that happened a moment ago; a person must look"


def test_drift_of_the_stable_release_does_not_take_its_canary_out(world: World) -> None:
    world.serve(consequence="rollback")
    world.send(rows(1200, 2, shift=SHIFT))
    registry = world.plane.registry
    stable = registry.release("paint", 1)
    registry.register(Release("paint", 2, stable.bundle, stable.sha256), registry.spec("paint", 1))
    promotion = registry.begin("paint", 2, "run-2", 3600, 60)
    spec = parse_spec(registry.spec("paint", 1), "model.yaml")
    world.plane.platform.start(registry.release("paint", 2), spec)

    result = check_model(world.plane, "paint", draw="never")

    assert result.consequence == "not rolled back: paint-v1 is not the newest release in service"
    assert registry.promotion(promotion.id).state is not State.ABORTED
    assert registry.cool_down("paint", 60), "what was not done does not hold back the next alert"


def test_the_cron_job_needs_no_prefect_server(world: World, database_url: str) -> None:
    """The command of k8s/base/flows/drift.yaml in a process of its own, nothing at Prefect's address."""
    manifest = yaml.safe_load((ROOT / "k8s" / "base" / "flows" / "drift.yaml").read_text())
    (container,) = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    world.serve()
    world.serve("glass", reference=False)
    world.send(rows(1200, 2, shift=SHIFT))
    settings = world.plane.settings
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "160",
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
        "MODELSERVE_STATE": str(settings.state),
        "MODELSERVE_REGISTRY_URL": database_url,
        "MODELSERVE_REDIS_URL": settings.redis_url,
        "MODELSERVE_ARTIFACTS_URI": world.plane.artifacts.uri,
    }

    done = subprocess.run(
        container["command"], env=environment, capture_output=True, text=True, check=False, timeout=300
    )

    assert done.returncode == 0, done.stderr
    assert "paint-v1: drifted" in done.stdout
    assert "glass-v1: no reference" in done.stdout
    outcomes = {name: world.plane.registry.drift_checks(name)[0][1] for name in ("paint", "glass")}
    assert outcomes == {"paint": Outcome.DRIFTED, "glass": Outcome.NO_REFERENCE}
    beats = world.plane.registry.beats()
    assert drift.DRIFT in beats
    assert ARCHIVE not in beats, "archiving is a job of its own; the check has only brought in its own rows"
