"""Makes a kind cluster one that can promote: `make_cluster.py FOLDER`.

The cluster is kubectl's current one, made before from .github/tools/kind.yaml, with the registry
`kind-registry:5000` beside its nodes. It gets the charts of infra/addons that promotions need, with the
versions and values that stand there, and k8s/overlays/kind with an image of this checkout. Run again it
changes only what is different. Prints MODELSERVE_TEST_CLUSTER=FILE for a shell or $GITHUB_ENV: the settings
with which tests/platform/test_promotion_on_cluster.py reaches the cluster.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import hcl2
import yaml
from botocore.exceptions import BotoCoreError, ClientError

REPOSITORY = Path(__file__).resolve().parents[2]
ADDONS = REPOSITORY / "infra" / "addons"
OVERLAY = REPOSITORY / "k8s" / "overlays" / "kind"
CHARTS = (
    "istio-base",
    "istiod",
    "istio-cni",
    "istio-ingressgateway",
    "kube-prometheus-stack",
    "prefect-server",
)
FACTS = {"replicas": "1", "metrics_retention": "1d", "database.host": "unused", "database.port": "5432"}
"""What infra/addons fills into the values; the database is of parts that are switched off here."""
REGISTRY = "kind-registry:5000"
FLOWS = f"{REGISTRY}/modelserve/flows"
PUBLISH = [sys.executable, str(REPOSITORY / ".github" / "tools" / "publish_flows.py"), FLOWS, "kind"]
NOT_BUILT = f"{FLOWS}@sha256:{'0' * 64}"
"""The image of the flows in the overlay, until this program puts the built one there."""
BUCKET = "modelserve"
BUCKET_SECONDS = 120


def pinned(name: str) -> dict[str, str]:
    """Namespace, version, repository and chart of an add-on, from infra/addons/charts.tf."""
    with (ADDONS / "charts.tf").open(encoding="utf-8") as file:
        entry: Mapping[str, Any] = hcl2.load(file)["locals"][0]["charts"][name]
    return {"chart": name} | {key: str(value).strip('"') for key, value in entry.items()}


def values(name: str) -> dict[str, Any]:
    """An add-on's values as Terraform would render them; KeyError for a fact that is not among FACTS."""
    text = (ADDONS / "values" / f"{name}.yaml.tftpl").read_text(encoding="utf-8")
    filled = re.sub(r"\$\{([\w.]+)\}", lambda found: FACTS[found[1]], text)
    return dict(yaml.safe_load(filled) or {})


def rules() -> dict[str, Any]:
    """The values that hand monitoring/rules to Prometheus, as infra/addons/monitoring.tf does."""
    files = sorted((REPOSITORY / "monitoring" / "rules").glob("*.yml"))
    loaded = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in files
        if path.stem != "traffic-envoy"
    }
    return {"additionalPrometheusRulesMap": loaded}


def helm(name: str, folder: Path) -> list[str]:
    """The command that installs one add-on; writes its values into `folder`."""
    chart = pinned(name)
    command = ["helm", "upgrade", "--install", name, chart["chart"], "--repo", chart["repository"]]
    command += ["--version", chart["version"], "--namespace", chart["namespace"], "--create-namespace"]
    command += ["--wait", "--timeout", "10m"]
    layers = {"values": values(name)} | ({"rules": rules()} if name == "kube-prometheus-stack" else {})
    for layer, content in layers.items():
        file = folder / f"{name}.{layer}.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        command += ["--values", str(file)]
    ours = OVERLAY / "values" / f"{name}.yaml"
    return [*command, "--values", str(ours)] if ours.is_file() else command


def telemetry() -> list[str]:
    """The command that prints the mesh's telemetry, tuned to the labels that the rules use."""
    unused = [
        f"--set={name}=unused"
        for name in ("region", "database.host", "database.master_secret", "database.passwords_version")
    ]
    chart = str(ADDONS / "charts" / "platform")
    return ["helm", "template", "modelserve-platform", chart, *unused, "--show-only=templates/telemetry.yaml"]


def overlay(manifests: str, image: str) -> str:
    """The overlay's manifests with the image that was built."""
    if NOT_BUILT not in manifests:
        raise SystemExit(f"k8s/overlays/kind does not name {NOT_BUILT}")
    return manifests.replace(NOT_BUILT, image)


def runner() -> dict[str, str]:
    """The settings with which this machine reaches the cluster."""
    lines = (OVERLAY / "runner.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def speak_plainly(registry: str) -> Path:
    """Tell skopeo, for this user, that the registry knows no TLS. No variable names it such a file."""
    file = Path.home() / ".config/containers/registries.conf.d/modelserve-kind.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n', encoding="utf-8")
    return file


def run(command: list[str], *, given: str | None = None) -> None:
    """Run a program whose words are progress."""
    say(command)
    subprocess.run(command, input=given, text=True, check=True, stdout=sys.stderr)


def output(command: list[str]) -> str:
    """What a program prints."""
    say(command)
    return subprocess.run(command, text=True, check=True, stdout=subprocess.PIPE).stdout


def say(command: list[str]) -> None:
    print(f"==> {' '.join(command[:6])}", file=sys.stderr, flush=True)


def make_bucket(settings: Mapping[str, str]) -> None:
    """Wait for S3, which takes a bucket a little after its port is open."""
    s3 = boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        region_name=settings["AWS_DEFAULT_REGION"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
    )
    deadline = time.monotonic() + BUCKET_SECONDS
    while True:
        try:
            if BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
                s3.create_bucket(Bucket=BUCKET)
            s3.put_object(Bucket=BUCKET, Key="probe", Body=b"1")
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"S3 takes no object within {BUCKET_SECONDS} s: {error}") from error
            time.sleep(1)


def rollouts(namespace: str, *deployments: str) -> Iterator[list[str]]:
    for name in deployments:
        yield ["kubectl", "rollout", "status", f"deployment/{name}", "-n", namespace, "--timeout=10m"]


def main(folder: Path) -> Path:
    """Returns the file with the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = runner()
    speak_plainly(REGISTRY)
    image = output(PUBLISH).strip().removeprefix("image=")

    run(["kubectl", "apply", "-k", str(OVERLAY / "managed")])
    for command in rollouts("managed", "postgres", "redis", "s3"):
        run(command)
    make_bucket(settings)

    for name in CHARTS:
        run(helm(name, folder))
    run(["kubectl", "apply", "-f", "-"], given=output(telemetry()))

    manifests = output(["kubectl", "kustomize", str(OVERLAY)])
    run(["kubectl", "apply", "-f", "-"], given=overlay(manifests, image))
    for command in rollouts("modelserve-system", "prefect-worker", "alert-receiver"):
        run(command)

    file = folder / "runner.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
    return file


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_cluster.py FOLDER")
    print(f"MODELSERVE_TEST_CLUSTER={main(Path(sys.argv[1]).resolve())}")
