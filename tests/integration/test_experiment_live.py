"""`modelserve experiment` over real parts: servers, Envoy, Redis, registry, and visitors who come by HTTP.

Visitors stay on their release, the split is the planned one, what they report through POST /feedback decides,
and the traffic goes back.
"""

from __future__ import annotations

import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer
import yaml
from typer.testing import CliRunner

from flows.adapters.local import LocalPlatform
from flows.adapters.registry import Registry
from flows.adapters.stack import Supervisor, up
from flows.domain.promotion import State
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import parse_spec
from flows.settings import Settings
from flows.terminal.experiment_cli import experiment
from serving.inference.bundle import seal
from tests.platform import local_stack

COOKIE = "modelserve-flights"
SHARE = 30
LATE = 0.8
"""The share of flights that come late: what v2 always says, and v1 never."""
MODEL = {
    "name": "flights",
    "signature": {
        "inputs": [{"name": "hour", "type": "integer"}],
        "outputs": [{"name": "late", "type": "boolean"}],
    },
    "serving": {"runtime": {"kind": "handler"}},
    "resources": {"start_seconds": 60, "drain_seconds": 2},
}
HANDLER = """
def load(folder, device):
    return {says}

def predict(model, rows):
    return [{{"late": model}} for row in rows]
"""


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with local_stack.local_settings(python=sys.executable) as settings:
        up(settings, print, only=("postgres", "redis", "envoy"))
        yield settings


@pytest.fixture(scope="module")
def platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> LocalPlatform:
    """v2 is stable and serves everybody, v1 is the warm previous release."""
    text = yaml.safe_dump(MODEL)
    registry = Registry(settings.registry_url)
    registry.migrate()
    platform = LocalPlatform(settings, Supervisor(settings))
    folder = tmp_path_factory.mktemp("bundles")
    for version, says in ((1, False), (2, True)):
        bundle = folder / f"flights-v{version}"
        bundle.mkdir()
        (bundle / "model.yaml").write_text(text)
        (bundle / "handler.py").write_text(HANDLER.format(says=says))
        release = registry.register(Release("flights", version, str(bundle), seal(bundle)), text)
        platform.start(release, parse_spec(text, "model.yaml"))
        promotion = registry.begin("flights", version, f"run-{version}", 3600, 60)
        with registry.turn("flights") as turn:
            turn.crown(promotion)
            turn.end(promotion, State.PROMOTED, "certified")
    platform.route("flights", Routes({"flights-v1": 0, "flights-v2": 100}))
    return platform


class Visitors(threading.Thread):
    """New visitors, one after the other; each asks five times and reports what became of it."""

    def __init__(self, settings: Settings, platform: LocalPlatform, arms: tuple[str, ...] = ()) -> None:
        super().__init__(daemon=True)
        self.url = f"{settings.gateway_url}/models/flights"
        self.platform = platform
        self.arms = arms
        """What clients send as x-experiment-arm, in turn; empty: they keep cookies instead."""
        self.over = threading.Event()
        self.seen: list[tuple[str, set[str]]] = []
        """Of each visitor: what he came with, and the versions that answered him."""
        self.problems: list[str] = []
        self.chance = random.Random(8)

    def run(self) -> None:
        while not self.over.is_set():
            if not self.split():
                self.over.wait(0.02)  # before the experiment and after it
                continue
            try:
                self.visit(self.arms[len(self.seen) % len(self.arms)] if self.arms else "")
            except (httpx.HTTPError, KeyError) as error:
                self.problems.append(repr(error))

    def split(self) -> bool:
        return sum(weight > 0 for weight in self.platform.routes("flights").weights.values()) > 1

    def visit(self, arm: str) -> None:
        versions = set()
        headers = {"x-experiment-arm": arm} if arm else {}
        with httpx.Client(trust_env=False, headers=headers, timeout=10) as client:
            for _ in range(5):
                answer = client.post(f"{self.url}/predict", json={"instances": [12]})
                answer.raise_for_status()
                versions.add(answer.headers["x-model-version"])
                outcome = self.chance.random() < LATE
                receipt = answer.headers.get("x-feedback-id")
                if receipt is not None:  # those that are sampled
                    content = {"request_id": receipt, "outcomes": [outcome]}
                    client.post(f"{self.url}/feedback", json=content).raise_for_status()
            cookie = client.cookies.get(COOKIE)
        if not self.split():
            return  # it ended meanwhile, and he was sent to the stable release like everybody
        self.seen.append((arm, versions))
        if not arm and cookie not in versions:
            self.problems.append(f"cookie {cookie!r}, answered by {versions}")


