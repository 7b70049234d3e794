"""Strangers who want a release taken out: through the real gateway, real servers, Prometheus and the judge.

They have no key and do what a client can do: any header, any body, any method, and leave when they like.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows.adapters.local import LocalPlatform
from flows.adapters.prometheus import PrometheusCounters
from flows.adapters.stack import Supervisor, up
from flows.domain.errors import DependencyDown
from flows.domain.judge.counters import Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import parse_spec
from flows.settings import Settings
from serving.inference.bundle import seal
from tests.platform import local_stack

pytestmark = pytest.mark.timeout(400)

TRIES = 20
LIMIT = 100_000
WEIGHT = 40
MODEL = {
    "name": "doubles",
    "signature": {
        "inputs": [{"name": "x", "type": "number"}],
        "outputs": [{"name": "y", "type": "number"}],
    },
    "serving": {"runtime": {"kind": "handler"}, "limits": {"max_body_bytes": LIMIT}},
    "resources": {"start_seconds": 60, "drain_seconds": 1},
}
HANDLER = """
import time


def load(folder, device):
    return None


def predict(model, rows):
    if {hangs} and any(row["x"] == 13 for row in rows):
        time.sleep(60)
    time.sleep(0.005)
    return [{{"y": row["x"] * 2}} for row in rows]
