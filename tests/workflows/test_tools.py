"""The small programs that the workflows call, run as the workflows run them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from flows.adapters.registry import Registry
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts, Window
from flows.domain.release import Release

TOOLS = Path(__file__).parents[2] / ".github" / "tools"

SPEC = """
name: flights
signature: {inputs: [{name: hour, type: integer}], outputs: [{name: late, type: boolean}]}
"""


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    for model, version in (("flights", 1), ("fraud", 6)):
        folder = tmp_path / "serving" / "models" / model
        folder.mkdir(parents=True)
        (folder / "release.yaml").write_text(f"version: {version}\n")
        (folder / "model.yaml").write_text(f"name: {model}\n")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "serving" / "models" / "fraud" / "release.yaml").write_text("version: 7\n")
    (tmp_path / "serving" / "models" / "flights" / "model.yaml").write_text("name: flights # edited\n")
    git("commit", "-am", "fraud 7")
    return tmp_path


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / f"{name}.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_changed_release_file_is_a_model_to_release(checkout: Path) -> None:
    done = run("changed_models", "HEAD~1", "HEAD", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.removeprefix("models=")) == [{"model": "fraud", "version": 7}]


def test_a_change_of_anything_else_releases_nothing(checkout: Path) -> None:
    assert run("changed_models", "HEAD", "HEAD", cwd=checkout).stdout == "models=[]\n"


def test_the_first_push_of_a_branch_releases_every_model(checkout: Path) -> None:
    done = run("changed_models", "0" * 40, "HEAD", cwd=checkout)
    assert [one["model"] for one in json.loads(done.stdout.removeprefix("models="))] == ["flights", "fraud"]


def test_a_version_that_is_none_stops_the_release(checkout: Path) -> None:
    (checkout / "serving" / "models" / "fraud" / "release.yaml").write_text("version: next\n")
    done = run("changed_models", "HEAD~1", "HEAD", cwd=checkout)
    assert done.returncode == 1
    assert done.stderr == (
        "serving/models/fraud/release.yaml: version: must be a whole number from 1 on, found 'next'\n"
    )


def test_an_artifact_is_fetched_and_checked(checkout: Path) -> None:
    artifact = checkout / "elsewhere" / "model.pt"
    artifact.parent.mkdir()
    artifact.write_bytes(b"weights")
    release = checkout / "serving" / "models" / "fraud" / "release.yaml"
    digest = hashlib.sha256(b"weights").hexdigest()
    release.write_text(f"version: 7\nartifact: {artifact.as_uri()}\nsha256: {digest}\n")
    done = run("fetch_artifact", "fraud", "build", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "artifact=build/model.pt\nversion=7\ntraining=\n"
    assert (checkout / "build" / "model.pt").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version: 7\nartifact: file:///nowhere\n", "needs sha256"),
        (f"version: 7\nartifact: ARTIFACT\nsha256: {'ab' * 32}\n", "expected " + "ab" * 32),
    ],
)
def test_a_wrong_artifact_is_refused_in_one_line(checkout: Path, content: str, message: str) -> None:
    artifact = checkout / "model.pt"
    artifact.write_bytes(b"other weights")
    release = checkout / "serving" / "models" / "fraud" / "release.yaml"
    release.write_text(content.replace("ARTIFACT", artifact.as_uri()))
    done = run("fetch_artifact", "fraud", "build", cwd=checkout)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_without_a_release_file_is_refused(checkout: Path) -> None:
    done = run("fetch_artifact", "unknown", "build", cwd=checkout)
    assert done.returncode == 1
    assert "serving/models/unknown/release.yaml: not there" in done.stderr


def test_the_summary_is_the_decision_report(registry: Registry) -> None:
    registry.register(Release("flights", 2, "memory://bundle", "0" * 64), SPEC)
    plane = SimpleNamespace(registry=registry)
    last_report = tool("decision_report").last_report
    assert last_report(plane, "flights", 2) == "No promotion of flights v2 has begun."
    promotion = registry.begin("flights", 2, "a-run", deadline_seconds=60, lease_seconds=60)
    window = Window(0.0, 15.0, 10, Counts(requests=100, errors=1), Counts(requests=900, errors=3))
    verdict = Verdict("hold", "errors", "needs about 900 more requests", evidence=1.5)
    registry.store_window(promotion, 1, window.to_json(), verdict.to_json(), None, watching=False)
    report = last_report(plane, "flights", 2)
    assert report.startswith("# flights v2")
    assert "100, of which 1 failed" in report
    assert "needs about 900 more requests" in report


@pytest.mark.parametrize(
    "name",
    ["build_image", "publish_release", "publish_flows", "decision_report", "changed_models", "make_cluster"],
)
def test_a_wrong_call_says_how_it_is_called(name: str, tmp_path: Path) -> None:
    done = run(name, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"usage: {name}.py ")
