"""GitHub's workflows: pinned, least privileged, bounded, and calling only what exists here."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")
ONLY_CALLED = {"release.yml"}
"""Started by another workflow, whose triggers and concurrency hold for it."""


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    # YAML 1.1 reads the key `on` as a truth value.
    content["on"] = content.pop(True)
    return content


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            yield path.name, name, job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for file, name, job in jobs():
        for number, step in enumerate(job.get("steps", ())):
            yield f"{file} {name} {step.get('name', number)}", step


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every line of every `run`, with its expressions replaced by a word."""
    for where, step in steps():
        for line in step.get("run", "").splitlines():
            yield where, shlex.split(re.sub(r"\$\{\{[^}]*\}\}", "cluster", line))


STEPS = list(steps())
COMMANDS = list(commands())


def test_the_expected_workflows_are_there() -> None:
    expected = {"ci.yml", "cd.yml", "e2e.yml", "infra.yml", "nightly.yml", "release.yml", "staged.yml"}
    assert {path.name for path in WORKFLOWS} == expected
    assert set(load(FOLDER / "ci.yml")["on"]) >= {"push", "pull_request"}
    dispatch = load(FOLDER / "cd.yml")["on"]["workflow_dispatch"]["inputs"]
    assert set(dispatch) == {"action", "model", "version", "environment"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_their_version(path: Path) -> None:
    for line in path.read_text().splitlines():
        found = re.match(r"\s*(?:- )?uses: (\S+)(.*)$", line)
        if found is None:
            continue
        if found[1].startswith("./"):
            assert (REPOSITORY / found[1]).is_file(), line
            continue
        assert PINNED.match(found[1]), line
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", found[2]), line


def test_one_action_has_one_version() -> None:
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, pin in re.findall(r"uses: ([\w./-]+)@(\S+ # \S+)", path.read_text()):
            pins.setdefault(action, set()).add(pin)
    assert pins
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_unless_a_job_says_more(path: Path) -> None:
    assert load(path)["permissions"] == {"contents": "read"}
    allowed = {
        *("contents: read", "id-token: write", "attestations: write"),
        *("security-events: write", "pull-requests: write"),
    }
    for job in load(path)["jobs"].values():
        for scope, right in job.get("permissions", {}).items():
            assert f"{scope}: {right}" in allowed


def test_no_long_lived_key_is_used() -> None:
    for path in WORKFLOWS:
        text = path.read_text()
        assert "secrets." not in text, "OIDC and the environment's own secrets manager are enough"
        assert "aws-access-key-id" not in text
        assert "pull_request_target" not in text


@pytest.mark.parametrize(("file", "name", "job"), list(jobs()), ids=lambda value: str(value)[:20])
def test_a_job_is_bounded(file: str, name: str, job: dict[str, Any]) -> None:
    if "uses" in job:
        return
    assert 0 < job["timeout-minutes"] <= 300, f"{file} {name}"
    assert job["runs-on"]


PASSING_ON = {"cd.yml": {"staged.yml", "release.yml"}, "staged.yml": {"release.yml"}}
"""Workflows that only call others, and which: those have the concurrency group."""


def test_runs_of_one_thing_do_not_overlap() -> None:
    for path in WORKFLOWS:
        workflow = load(path)
        if "concurrency" in workflow or path.name in PASSING_ON:
            continue
        writing = [job for job in workflow["jobs"].values() if "id-token" in job.get("permissions", {})]
        assert writing
        for job in writing:
            assert job["concurrency"]["group"]
    for name, called in PASSING_ON.items():
        for job in load(FOLDER / name)["jobs"].values():
            assert "permissions" not in job or job["uses"].removeprefix("./.github/workflows/") in called


def test_credentials_of_the_checkout_are_not_kept() -> None:
    found = [step for _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert found
    assert all(step["with"]["persist-credentials"] is False for step in found)


@pytest.mark.parametrize(("where", "step"), STEPS, ids=[where for where, _ in STEPS])
def test_a_script_is_short_and_takes_no_foreign_text(where: str, step: dict[str, Any]) -> None:
    script = step.get("run", "")
    assert len(script.splitlines()) <= 5, where
    # What a stranger can type must arrive as a variable: pasted into a script it would be run.
    for expression in re.findall(r"\$\{\{([^}]*)\}\}", script):
        assert expression.strip().startswith("matrix."), f"{where}: {expression}"


ACTIONLINT = [REPOSITORY / ".venv/bin/actionlint", "-shellcheck=", "-pyflakes=", "-oneline"]
"""As in `make lint`. What the script checkers of a machine say would differ from machine to machine."""


def test_every_expression_key_and_type_is_valid() -> None:
    done = subprocess.run([*ACTIONLINT, *WORKFLOWS], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_misspelt_key_or_expression_would_be_found(tmp_path: Path) -> None:
    text = (FOLDER / "ci.yml").read_text()
    broken = tmp_path / "ci.yml"
    broken.write_text(
        text.replace("matrix.device", "matrix.devise").replace("timeout-minutes: 15", "timeout: 15")
    )
    done = subprocess.run([*ACTIONLINT, broken], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'property "devise" is not defined' in done.stdout
    assert 'unexpected key "timeout"' in done.stdout


def test_every_command_is_one_of_ours() -> None:
    programs = {command[0] for _, command in COMMANDS}
    assert programs <= {
        *("make", "terraform", "pip", "pipx", "kubectl", "kind"),
        *(".venv/bin/python", ".venv/bin/modelserve", ".venv/bin/prefect", "python"),
    }


def test_make_verbs_exist_and_do_something() -> None:
    verbs = {command[1] for _, command in COMMANDS if command[0] == "make"}
    assert verbs >= {"lint", "test", "demo", "setup", "infra-check"}
    for verb in verbs:
        done = subprocess.run(
            ["make", "--dry-run", verb], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"make {verb}: {done.stderr}"
        assert "Nothing to be done" not in done.stdout, f"make {verb} has no recipe"


def test_modelserve_verbs_and_options_exist() -> None:
    from flows.terminal.cli import app

    group = typer.main.get_command(app)
    known: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    called = [command for _, command in COMMANDS if command[0] == ".venv/bin/modelserve"]
    assert {command[1] for command in called} == {"register"}
    for command in called:
        options = {option for one in known[command[1]].params for option in one.opts}
        given = set(re.findall(r"--[a-z-]+", " ".join(command)))
        assert given <= options, f"{command[1]} knows {sorted(options)}"


@pytest.mark.parametrize(
    ("deployment", "parameters"),
    [("promote/promote", {"model", "version"}), ("rollback/rollback", {"model", "to", "reason"})],
)
def test_the_prefect_deployments_and_their_parameters_exist(deployment: str, parameters: set[str]) -> None:
    (called,) = [
        command
        for _, command in COMMANDS
        if command[0] == ".venv/bin/prefect" and command[1:4] == ["deployment", "run", deployment]
    ]
    name, _, listed_as = deployment.partition("/")
    listed = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    assert {one["name"]: one["entrypoint"] for one in listed}[listed_as] == f"flows.{name}.{name}"
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    assert flow.name == name
    given = set(re.findall(r"-p \"?([a-z]+)=", " ".join(called)))
    given |= {word.partition("=")[0] for word in called if re.fullmatch(r"[a-z]+=.*", word)}
    assert given == parameters <= flow.parameters.properties.keys()
    # The job waits for the flow, and its outcome is the flow's.
    assert "--watch" in called


def test_prefect_knows_the_options() -> None:
    given = {
        word
        for _, command in COMMANDS
        if command[0] == ".venv/bin/prefect"
        for word in command
        if word.startswith("--")
    }
    done = subprocess.run(
        [REPOSITORY / ".venv/bin/prefect", "deployment", "run", "--help"], capture_output=True, text=True
    )
    assert given <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_a_runner_changes_no_route_itself() -> None:
    """Its role has no access entry in the cluster: what changes routes runs there, as a flow."""
    acting = {"promote", "rollback", "pause", "resume", "abort", "sweep"}
    called = {command[1] for _, command in COMMANDS if command[0] == ".venv/bin/modelserve"}
    assert not called & acting


def test_a_plan_needs_no_secret() -> None:
    """Reading a secret's version back needs the secret itself, which the role of pull requests is denied."""
    plans = [command for _, command in COMMANDS if command[0] == "terraform" and "plan" in command]
    assert plans
    assert all("-refresh=false" in command for command in plans)
    role = (REPOSITORY / "infra" / "cluster" / "github.tf").read_text()
    assert "NoSecretsInPlans" in role


def test_files_that_steps_name_exist() -> None:
    for where, command in COMMANDS:
        for word in command:
            if word.startswith((".github/", "tests/", "infra/")):
                assert (REPOSITORY / word).exists(), f"{where}: {word}"
            if word.startswith("-chdir="):
                assert (REPOSITORY / word.removeprefix("-chdir=").replace("$STATE", "addons")).is_dir()
    for _, step in STEPS:
        config = step.get("with", {}).get("config")
        assert config is None or (REPOSITORY / config).is_file()


def test_versions_agree_with_what_is_used_here() -> None:
    terraform = {
        step["with"]["terraform_version"] for _, step in STEPS if "terraform_version" in step.get("with", {})
    }
    assert len(terraform) == 1
    python = {step["with"]["python-version"] for _, step in STEPS if "python-version" in step.get("with", {})}
    assert python == {"3.11", "${{ matrix.python }}"}
    tried = load(FOLDER / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    supported = SpecifierSet(
        tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    )
    assert tried == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]


def test_terraform_is_applied_only_after_an_approval() -> None:
    for file, name, job in jobs():
        script = " ".join(step.get("run", "") for step in job.get("steps", ()))
        if "apply" in script:
            assert job["environment"].endswith("-infra"), f"{file} {name}"
            assert job["if"] == "github.event_name != 'pull_request' && github.ref == 'refs/heads/main'"
    release = load(FOLDER / "release.yml")["jobs"]["release"]
    assert release["environment"] == "${{ inputs.environment }}"
    assert load(FOLDER / "staged.yml")["jobs"]["production"]["needs"] == "staging"


def test_every_variable_that_a_workflow_reads_is_documented() -> None:
    read = {name for path in WORKFLOWS for name in re.findall(r"\bvars\.([A-Z_]+)", path.read_text())}
    text = (REPOSITORY / "infra" / "README.md").read_text()
    assert read
    assert {name for name in read if f"`{name}`" not in text} == set()


def test_what_make_test_leaves_out_is_played_every_night_and_in_turns_at_each_commit() -> None:
    """What `make test` leaves out must run somewhere, by itself."""
    nightly = load(FOLDER / "nightly.yml")
    assert "schedule" in nightly["on"]
    played = {step.get("run") for job in nightly["jobs"].values() for step in job["steps"]}
    assert {"make chaos", "make thorough"} <= played
    assert "make turn" in [step.get("run") for step in load(FOLDER / "ci.yml")["jobs"]["test"]["steps"]]


def test_a_model_that_fails_in_staging_keeps_no_other_from_production() -> None:
    """A job that waits for a matrix waits for all of it: so no job but a model's own may."""
    jobs = load(FOLDER / "cd.yml")["jobs"]
    fanned = {name for name, job in jobs.items() if "matrix" in job.get("strategy", {})}
    assert fanned
    for name, job in jobs.items():
        needs = job.get("needs", [])
        assert fanned.isdisjoint([needs] if isinstance(needs, str) else needs), name
        if name in fanned:
            assert job["strategy"]["fail-fast"] is False
    one = load(FOLDER / "staged.yml")["jobs"]
    assert one["production"]["needs"] == "staging"
    assert "strategy" not in one["staging"]
