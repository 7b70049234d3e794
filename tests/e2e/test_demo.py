"""The demonstration from end to end, as a person runs it: the command itself, with every real part."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.adapters.registry import Registry
from flows.domain.promotion import State
from flows.settings import Settings
from flows.steps.replay import replay_verdicts
from tests.free_ports import stack_variables

ROOT = Path(__file__).parents[2]
MINUTES = 12


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings of a stack of its own; images are built on the base that `make test` has prepared."""
    state = tmp_path_factory.mktemp("demo") / "state"
    environment = {**os.environ, **stack_variables(state, 27000), "COLUMNS": "200"}
    yield environment
    subprocess.run(modelserve("down"), env=environment, cwd=ROOT, timeout=180, check=True)


def modelserve(*words: str) -> list[str]:
    return [sys.executable, "-c", "from flows.terminal.cli import main; main()", *words]


@pytest.fixture(scope="module")
def output(environment: dict[str, str]) -> str:
    done = subprocess.run(
        modelserve("demo", "--keep"),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=MINUTES * 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def registry(environment: dict[str, str]) -> Registry:
    return Registry(registry_url(environment))


def registry_url(environment: dict[str, str]) -> str:
    names = {name: value for name, value in environment.items() if name.startswith("MODELSERVE_PORTS__")}
    ports = {name.removeprefix("MODELSERVE_PORTS__").lower(): int(value) for name, value in names.items()}
    settings = Settings(state=Path(environment["MODELSERVE_STATE"]), ports=ports)  # type: ignore[arg-type]
    return settings.registry_url


pytestmark = pytest.mark.timeout((MINUTES + 2) * 60)


def test_every_outcome_was_the_right_one(output: str) -> None:
    assert "every outcome was the right one" in output
    assert len(re.findall("✓", output)) == 5
    assert "✗" not in output


def test_what_the_sick_release_cost_is_told(output: str) -> None:
    found = re.search(r"cost: (\d+) of (\d+) requests to version 3 failed, ([\d.]+) s from the first", output)
    assert found, output[-3000:]
    failed, all_of_them, seconds = int(found[1]), int(found[2]), float(found[3])
    assert 0 < failed <= all_of_them
    assert seconds < 60


def test_the_registry_tells_the_same_story(output: str, registry: Registry) -> None:
    assert output
    ended = [(promotion.version, promotion.state) for promotion in registry.promotions("flights")]
    assert ended == [(1, State.PROMOTED), (2, State.PROMOTED), (3, State.REJECTED)]
    standing = registry.standing("flights")
    assert standing.stable is not None
    assert standing.stable.version == 1
    assert (standing.promotion, standing.canary, standing.retreat) == (None, None, None)
    second = registry.promotions("flights")[1]
    weights = [e.detail["weight"] for e in registry.events("flights", second) if e.kind == "weight"]
    assert weights == [5, 25, 50, 100]


def test_images_are_built_by_digest_and_scanned_before_anything_is_deployed(
    output: str, registry: Registry
) -> None:
    assert output
    for promotion in registry.promotions("flights"):
        kinds = [event.kind for event in registry.events("flights", promotion)]
        assert kinds.index("image") < kinds.index("scanned") < kinds.index("started")
    for release in registry.releases("flights"):
        assert re.fullmatch(r".+@sha256:[0-9a-f]{64}", release.image or "")


def test_every_verdict_replays_to_the_same(output: str, registry: Registry) -> None:
    assert output
    for promotion in registry.promotions("flights"):
        windows = registry.windows(promotion)
        assert windows
        assert replay_verdicts(registry.spec("flights", promotion.version), windows) == 0


def test_users_saw_no_failure_but_the_sick_release_s_and_the_outage_s(
    output: str, environment: dict[str, str]
) -> None:
    assert output
    traffic = json.loads((Path(environment["MODELSERVE_STATE"]) / "demo" / "traffic.json").read_text())
    failed = {version: answers["failed"] for version, answers in traffic["releases"].items()}
    assert failed["1"] == 0
    assert failed["2"] == 0
    assert failed["3"] > 0


def test_the_report_and_its_plot_are_kept(
    output: str, environment: dict[str, str], registry: Registry
) -> None:
    assert output
    third = registry.promotions("flights")[2]
    folder = Path(environment["MODELSERVE_STATE"]) / "artifacts" / "reports" / "flights" / third.id
    report = (folder / "report.md").read_text()
    assert report.startswith("# flights v3: ⛔ rejected")
    assert "requests failed on the canary" in report
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_other_verbs_read_well_on_the_running_stack(
    output: str, environment: dict[str, str], registry: Registry
) -> None:
    assert output
    third = registry.promotions("flights")[2]

    def said(*words: str) -> str:
        done = subprocess.run(
            modelserve(*words),
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "nothing to do" in said("sweep")
    assert "0 different" in said("explain", third.id[:8], "--replay")
    assert "rejected" in said("history", "flights")
    assert "prometheus" in said("status")
    again = subprocess.run(
        modelserve("promote", "flights", "9", "--watch"),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 1
    assert again.stderr.strip() == "error: flights has no version 9; registered versions: 1, 2, 3"


def test_every_panel_has_an_answer(output: str, environment: dict[str, str]) -> None:
    """Dashboards show what the demonstration has left; a panel without an answer is a broken query."""
    assert output
    specification = importlib.util.spec_from_file_location("panels", ROOT / "monitoring" / "panels.py")
    assert specification is not None
    assert specification.loader is not None
    panels = importlib.util.module_from_spec(specification)
    sys.modules["panels"] = panels
    specification.loader.exec_module(panels)
    url = f"http://127.0.0.1:{environment['MODELSERVE_PORTS__PROMETHEUS']}"
    assert panels.empty_panels(url, registry_url(environment)) == []


def test_what_to_type_after_the_demonstration_works_also_where_the_folder_was_moved(
    output: str, environment: dict[str, str], registry: Registry
) -> None:
    """Last in this file: it stops the stack, as the demonstration does, and moves it."""
    found = [words for line in output.splitlines() if (words := line.split())[1:2] == ["history"]]
    assert found, output[-3000:]
    (third,) = [one.id[:8] for one in registry.promotions("flights") if one.version == 3]
    state = Path(environment["MODELSERVE_STATE"])
    moved = {**environment, "MODELSERVE_STATE": str(state.with_name("moved"))}

    def typed(*words: str, where: dict[str, str]) -> str:
        done = subprocess.run(
            [*shlex.split(found[0][0]), *words],
            env=where,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    typed("down", where=environment)
    state.rename(moved["MODELSERVE_STATE"])
    try:
        assert f"this state folder was {state}" in typed("up", where=moved)
        for words in (["status"], ["history", "flights"], ["explain", third]):
            assert " ".join(words) in output
            typed(*words, where=moved)
        # Its bundle is read again: version 2 was taken out when the alert fired, and has to prove itself.
        assert "v2" in typed("rollback", "flights", "--to", "2", "--unproven", where=moved)
    finally:
        typed("down", where=moved)
        Path(moved["MODELSERVE_STATE"]).rename(state)