"""
STABLE, CANARY, HANGING = "doubles-v1", "doubles-v2", "doubles-v3"
PREDICT = "/models/doubles/predict"
ROW = {"instances": [{"x": 1}]}
POLICY = PromotionPolicy(dwell_seconds=4, window_seconds=2, deadline_seconds=600, pause_seconds=0)
"""No pause is tolerated, so that one window of forged evidence would convict."""


class World:
    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.platform = LocalPlatform(settings, Supervisor(settings))
        self.counters = PrometheusCounters(settings.prometheus_url, fresh_seconds=5)
        for version in (1, 2, 3):
            bundle = folder / f"v{version}"
            bundle.mkdir()
            (bundle / "model.yaml").write_text(yaml.safe_dump(MODEL))
            (bundle / "handler.py").write_text(textwrap.dedent(HANDLER.format(hangs=version == 3)))
            release = Release("doubles", version, str(bundle), seal(bundle))
            self.platform.start(release, parse_spec(yaml.safe_dump(MODEL), "model.yaml"))

    def client(self, seconds: float = 10) -> httpx.Client:
        return httpx.Client(base_url=self.settings.gateway_url, trust_env=False, timeout=seconds)

    def split(self, canary: str, weight: int = WEIGHT) -> None:
        self.platform.route("doubles", Routes({STABLE: 100 - weight, canary: weight}))

    def snapshot(self, canary: str, earlier: Snapshot | None = None) -> Snapshot:
        """A trusted snapshot of a moment after this call began: every flush, scrape and rule has passed."""
        time.sleep(3.2)
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(DependencyDown):
                found = self.counters.snapshot([STABLE, canary], earlier)
                if not found.doubt(5):
                    return found
            assert time.monotonic() < end, "the counters could not be read"
            time.sleep(0.1)

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.settings.ports.gateway), timeout=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with local_stack.local_settings(python=sys.executable) as settings:
        up(settings, print, only=("redis", "envoy", "prometheus"))
        world = World(settings, tmp_path_factory.mktemp("bundles"))
        yield world
        world.platform.route("doubles", Routes())


# -- what a stranger can do; each is given the headers by which it chooses a release, or none -------------

Attack = Callable[[World, dict[str, str]], None]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def known(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return known


def posted(world: World, content: Any, headers: dict[str, str], *, method: str = "POST") -> int:
    with world.client() as client:
        headers = {"content-type": "application/json"} | headers
        return client.request(method, PREDICT, content=content, headers=headers).status_code


@attack("a deadline of his own")
def hurried(world: World, pin: dict[str, str]) -> None:
    assert posted(world, json.dumps(ROW), {"x-request-timeout": "0.000000001"} | pin) == 408


@attack("a deadline for the gateway")
def hurrying_the_gateway(world: World, pin: dict[str, str]) -> None:
    hurry = {"x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-upstream-rq-per-try-timeout-ms": "1"}
    assert posted(world, json.dumps(ROW), hurry | pin) == 200


@attack("an oversized body")
def oversized(world: World, pin: dict[str, str]) -> None:
    assert posted(world, b"a" * 30 * LIMIT, pin) == 413


@attack("an oversized body without a length")
def endless(world: World, pin: dict[str, str]) -> None:
    assert posted(world, iter([b"a" * LIMIT] * 30), pin) == 413


@attack("many rows of one kind")
def many_rows(world: World, pin: dict[str, str]) -> None:
    rows = {"instances": [{"x": 1}] * 64}
    assert posted(world, json.dumps(rows), pin) == 200


@attack("an address that nobody has")
def nowhere(world: World, pin: dict[str, str]) -> None:
    with world.client() as client:
        assert client.post("/models/doubles/nowhere", json=ROW, headers=pin).status_code == 404


@attack("another method")
def method(world: World, pin: dict[str, str]) -> None:
    assert posted(world, b"", pin, method="DELETE") == 405


@attack("rows that do not fit")
def misfit(world: World, pin: dict[str, str]) -> None:
    assert posted(world, json.dumps({"instances": [{"x": "one"}]}), pin) == 422


def sent(world: World, pin: dict[str, str], share: float) -> None:
    """A part of a request, and gone."""
    body = json.dumps(ROW).encode()
    lines = [f"POST {PREDICT} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in pin.items()]
    with world.connection() as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[: int(len(body) * share)])


@attack("leaving at once")
def leaving(world: World, pin: dict[str, str]) -> None:
    sent(world, pin, 1.0)


@attack("leaving within the body")
def leaving_early(world: World, pin: dict[str, str]) -> None:
    sent(world, pin, 0.5)


# -- the judge's counters ---------------------------------------------------------------------------------


def counts(window: Window) -> tuple[Counts, Counts]:
    assert window.observed, window.why
    assert window.stable is not None
    return window.canary, window.stable


@pytest.mark.parametrize("version", ["1", "2"], ids=["stable", "canary"])
def test_who_chooses_the_release_moves_no_count_of_it(world: World, version: str) -> None:
    world.split(CANARY)
    before = world.snapshot(CANARY)
    for means in ATTACKS.values():
        for _ in range(TRIES):
            means(world, {"x-model-version": version})
    window = difference(before, world.snapshot(CANARY, before), CANARY, STABLE, WEIGHT)
    for arm in counts(window):
        assert (arm.requests, arm.errors, arm.timed, arm.refused, arm.sent) == (0, 0, 0, 0, 0)
        assert sum(arm.outputs.values()) == 0


@pytest.mark.parametrize(
    "pin", [{"x-model-version": "2"}, {"x-model-version": "1"}, {}], ids=["canary", "stable", "split"]
)
def test_twenty_attacks_move_no_verdict(world: World, pin: dict[str, str]) -> None:
    """Every means in turn, twenty times, beside one user: at the canary, the stable, or whoever it meets."""
    world.split(CANARY)
    ended = threading.Event()
    troubles: list[str] = []
    rounds = 0

    def use() -> None:
        number = 0
        with world.client() as client:
            while not ended.is_set():
                number += 1
                answer = client.post(PREDICT, json={"instances": [{"x": number % 7}]})
                if answer.status_code != 200:
                    troubles.append(f"a user got {answer.status_code}: {answer.text}")

    def strike() -> None:
        nonlocal rounds
        while not ended.is_set():
            for name, means in ATTACKS.items():
                try:
                    means(world, pin)
                except Exception as error:
                    troubles.append(f"{name}: {error!r}")
            rounds += 1

    threads = [threading.Thread(target=use), threading.Thread(target=strike)]
    before = world.snapshot(CANARY)
    for thread in threads:
        thread.start()
    windows: list[Window] = []
    try:
        while rounds < TRIES or len(windows) < 5:
            after = world.snapshot(CANARY, before)
            windows.append(difference(before, after, CANARY, STABLE, WEIGHT))
            before = after
            verdict = judge(POLICY, windows)
            assert verdict.kind != "reject", verdict.sentence
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not troubles, troubles[:3]
    arms = [arm for window in windows for arm in counts(window)]
    assert sum(arm.errors for arm in arms) == 0
    assert min(sum(arm.requests for arm in arms[side::2]) for side in (0, 1)) > TRIES


def test_a_canary_that_hangs_is_found_by_clients_who_leave(world: World) -> None:
    """They wait a second and go: no answer, no error, nothing slow. What was sent is held against it."""
    world.split(HANGING)
    before = world.snapshot(HANGING)
    ended = threading.Event()

    def use() -> None:
        while not ended.is_set():
            with contextlib.suppress(httpx.TimeoutException), world.client(seconds=1) as client:
                client.post(PREDICT, json={"instances": [{"x": 13}]})

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    windows: list[Window] = []
    try:
        verdict = None
        end = time.monotonic() + 120
        while (verdict is None or verdict.kind != "reject") and time.monotonic() < end:
            after = world.snapshot(HANGING, before)
            windows.append(difference(before, after, HANGING, STABLE, WEIGHT))
            before = after
            verdict = judge(POLICY, windows)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert verdict is not None
    assert (verdict.kind, verdict.metric) == ("reject", "missing"), verdict.sentence
    assert "were never answered on the canary" in verdict.sentence
