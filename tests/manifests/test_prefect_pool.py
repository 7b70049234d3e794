"""The work pool: its job template gives valid, restricted jobs, and a real Prefect server takes it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from prefect_aws import S3Bucket
from prefect_kubernetes.settings import KubernetesSettings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.bootstrap import bootstrap
from flows.settings import Settings
from tests.manifests.test_manifests import restricted
from tests.manifests.validate import ROOT, built, problems_of

FOLDER = ROOT / "k8s" / "base" / "flows" / "prefect"
IMAGE = "registry.example/modelserve/flows@sha256:" + "e" * 64


@pytest.fixture(scope="module")
def prepare_pool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_pool", FOLDER / "prepare_pool.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(template: dict[str, Any], **variables: Any) -> dict[str, Any]:
    """The Job that the worker would create for a flow run."""
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(
            template, {"command": "prefect flow-run execute", **variables}
        )
    )
    configuration._populate_env_in_manifest()
    configuration._populate_command_if_not_present()
    return dict(configuration.job_manifest)


@pytest.fixture(scope="module")
def server() -> Any:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.mark.usefixtures("server")
class TestTheWorkPool:
    def test_a_job_is_valid_restricted_and_runs_the_workers_image(self, prepare_pool: ModuleType) -> None:
        manifest = job(prepare_pool.job_template(IMAGE))
        manifest["metadata"].setdefault("name", "checked")
        manifest["metadata"].pop("generateName", None)
        assert problems_of(manifest) == []
        pod = manifest["spec"]["template"]["spec"]
        assert restricted(pod) == []
        assert pod["containers"][0]["image"] == IMAGE
        assert pod["serviceAccountName"] == "modelserve-flows"
        assert manifest["metadata"]["namespace"] == "modelserve-system"
        names = {variable["name"] for variable in pod["containers"][0]["env"]}
        assert "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK" in names

    def test_a_job_runs_prefect_and_not_the_images_own_program(self, prepare_pool: ModuleType) -> None:
        """The worker's words are arguments; with the image's entry point they would go to `modelserve`."""
        manifest = job(prepare_pool.job_template(IMAGE), command=None)
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        words = [*container["command"], *container["args"]]
        assert words == ["/usr/bin/env", "prefect", "flow-run", "execute"]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            [*words, "--help"], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
        assert done.returncode == 0, done.stderr
        assert "flow run" in done.stdout.lower()

    def test_a_job_outlives_the_longest_flow(self, prepare_pool: ModuleType) -> None:
        """Kubernetes would end a healthy promotion that waits for its evidence, or a long experiment."""
        from inspect import signature

        from flows.experiment import experiment
        from flows.promote import promote

        deadline = job(prepare_pool.job_template(IMAGE))["spec"]["activeDeadlineSeconds"]
        hours = signature(experiment.fn).parameters["hours"].default
        assert deadline > max(promote.timeout_seconds or 0, hours * 3600)

    def test_a_deployment_may_ask_for_more(self, prepare_pool: ModuleType) -> None:
        manifest = job(prepare_pool.job_template(IMAGE), memory_limit="16Gi", env={"EXTRA": "1"})
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["memory"] == "16Gi"
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert variables["EXTRA"] == "1"
        assert variables["MODELSERVE_MODE"] == "kubernetes"

    def test_the_pool_and_the_blocks_are_made_twice_without_harm(self, prepare_pool: ModuleType) -> None:
        for image in ("registry.example/old@sha256:" + "1" * 64, IMAGE):
            prepare_pool.prepare_pool(image)
            prepare_pool.prepare_blocks("s3://artifacts/prefect/results", "eu-central-1")
        with get_client(sync_client=True) as client:
            pool = client.read_work_pool("kubernetes")
        assert pool.type == "kubernetes"
        assert pool.base_job_template["variables"]["properties"]["image"]["default"] == IMAGE
        bucket = S3Bucket.load("modelserve-results", _sync=True)
        assert (bucket.bucket_name, bucket.bucket_folder) == ("artifacts", "prefect/results")
        assert bucket.credentials.aws_access_key_id is None, "the role's own credentials are used"

    @pytest.mark.parametrize(("mode", "active"), [("kubernetes", False), ("local", True)])
    def test_the_sweep_runs_from_one_place(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str, active: bool
    ) -> None:
        """On a cluster the CronJob does it; Prefect's schedule made a second one a minute, in its own pod."""
        monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        settings = Settings.model_validate({"work_pool": f"of-{mode}", "state": tmp_path})
        bootstrap(settings.model_copy(update={"mode": mode}))
        with get_client(sync_client=True) as client:
            sweeping = client.read_deployment_by_name("sweep/sweep")
            archiving = client.read_deployment_by_name("archive/archive")
        assert [one.active for one in sweeping.schedules] == [active]
        assert [one.active for one in archiving.schedules] == [True]
        crons = {thing["metadata"]["name"] for thing in built("production") if thing["kind"] == "CronJob"}
        assert "sweep" in crons

    def test_a_results_uri_that_is_none(self, prepare_pool: ModuleType) -> None:
        with pytest.raises(SystemExit, match="must be s3://bucket/folder"):
            prepare_pool.prepare_blocks("/tmp/results", None)


def test_jobs_refer_to_the_password_of_prefects_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker hands its own on; in the manifest whoever may list jobs could read it."""
    things = built("production")
    (worker,) = [t for t in things if (t["kind"], t["metadata"]["name"]) == ("Deployment", "prefect-worker")]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    settings = KubernetesSettings()
    (secret,) = [
        t
        for t in things
        if t["kind"] == "ExternalSecret"
        and t["spec"]["target"]["name"] == settings.worker.api_auth_string_secret_name
    ]
    assert settings.worker.api_auth_string_secret_key == "PREFECT_API_AUTH_STRING"
    assert "PREFECT_API_AUTH_STRING" in {entry["secretKey"] for entry in secret["spec"]["data"]}
    assert settings.observer.namespaces == {"modelserve-system"}


def test_the_template_is_prefects_own_plus_ours() -> None:
    """After an upgrade of prefect-kubernetes the template is made anew; this says when."""
    import json

    from prefect_kubernetes import KubernetesWorker

    ours = json.loads((FOLDER / "base-job-template.json").read_text())
    theirs = KubernetesWorker.get_default_base_job_template()
    ours_alone = {"priority_class"}
    assert set(ours["variables"]["properties"]) == set(theirs["variables"]["properties"]) | ours_alone
    assert set(ours["job_configuration"]) == set(theirs["job_configuration"])


def test_the_configmap_carries_both_files() -> None:
    kustomization = (FOLDER.parent / "kustomization.yaml").read_text()
    for path in FOLDER.iterdir():
        if path.is_file():
            assert f"prefect/{path.name}" in kustomization
    assert Path(FOLDER / "prepare_pool.py").exists()
