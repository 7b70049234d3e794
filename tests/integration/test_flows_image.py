"""The control plane's image, where it is prepared: the programs of k8s/base/flows start in it as in a pod.

Read-only root, no capabilities, uid 65532, the manifests' own commands, a real PostgreSQL and a real Prefect
server; the Kubernetes API is the fake one of the platform's tests, over real HTTP.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from flows.adapters.images.engines import find_engine
from flows.adapters.registry import Registry
from flows.domain.release import Release
from tests.free_ports import free_ports
from tests.platform.fake_kubernetes import FakeKubernetes, serve
from tests.platform.kubernetes_world import kubeconfig, put_servers

ROOT = Path(__file__).parents[2]
FLOWS = ROOT / "k8s" / "base" / "flows"
TAG = "localhost/modelserve/flows:cpu"
WAIT_SECONDS = 120.0

Run = Callable[..., subprocess.Popen[str]]


def command(file: str, container: str) -> list[str]:
    """What a manifest starts in this image."""
    for thing in yaml.safe_load_all((FLOWS / file).read_text()):
        spec = thing.get("spec", {})
        pod = spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec", {})
        for one in [*pod.get("initContainers", []), *pod.get("containers", [])]:
            if one["name"] == container:
                assert one["image"] == "modelserve-flows"
                return list(one["command"])
    raise AssertionError(f"{file} has no container {container}")


@pytest.fixture(scope="module")
def engine() -> list[str]:
    """The command that runs containers of the image that `make image` has prepared."""
    state = Path(os.environ.get("MODELSERVE_STATE", ROOT / ".modelserve"))
    cache = Path(os.environ.get("MODELSERVE_IMAGES_FOLDER", state / "images"))
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed; the image cannot be run")
    if not (cache / "storage.conf").is_file():
        pytest.skip(f"no images under {cache}; `make image` prepares them")
    found = find_engine(cache)
    if not found.exists(TAG):
        pytest.skip(f"no image {TAG} under {cache}; `make image` builds it")
    return found.container(TAG, "runc")[0]


@pytest.fixture(scope="module")
def prefect_url() -> Iterator[str]:
    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture
def run(engine: list[str], database_url: str, tmp_path: Path) -> Iterator[Run]:
    """Start a program as a pod of the cluster would; it is ended with the test."""
    # The server's own folder is closed to other users; its socket is not.
    socket = Path(database_url.partition("host=")[2]) / ".s.PGSQL.5432"
    assert socket.is_socket()
    started: list[tuple[str, subprocess.Popen[str]]] = []
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "alerts-token").write_text("token")
    secrets.chmod(0o755)

    def start(words: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        options = ["--rm", "--network", "host", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"]
        options += ["--tmpfs", "/tmp:rw,mode=1777", "--tmpfs", "/var/lib/modelserve:rw,mode=0777"]
        options += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
        options += ["--volume", f"{FLOWS / 'prefect'}:/etc/modelserve/prefect:ro"]
        options += ["--volume", f"{secrets}:/var/lib/modelserve/secrets:ro"]
        options += ["--volume", f"{socket}:/run/postgresql/{socket.name}"]
        given = {"HOME": "/tmp", "MODELSERVE_MODE": "kubernetes", "MODELSERVE_STATE": "/var/lib/modelserve"}
        for name, value in {**given, **environment}.items():
            options += ["--env", f"{name}={value}"]
        name = f"modelserve-flows-{uuid.uuid4().hex[:12]}"
        whole = [*engine, "--name", name, *options, "--entrypoint", words[0], TAG, *words[1:]]
        process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append((name, process))
        return process

    yield start
    for name, process in started:
        if process.poll() is None:
            subprocess.run([*engine[:-1], "stop", "--time", "30", name], capture_output=True, check=False)
            process.communicate(timeout=60)


@pytest.fixture
def facts(database_url: str) -> dict[str, str]:
    """What the ConfigMap and the Secret of a cluster give to every program."""
    nowhere = "http://127.0.0.1:9"
    return {
        "AWS_REGION": "eu-central-1",
        "MODELSERVE_REGISTRY_URL": database_url.partition("host=")[0] + "host=/run/postgresql",
        "MODELSERVE_REDIS_URL": "redis://127.0.0.1:9/0",
        "MODELSERVE_PROMETHEUS_URL": nowhere,
        "MODELSERVE_PREFECT_URL": f"{nowhere}/api",
        "MODELSERVE_GATEWAY_URL": nowhere,
        "MODELSERVE_ARTIFACTS_URI": "s3://bucket/modelserve",
        "MODELSERVE_IMAGE_REPOSITORY": "registry.example/modelserve/releases",
        "MODELSERVE_RESULTS_URI": "s3://bucket/modelserve/results",
        "MODELSERVE_WORK_POOL": "kubernetes",
        "PREFECT_API_URL": f"{nowhere}/api",
    }


def finished(process: subprocess.Popen[str]) -> str:
    """What the program wrote; it must end well."""
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, output
    return output


def until(url: str, process: subprocess.Popen[str]) -> httpx.Response:
    """The first good answer of a program that starts."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the container ended: {process.communicate()[0]}")
        try:
            answer = httpx.get(url, timeout=2)
            if answer.status_code == 200:
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{url} gives no good answer in {WAIT_SECONDS:g} s")


