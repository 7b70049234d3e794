"""Rule files: they load, their own tests pass, and every alert is fit to wake somebody up."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

MONITORING = Path(__file__).parents[2] / "monitoring"
RULE_FILES = sorted(path.name for path in (MONITORING / "rules").glob("*.yml"))
TEST_FILES = sorted(path.name for path in (MONITORING / "tests").glob("*.yml"))
OURS = ("slo.yml", "canary.yml", "platform.yml", "drift.yml")
SEVERITIES = {"critical", "warning", "info", "none"}


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules" / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts(*names: str) -> list[dict[str, Any]]:
    return [rule for name in names for rule in rules(name) if "alert" in rule]


ALL_ALERTS = alerts(*RULE_FILES)


def test_every_file_loads_together(tool: Callable[[str], str], monitoring: Path) -> None:
    files = [str(monitoring / "rules" / name) for name in RULE_FILES]
    done = subprocess.run([tool("promtool"), "check", "rules", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "duplicate" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", TEST_FILES)
def test_rules_do_what_their_tests_say(tool: Callable[[str], str], monitoring: Path, name: str) -> None:
    done = subprocess.run(
        [tool("promtool"), "test", "rules", name], capture_output=True, text=True, cwd=monitoring / "tests"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", [alert["alert"] for alert in alerts(*OURS)])
def test_every_alert_is_tested_silent_firing_and_without_data(monitoring: Path, alert: str) -> None:
    silent = firing = blind = False
    for name in TEST_FILES:
        for case in yaml.safe_load((monitoring / "tests" / name).read_text())["tests"]:
            for check in case.get("alert_rule_test", ()):
                if check["alertname"] != alert:
                    continue
                fires = bool(check.get("exp_alerts"))
                firing |= fires
                silent |= not fires
                blind |= case["name"].startswith("no data")
    assert firing, f"{alert}: no test makes it fire"
    assert silent or alert == "Watchdog", f"{alert}: no test keeps it silent"
    assert blind, f"{alert}: no test takes the data away"


def test_alert_names_are_unique() -> None:
    names = [alert["alert"] for alert in ALL_ALERTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("alert", ALL_ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(monitoring: Path, alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["labels"]["team"] in {"models", "platform"}
    annotations = alert["annotations"]
    assert annotations["summary"]
    assert annotations["description"]
    page, _, anchor = annotations["runbook_url"].partition("#")
    assert page == "monitoring/runbook.md"
    # Each has a section of its own: a link to the page's head leads nobody anywhere.
    assert anchor == alert["alert"].lower()
    headings = re.findall(r"^## (.+)$", (monitoring / "runbook.md").read_text(), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}


def test_the_runbook_s_commands_exist(monitoring: Path) -> None:
    """Whoever reads it at night types what it says: verbs, what they take, and their options."""
    from flows.terminal.cli import app

    known: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    said = re.findall(
        r"(?<!-n )\bmodelserve ([a-z]+)((?: [A-Z]+)*)((?: --[a-z]+)*)",
        (monitoring / "runbook.md").read_text(),
    )
    assert {verb for verb, _, _ in said} >= {"status", "history", "explain", "rollback", "abort", "sweep"}
    for verb, arguments, options in said:
        parameters = known[verb].params
        takes = [one.name.rstrip("s") for one in parameters if one.param_type_name == "argument"]
        assert arguments.lower().split() in ([], takes), f"modelserve {verb}{arguments}: takes {takes}"
        given = {option for one in parameters for option in one.opts}
        assert set(options.split()) <= given, f"modelserve {verb}{options}"


def test_an_alert_that_rolls_back_names_the_release() -> None:
    """The receiver needs model and version; they come from the expression, which must keep both."""
    acting = [alert for alert in ALL_ALERTS if "action" in alert["labels"]]
    assert acting
    for alert in acting:
        assert alert["labels"]["action"] == "rollback"
        assert alert["labels"]["severity"] == "critical"
        assert "by (model, version)" in alert["expr"] or "release:" in alert["expr"]
    for name in TEST_FILES:
        for case in yaml.safe_load((MONITORING / "tests" / name).read_text())["tests"]:
            for check in case.get("alert_rule_test", ()):
                for expected in check.get("exp_alerts", ()):
                    if expected["exp_labels"].get("action") == "rollback":
                        assert {"model", "version"} <= expected["exp_labels"].keys()


def test_only_the_normalised_series_are_read() -> None:
    """Envoy's and Istio's own names end in the two dialect files."""
    for name in OURS:
        for rule in rules(name):
            assert not re.search(r"\b(envoy|istio)_\w+", rule["expr"]), f"{name}: {rule}"


def test_recorded_names_that_are_read_are_recorded() -> None:
    recorded = {rule["record"] for name in RULE_FILES for rule in rules(name) if "record" in rule}
    recorded |= {"traffic:requests:count", "traffic:latency:bucket"}
    for name in OURS:
        for rule in rules(name):
            for word in re.findall(r"\b[a-z]+:[a-z]+(?::[a-z0-9]+)*\b", rule["expr"]):
                assert word in recorded, f"{name}: {word} is recorded nowhere"