def run(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, visitors: Visitors, *options: str
) -> tuple[int, str]:
    """The verb as it is typed, while visitors come."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    app = typer.Typer()
    app.command()(experiment)
    visitors.start()
    try:
        done = CliRunner().invoke(
            app,
            ["flights", "1", "2", "--measure", "late", "--look-seconds", "0.3", "--hours", "0.02", *options],
        )
    finally:
        visitors.over.set()
        visitors.join(timeout=20)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def counted(settings: Settings) -> Counter[str]:
    """Requests that Envoy has counted, by cluster."""
    url = f"http://127.0.0.1:{settings.ports.gateway_admin}/stats"
    text = httpx.get(url, params={"filter": "upstream_rq_completed"}, trust_env=False).text
    found = re.findall(r"^cluster\.(flights-v\d+)\.upstream_rq_completed: (\d+)", text, re.MULTILINE)
    return Counter({name: int(value) for name, value in found})


def test_outcomes_of_visitors_with_cookies_decide(
    settings: Settings, platform: LocalPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = counted(settings)
    visitors = Visitors(settings, platform)
    report = tmp_path / "report.md"
    code, output = run(
        monkeypatch, settings, visitors, "--share", str(SHARE), "--minimum", "200", "--report", str(report)
    )

    assert (code, visitors.problems) == (0, []), output
    last = [line for line in output.splitlines() if " is better" in line][-1]
    assert last.startswith("flights-v2 is better")
    assert all(len(versions) == 1 for _, versions in visitors.seen), "somebody has met both releases"

    # The split of visitors is the planned one, within what chance allows (five standard deviations).
    of_b = sum(versions == {"2"} for _, versions in visitors.seen)
    total = len(visitors.seen)
    assert total >= 80
    assert abs(of_b - total * SHARE / 100) < 5 * (total * SHARE / 100 * (1 - SHARE / 100)) ** 0.5

    text = report.read_text()
    assert text.startswith("# flights-v1 against flights-v2\n")
    low, high = (float(one) for one in re.findall(r"between ([+-][\d.]+) and ([+-][\d.]+) points", text)[0])
    assert 0 < low < 100 * (2 * LATE - 1) < high, "the true difference is 60 points"

    assert platform.routes("flights") == Routes({"flights-v1": 0, "flights-v2": 100})
    now = counted(settings)
    predictions = sum(now[name] - before[name] for name in ("flights-v1", "flights-v2"))
    assert 5 * total <= predictions <= 5 * total + 5, "outcomes were counted as predictions"


def test_a_client_that_names_its_arm_stays_there(
    settings: Settings, platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = Visitors(settings, platform, arms=("a", "b"))
    code, output = run(monkeypatch, settings, visitors, "--sticky", "header", "--minimum", "100")
    assert (code, visitors.problems) == (0, []), output
    assert "flights-v2 is better" in output
    assert {arm for arm, _ in visitors.seen} == {"a", "b"}
    assert all(versions == ({"1"} if arm == "a" else {"2"}) for arm, versions in visitors.seen)


def test_one_that_does_not_decide_says_so_and_fails(
    settings: Settings, platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = Visitors(settings, platform)
    code, output = run(monkeypatch, settings, visitors, "--minimum", "1000000", "--hours", "0.0005")
    assert code == 1
    assert "(ended: out of time)" in output.splitlines()[-1]
    assert platform.routes("flights") == Routes({"flights-v1": 0, "flights-v2": 100})
