"""Terraform: what can be checked without the provider registry, and that its facts agree with the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
ENVIRONMENTS = ("staging", "production")
CHARTS = INFRA / "addons" / "charts.tf"


def unquoted(value: Any) -> Any:
    """python-hcl2 keeps the quotes of strings and adds keys of its own."""
    if isinstance(value, str):
        return value.strip('"')
    if isinstance(value, list):
        return [unquoted(one) for one in value]
    if isinstance(value, dict):
        return {unquoted(key): unquoted(one) for key, one in value.items() if not key.startswith("__")}
    return value


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = unquoted(hcl2.loads(path.read_text()))
    return content


def modules() -> dict[str, dict[str, Any]]:
    found = {}
    for path in (INFRA / "cluster").glob("*.tf"):
        for module in read(path).get("module", []):
            found.update(module)
    return found


@pytest.fixture(scope="module")
def check() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, INFRA / "check"], capture_output=True, text=True)


def test_what_can_run_here_passes(check: subprocess.CompletedProcess[str]) -> None:
    assert check.returncode == 0, check.stdout + check.stderr
    assert "passed   syntax and variables" in check.stdout
    for name in ("terraform fmt", "terraform validate and test, with stand-ins"):
        if shutil.which("terraform"):
            assert f"passed   {name}" in check.stdout
        else:
            assert re.search(f"not run  {name}.*: terraform is not installed", check.stdout)


def test_what_cannot_run_is_named(tmp_path: Path) -> None:
    """With nothing installed no check passes by not being run, and the flag of CI makes it a failure."""
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-I", INFRA / "check", "--require-all"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    for name in ("terraform fmt", "checkov", "tflint", "terraform init, validate, test"):
        assert f"not run  {name}: " in done.stdout


def test_a_broken_tree_is_found(tmp_path: Path) -> None:
    shutil.copytree(INFRA, tmp_path / "infra", ignore=shutil.ignore_patterns(".terraform"))
    shutil.copytree(REPOSITORY / "monitoring", tmp_path / "monitoring")
    tfvars = tmp_path / "infra" / "cluster" / "env" / "staging.tfvars"
    tfvars.write_text(tfvars.read_text().replace("log_days", "logdays"))
    (tmp_path / "infra" / "addons" / "versions.tf").write_text("terraform {\n")
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, tmp_path / "infra" / "check"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "staging.tfvars: logdays is not a variable" in done.stdout
    assert "staging.tfvars: log_days is missing" in done.stdout
    assert "addons/versions.tf: " in done.stdout


@pytest.mark.parametrize(
    ("file", "written", "broken", "said"),
    [
        ("cluster/outputs.tf", "var.region", "var.regoin", "undeclared input variable"),
        ("cluster/variables.tf", "== 0\n", ">= 0\n", 'run "an_idle_gpu_is_refused"... fail'),
        (
            "cluster/identities.tf",
            '"s3:GetObject", "s3:PutObject"',
            '"s3:*"',
            '_and_write_jobs_only"... fail',
        ),
        (
            "addons/charts.tf",
            '"nginx-ingress", "alloy"',
            '"alloy"',
            "every chart belongs to exactly one wave",
        ),
    ],
)
@pytest.mark.skipif(not shutil.which("terraform"), reason="needs terraform; CI's job `infra` has it")
def test_without_the_registry_too_a_mistake_is_found(
    tmp_path: Path, file: str, written: str, broken: str, said: str
) -> None:
    for folder in ("infra", "monitoring"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns(".terraform*"))
    path = tmp_path / "infra" / file
    assert written in path.read_text()
    path.write_text(path.read_text().replace(written, broken))
    state = file.partition("/")[0]
    script = f"import runpy; print(chr(10).join(runpy.run_path('infra/check')['standins'](['{state}'])))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert said in done.stdout, done.stdout + done.stderr


def test_every_module_and_chart_is_pinned_to_one_version() -> None:
    assert modules()
    for name, module in modules().items():
        assert module["source"].startswith("terraform-aws-modules/"), name
        assert re.fullmatch(r"\d+\.\d+\.\d+", module["version"]), name
    versions = re.findall(r'version = "([^"]+)"', CHARTS.read_text())
    assert len(versions) == 18
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)


def test_one_module_has_one_version() -> None:
    seen: dict[str, set[str]] = {}
    for module in modules().values():
        seen.setdefault(module["source"].partition("//")[0], set()).add(module["version"])
    assert {source: found for source, found in seen.items() if len(found) > 1} == {}


def test_every_chart_has_values_and_every_values_file_a_chart() -> None:
    named = set(re.findall(r"^    ([a-z-]+) += \{ namespace", CHARTS.read_text(), re.MULTILINE))
    files = {path.name.removesuffix(".yaml.tftpl") for path in (INFRA / "addons" / "values").glob("*")}
    assert named == files


@pytest.mark.parametrize("path", sorted((INFRA / "addons" / "values").glob("*")), ids=lambda path: path.name)
def test_values_are_yaml_once_filled_in(path: Path) -> None:
    known = {
        *(
            "environment",
            "region",
            "account_id",
            "cluster_name",
            "vpc_id",
            "artifacts",
            "logs_bucket",
            "registry",
        ),
        *("database.host", "database.port", "replicas", "metrics_retention", "log_retention_hours"),
    }
    text = path.read_text()
    used = set(re.findall(r"(?<!\$)\$\{([^}]+)\}", text))
    assert used <= known
    assert isinstance(yaml.safe_load(re.sub(r"\$\{[^}]+\}", "1", text)), dict)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_pools_agree_with_the_manifests(environment: str) -> None:
    variables = read(INFRA / "cluster" / "env" / f"{environment}.tfvars")
    assert set(variables["node_groups"]) == {"system", "cpu", "gpu"}
    assert variables["node_groups"]["gpu"]["min"] == 0
    main = (INFRA / "cluster" / "main.tf").read_text()
    label = re.search(r'pool_label = "([^"]+)"', main)
    taint = re.search(r'gpu_taint +=  ?"([^"]+)"', main)
    assert label
    assert taint
    deployment = (REPOSITORY / "k8s" / "release" / "deployment.yaml").read_text()
    assert f"{label[1]}: ${{pool}}" in deployment
    manifests = (REPOSITORY / "flows" / "domain" / "cluster" / "manifests.py").read_text()
    assert taint[1] in manifests


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_accounts_roles_and_addresses_agree_with_the_overlays(environment: str) -> None:
    variables = read(INFRA / "cluster" / "env" / f"{environment}.tfvars")
    overlay = REPOSITORY / "k8s" / "overlays" / environment
    account = variables["account_id"]
    identities = (overlay / "identities.yaml").read_text()
    for workload in ("flows", "server"):
        assert f"arn:aws:iam::{account}:role/modelserve-{environment}-{workload}" in identities
    kustomization = (overlay / "kustomization.yaml").read_text()
    assert f"value: {variables['vpc_cidr']}" in kustomization
    assert f"{account}.dkr.ecr.{variables['region']}.amazonaws.com/modelserve/flows" in kustomization
    backend = read(INFRA / "cluster" / "env" / f"{environment}.s3.tfbackend")
    addons = read(INFRA / "addons" / "env" / f"{environment}.tfvars")
    assert backend["bucket"] == addons["state_bucket"] == f"modelserve-{environment}-terraform-{account}"


def test_service_accounts_agree_with_the_manifests() -> None:
    main = (INFRA / "cluster" / "main.tf").read_text()
    pairs = re.findall(r'namespace = "([^"]+)", service_account = "([^"]+)"', main)
    assert len(pairs) == 2
    made = set()
    for path in (REPOSITORY / "k8s" / "base").rglob("*.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            if one and one["kind"] == "ServiceAccount":
                folder = "modelserve-system" if path.parent.name == "flows" else "modelserve"
                made.add((one["metadata"].get("namespace", folder), one["metadata"]["name"]))
    assert set(pairs) <= made


def test_secrets_that_pods_ask_for_are_made() -> None:
    secrets = (INFRA / "cluster" / "secrets.tf").read_text()
    block = re.search(r"database_roles = \{(.*?)\n  \}", secrets, re.DOTALL)
    others = re.search(r"other_secrets = \{(.*?)\n  \}", secrets, re.DOTALL)
    assert block
    assert others
    made = set(re.findall(r"^    ([a-z-]+) +=", block[1] + others[1], re.MULTILINE))
    asked = set()
    for folder in (REPOSITORY / "k8s", INFRA / "addons" / "charts"):
        for path in folder.rglob("*.yaml"):
            asked |= set(re.findall(r"key: modelserve/([a-z-]+)", path.read_text()))
    assert asked
    assert asked <= made


def test_what_joins_the_mesh_is_installed_after_it() -> None:
    """What starts beside istiod may start without a sidecar."""
    (content,) = read(CHARTS)["locals"]
    waves, charts = content["waves"], content["charts"]
    injected = {name for name, chart in charts.items() if chart["namespace"] in injected_namespaces()}
    (mesh,) = [wave for wave, names in waves.items() if "istiod" in names]
    later = [wave for wave in waves if list(waves).index(wave) > list(waves).index(mesh)]
    joining = injected - {"keda"}  # its operator scales and sends no request; the test below says that it may
    assert "keda-add-ons-http" in joining
    assert {name for wave in later for name in waves[wave]} >= joining


def injected_namespaces() -> set[str]:
    text = (INFRA / "addons" / "namespaces.tf").read_text()
    return set(re.findall(r"^ {4}([a-z-]+) += merge\(local\.injected", text, re.M))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("example/modelserveai", True),
        ("example@123/modelserve.ai@456", True),  # repositories that were made or renamed since July 2026
        ("example@/modelserveai@456", False),
        ("example/modelserveai@456", False),
        ("example/modelserveai:*", False),
        ("*/*", False),
    ],
)
def test_github_may_name_a_repository_in_both_of_its_ways(name: str, allowed: bool) -> None:
    text = (INFRA / "cluster" / "variables.tf").read_text()
    (pattern,) = re.findall(r'regex\("([^"]+)", var\.github_repository\)', text)
    assert bool(re.fullmatch(pattern, name)) is allowed


def test_new_passwords_reach_the_database_with_the_same_number_that_makes_them() -> None:
    """What was raised for new ones changed no input of the release whose job sets them: within the hour pods
    got passwords that PostgreSQL did not know."""
    secrets = (INFRA / "cluster" / "secrets.tf").read_text()
    of_the_database = secrets.split('resource "aws_secretsmanager_secret_version" "database"')[1].split(
        "\n}"
    )[0]
    assert "secret_string_wo_version = var.database_secrets_version" in of_the_database
    facts = read(INFRA / "cluster" / "outputs.tf")["output"][0]["facts"]["value"]
    assert "var.database_secrets_version" in str(facts["database"]["passwords_version"])
    release = next(
        one["helm_release"]["platform"]
        for one in read(INFRA / "addons" / "releases.tf")["resource"]
        if "platform" in one["helm_release"]
    )
    assert "database = local.facts.database" in (INFRA / "addons" / "releases.tf").read_text()
    assert release["depends_on"]
    chart = INFRA / "addons" / "charts" / "platform" / "templates"
    (read_by_job,) = re.findall(r"secretRef: \{name: (.+)\}$", (chart / "databases.yaml").read_text(), re.M)
    fetched = re.findall(
        r"target: \{name: (.+), creationPolicy", (chart / "external-secrets.yaml").read_text()
    )
    assert read_by_job == "database-roles-v{{ .Values.database.passwords_version }}"
    assert read_by_job in fetched, "a secret of its own for each version, so that none is stale"


def test_every_file_that_alertmanager_reads_is_mounted() -> None:
    chart = (INFRA / "addons" / "charts" / "platform" / "templates" / "external-secrets.yaml").read_text()
    config = (REPOSITORY / "monitoring" / "alertmanager.yml").read_text()
    read_by_it = set(re.findall(r"/etc/alertmanager/secrets/alertmanager/([a-z-]+)", config))
    assert len(read_by_it) == 5
    assert read_by_it == set(re.findall(r"secretKey: ([a-z-]+), remoteRef: \{key: modelserve/alert", chart))


def test_pods_find_every_fact_in_the_config_map() -> None:
    """What k8s/ and the flows read from `modelserve-cluster`, and the settings' own names."""
    from flows.settings import PREFIX, Settings

    namespaces = (INFRA / "addons" / "namespaces.tf").read_text()
    block = re.search(r"cluster_facts = \{(.*?)\n  \}", namespaces, re.DOTALL)
    assert block
    given = set(re.findall(r"^    ([A-Z_]+) +=", block[1], re.MULTILINE))
    addresses = {"prometheus_url", "prefect_url", "gateway_url", "artifacts_uri"}
    assert {PREFIX + name.upper() for name in addresses} <= given
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {"MODELSERVE_RESULTS_URI", "MODELSERVE_IMAGE_REPOSITORY", "SERVING_JOBS_URI"}
    known |= {"AWS_REGION", "AWS_DEFAULT_REGION", "PREFECT_API_URL"}
    assert given <= known