def test_the_entry_point_is_modelserve_and_the_user_is_nobody(run: Run) -> None:
    assert "Canary releases of machine-learning models" in finished(run(["modelserve", "--help"]))
    who = "import os, sys; print(os.getuid(), os.getgid(), sys.version_info[:2])"
    assert finished(run(["python", "-c", who])) == "65532 65532 (3, 11)\n"


def test_the_sweep_stops_servers_that_are_left_over(
    run: Run, facts: dict[str, str], registry: Registry, tmp_path: Path
) -> None:
    """They run in the (fake) cluster, but the registry has no use for them."""
    registry.register(Release("forgotten", 1, "s3://bucket/forgotten", "0" * 64), "name: forgotten")
    cluster = FakeKubernetes()
    put_servers(cluster, "forgotten-v1")
    with serve(cluster):
        access = kubeconfig(tmp_path / "secrets" / "kubeconfig", cluster.url, {"token": "good"})
        facts["KUBECONFIG"] = f"/var/lib/modelserve/secrets/{access.name}"
        output = finished(run(command("sweep.yaml", "sweep"), **facts))
    assert "forgotten-v1" in output
    assert cluster.thing("deployments", "forgotten-v1") is None


def test_the_sweep_of_a_registry_that_is_away_fails_in_one_sentence(run: Run, facts: dict[str, str]) -> None:
    facts["MODELSERVE_REGISTRY_URL"] = "postgresql://modelserve@127.0.0.1:9/modelserve"
    process = run(command("sweep.yaml", "sweep"), **facts)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 1
    assert output.startswith("error: ")
    assert "Traceback" not in output


@pytest.mark.usefixtures("registry")
def test_the_drift_check_of_no_models_says_so(run: Run, facts: dict[str, str]) -> None:
    assert "no model is due" in finished(run(command("drift.yaml", "drift"), **facts))


@pytest.mark.usefixtures("registry")
def test_the_alert_receiver_serves_its_probes(run: Run, facts: dict[str, str]) -> None:
    (port,) = free_ports(1)
    facts |= {"MODELSERVE_ALERTS_HOST": "127.0.0.1", "MODELSERVE_PORTS__ALERTS": str(port)}
    process = run(command("alert-receiver.yaml", "receiver"), **facts)
    until(f"http://127.0.0.1:{port}/healthz", process)
    assert httpx.post(f"http://127.0.0.1:{port}/alerts", json={"alerts": []}).status_code == 401
    assert "modelserve_" in httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_the_worker_prepares_its_pool_and_listens_to_it(
    run: Run, facts: dict[str, str], prefect_url: str
) -> None:
    """Empty registry, empty Prefect server: the init container makes both ready, then the worker starts."""
    facts |= {"MODELSERVE_PREFECT_URL": prefect_url, "PREFECT_API_URL": prefect_url}
    facts["MODELSERVE_FLOWS_IMAGE"] = "registry.example/modelserve/flows@sha256:" + "e" * 64
    finished(run(command("worker.yaml", "prepare"), **facts))
    with httpx.Client(base_url=facts["PREFECT_API_URL"], timeout=10) as prefect:
        pool = prefect.get("/work_pools/kubernetes").json()
        assert pool["type"] == "kubernetes"
        image = pool["base_job_template"]["variables"]["properties"]["image"]["default"]
        assert image == facts["MODELSERVE_FLOWS_IMAGE"]
        for name in ("promote/promote", "rollback/rollback", "sweep/sweep"):
            found = prefect.get(f"/deployments/name/{name}")
            assert found.status_code == 200, name
            assert found.json()["work_pool_name"] == "kubernetes"
            assert found.json()["entrypoint"].startswith("flows.")
    (port,) = free_ports(1)
    words = command("worker.yaml", "worker")
    process = run(words, **facts, PREFECT_WORKER_WEBSERVER_PORT=str(port))
    until(f"http://127.0.0.1:{port}/health", process)


def test_a_job_of_the_work_pool_runs_prefect(run: Run) -> None:
    """Its arguments come from the worker, and must not end up with the image's own entry point."""
    template = json.loads((FLOWS / "prefect" / "base-job-template.json").read_text())
    (container,) = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    words = [*container["command"], "prefect", "flow-run", "execute", "--help"]
    assert "Execute a flow run" in finished(run(words))
