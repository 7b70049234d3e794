"""Facts that two places state must be the same facts."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import yaml

from flows.adapters.local import commands
from flows.adapters.local.records import Record
from flows.domain.cluster.manifests import server_environment
from flows.domain.release import Release
from flows.domain.spec import ModelSpec, parse_spec
from flows.settings import Ports, Settings
from serving.settings import Settings as ServerSettings

ROOT = Path(__file__).parents[2]
RELEASE = Release("flights", 2, "file:///bundles/flights/2", "a" * 64, "image@sha256:" + "b" * 64)


def flights() -> ModelSpec:
    path = ROOT / "serving" / "models" / "flights" / "model.yaml"
    return parse_spec(path.read_text(), str(path))


def server_fields() -> set[str]:
    return {f"SERVING_{name.upper()}" for name in ServerSettings.model_fields}


def test_both_platforms_give_servers_only_settings_that_exist(tmp_path: Path) -> None:
    record = Record("flights-v2", "flights", 2, 20001, "a" * 64, 5, "http://127.0.0.1:20001")
    local = commands.environment(Settings(state=tmp_path), RELEASE, flights(), record)
    rendered = server_environment(RELEASE, flights())
    for name in {*local, *rendered}:
        if name.startswith("SERVING_"):
            assert name in server_fields(), name
    wanted = {"SERVING_MODEL", "SERVING_VERSION", "SERVING_BUNDLE", "SERVING_BUNDLE_SHA256"}
    assert wanted <= set(local)
    assert wanted <= set(rendered)


def test_every_deployment_of_prefect_yaml_is_a_flow() -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    names = set()
    for deployment in content["deployments"]:
        module, _, function = deployment["entrypoint"].rpartition(".")
        found = getattr(importlib.import_module(module), function)
        assert type(found).__name__ == "Flow", deployment["entrypoint"]
        names.add(f"{found.name}/{deployment['name']}")
    assert {"promote/promote", "rollback/rollback", "sweep/sweep", "drift/drift"} <= names


def test_every_setting_is_documented() -> None:
    """A field is followed by its explanation, unless its name says everything a port can say."""
    source = (ROOT / "flows" / "settings.py").read_text()
    lines = source.splitlines()
    spoken = {"prometheus", "alertmanager", "redis", "postgres", "ports"}
    for name in {*Settings.model_fields, *Ports.model_fields} - spoken:
        (number,) = [i for i, line in enumerate(lines) if re.match(rf"    {name}: ", line)]
        rest = "\n".join(lines[number + 1 : number + 4])
        assert '"""' in rest.split("\n    " + "def", 1)[0], name


def test_the_demo_s_model_names_columns_that_its_handler_knows() -> None:
    inputs = {column.name for column in flights().signature.inputs}
    assert flights().drift.time_column in inputs
    assert set(flights().drift.categorical) <= inputs
    assert flights().drift.prediction in {column.name for column in flights().signature.outputs}


def test_every_alert_that_rolls_back_names_a_model_and_a_version() -> None:
    rules = yaml.safe_load((ROOT / "monitoring" / "rules" / "canary.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    acting = [alert for alert in alerts if alert["labels"].get("action") == "rollback"]
    assert acting
    for alert in acting:
        assert "model" in alert["expr"], alert["alert"]
        assert "version" in alert["expr"], alert["alert"]
        assert alert["annotations"]["summary"]


def test_the_makefile_s_test_folders_exist_and_every_folder_is_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    run = set(re.findall(r"tests/(\w+)", re.search(r"^test:.*?\n\n", makefile, re.S | re.M)[0]))  # type: ignore[index]
    there = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert {path.relative_to(ROOT / "tests").parts[0] for path in there} == run