@pytest.mark.parametrize("reporter", ["istio-ingressgateway", "keda-add-ons-http"])
def test_gateways_compare_latency_at_the_same_bounds(reporter: str) -> None:
    local = (INFRA / "local" / "envoy.yaml.j2").read_text()
    mesh = (INFRA / "addons" / "values" / f"{reporter}.yaml.tftpl").read_text()
    here = re.search(r"buckets: (\[[^\]]+\])", local)
    there = re.search(r'"istiocustom":(\[[^\]]+\])', mesh)
    assert here
    assert there
    assert json.loads(here[1]) == json.loads(there[1])


def test_the_http_add_on_is_admitted_where_it_is_installed() -> None:
    """Its chart leaves out what the level `restricted` asks for, and the API server refuses such pods."""
    assert 'keda-add-ons-http        = { namespace = "keda"' in CHARTS.read_text()
    namespaces = (INFRA / "addons" / "namespaces.tf").read_text()
    assert re.search(r"^    keda += merge\(local.injected, local.restricted\)$", namespaces, re.MULTILINE)
    values = (INFRA / "addons" / "values" / "keda-add-ons-http.yaml.tftpl").read_text()
    context = yaml.safe_load(re.sub(r"\$\{[^}]+\}", "1", values))["podSecurityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_prefect_server_is_the_version_that_the_flows_use() -> None:
    values = yaml.safe_load((INFRA / "addons" / "values" / "prefect-server.yaml.tftpl").read_text())
    tag = values["global"]["prefect"]["image"]["prefectTag"]
    pinned = re.search(r"^prefect==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert tag.startswith(f"{pinned[1]}-")


def test_uploads_of_an_ordinary_s3_client_are_accepted() -> None:
    """Ours name no encryption, since the bucket's default encrypts: a policy that asks for it refuses all."""
    artifacts = modules()["artifacts"]
    assert not {name for name in artifacts if name.startswith("attach_deny_incorrect")}
    text = (INFRA / "cluster" / "storage.tf").read_text()
    assert text.count('{ (wish.header) = "false" }') == 1, "refused is only what names another encryption"


def test_pods_that_are_kept_from_link_local_addresses_take_their_role_without_the_agent() -> None:
    """Pod Identity's agent listens at 169.254.170.23, and with an association EKS offers no other way."""
    policies = [path.read_text() for path in (REPOSITORY / "k8s" / "base").rglob("network-policies.yaml")]
    assert len(policies) == 2
    assert all("except: [169.254.0.0/16]" in text for text in policies)
    workload = modules()["workload"]
    assert workload["source"] == "terraform-aws-modules/iam/aws//modules/iam-role"
    assert workload["enable_oidc"] is True
    assert "associations" not in workload


def test_nodes_may_reach_the_gateway_of_the_mesh() -> None:
    """The EKS module opens ports from 1025 on between nodes; Istio's gateway listens below."""
    ingress = (REPOSITORY / "k8s" / "components" / "nginx" / "ingress.yaml").read_text()
    port = re.search(r"name: istio-ingressgateway\n\s+port:\n\s+number: (\d+)", ingress)
    assert port
    opened = modules()["eks"]["node_security_group_additional_rules"]["mesh_gateway"]
    assert opened["from_port"] == opened["to_port"] == int(port[1])
    assert opened["self"] is True
