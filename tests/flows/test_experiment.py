"""An A/B test over a real registry and a real Redis: it decides, stops, resumes, and never fights."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from flows.domain.cluster.manifests import PINNED_ANNOTATION
from flows.domain.errors import DependencyDown, PromotionRunning, ReleaseNotReady
from flows.domain.experiment import Plan
from flows.domain.promotion import State, settled
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import parse_spec
from flows.steps.experimenting import run
from flows.sweep import sweep_once
from flows.wiring import ControlPlane
from tests.flows.conftest import SPEC
from tests.platform.fake_kubernetes import FakeKubernetes, Thing
from tests.platform.kubernetes_world import DIGEST, kubernetes_platform

PLAN = Plan("flights", "flights-v1", "flights-v2", measure="late", sticky="header")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        until = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < until, "redis-server does not start"
                time.sleep(0.05)
    yield url
    server.terminate()
    server.wait()


class Days:
    """A clock whose sleeps are the places where the world goes on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happens: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        self.happens()


class World:
    """Visitors who get answers from both releases and report what became of them."""

    def __init__(self, url: str, accuracy: dict[str, float]) -> None:
        self.client: Any = redis.Redis.from_url(url)
        self.client.flushall()
        self.accuracy = accuracy
        self.count = 0

    def visit(self, rows: int) -> None:
        """As many rows again for each release; exactly its accuracy of them are right."""
        for release, share in self.accuracy.items():
            for place in range(rows):
                self.count += 1
                right = (place + 0.5) / rows < share
                key = {"request_id": f"r{self.count}", "row": 0, "at": 0}
                sample = {**key, "release": release, "features": {}, "prediction": {"late": True}}
                outcome = {**key, "outcome": right}
                # Delayed, early and repeated outcomes alike.
                first, second = (sample, outcome) if self.count % 3 else (outcome, sample)
                for content in (first, second, outcome):
                    stream = "samples" if "release" in content else "outcomes"
                    self.client.xadd(f"{stream}:flights", {"data": json.dumps(content)})
        self.client.xadd("outcomes:flights", {"data": "not json"})
        self.client.xadd("samples:flights", {"other": "field"})


@pytest.fixture
def days() -> Days:
    return Days()


@pytest.fixture
def in_service(plane: ControlPlane, story: Any, redis_url: str, days: Days) -> ControlPlane:
    """v2 is stable, v1 the warm previous release."""
    story.register(1, 2, 3)
    story.promoted(1)
    story.promoted(2)
    settings = plane.settings.model_copy(update={"redis_url": redis_url})
    return replace(plane, settings=settings, clock=days)


@pytest.fixture
def world(redis_url: str) -> Iterator[World]:
    world = World(redis_url, {"flights-v1": 0.70, "flights-v2": 0.80})
    yield world
    world.client.close()


def go(plane: ControlPlane, plan: Plan = PLAN, seconds: float = 3600, minimum: int = 100) -> Any:
    said: list[str] = []
    ended = run(plane, plan, minimum, seconds, look_seconds=15, say=said.append)
    return ended, said


def test_outcomes_decide_and_the_traffic_goes_back(
    in_service: ControlPlane, world: World, days: Days, platform: Any
) -> None:
    routes_seen: list[Routes] = []

    def happens() -> None:
        routes_seen.append(in_service.platform.routes("flights"))
        world.visit(100)

    days.happens = happens
    ended, said = go(in_service)
    assert ended.why == "decided"
    assert ended.comparison.better == "flights-v2"
    assert ended.comparison.a.mean == pytest.approx(0.70)
    assert ended.comparison.b.mean == pytest.approx(0.80)
    assert ended.comparison.low > 0
    assert all(seen == PLAN.routes() for seen in routes_seen)
    assert in_service.platform.routes("flights") == Routes({"flights-v1": 0, "flights-v2": 100})
    assert said[0].startswith("not decided")
    assert platform.changes[-1] == ("flights", Routes({"flights-v1": 0, "flights-v2": 100}))


def test_outcomes_from_before_do_not_count(in_service: ControlPlane, world: World) -> None:
    world.visit(2000)
    ended, _ = go(in_service, seconds=30)
    assert ended.why == "out of time"
    assert (ended.comparison.a.count, ended.comparison.b.count) == (0, 0)
    assert "not decided" in ended.sentence


def test_nobody_decides_on_few_outcomes(in_service: ControlPlane, world: World, days: Days) -> None:
    world.accuracy = {"flights-v1": 0.0, "flights-v2": 1.0}
    days.happens = lambda: world.visit(15) if days.now < 20 else None
    ended, _ = go(in_service, seconds=60, minimum=100)
    assert ended.comparison.better == "flights-v2"
    assert ended.why == "out of time"


def test_a_promotion_ends_it_and_keeps_its_own_route(
    in_service: ControlPlane, world: World, days: Days, story: Any
) -> None:
    def happens() -> None:
        if days.now == 30:
            story.begin(3, 25)

    days.happens = happens
    ended, _ = go(in_service)
    assert ended.why == "route changed"
    assert story.weights() == {"flights-v2": 75, "flights-v3": 25}
    del world


def test_a_hand_that_moves_the_traffic_ends_it(in_service: ControlPlane, world: World, days: Days) -> None:
    by_hand = Routes({"flights-v1": 10, "flights-v2": 90})
    days.happens = lambda: in_service.platform.route("flights", by_hand)
    ended, _ = go(in_service)
    assert ended.why == "route changed"
    assert in_service.platform.routes("flights") == by_hand
    del world


def test_a_running_promotion_is_not_disturbed(in_service: ControlPlane, story: Any, world: World) -> None:
    story.begin(3, 5)
    before = in_service.platform.routes("flights")
    with pytest.raises(PromotionRunning, match="start the experiment when that has ended"):
        go(in_service)
    assert in_service.platform.routes("flights") == before
    del world


def test_a_release_out_of_service_is_refused(in_service: ControlPlane, world: World) -> None:
    with pytest.raises(ReleaseNotReady, match=r"flights-v3 is not in service .* promote it first"):
        go(in_service, Plan("flights", "flights-v2", "flights-v3"))
    del world


def test_cancelling_gives_the_traffic_back(in_service: ControlPlane, world: World, days: Days) -> None:
    def cancel() -> None:
        raise KeyboardInterrupt

    days.happens = cancel
    with pytest.raises(KeyboardInterrupt):
        go(in_service)
    assert in_service.platform.routes("flights") == Routes({"flights-v1": 0, "flights-v2": 100})
    del world


def test_a_run_that_died_is_taken_up_with_its_outcomes(
    in_service: ControlPlane, world: World, days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        world.visit(50)
        monkeypatch.setattr(
            "flows.steps.experimenting._give_back", lambda *_: None
        )  # as kill -9 would have it
        raise KeyboardInterrupt

    days.happens = die
    with pytest.raises(KeyboardInterrupt):
        go(in_service)
    monkeypatch.undo()
    assert in_service.platform.routes("flights") == PLAN.routes()
    days.happens = lambda: None
    ended, _ = go(in_service, seconds=15)
    assert (ended.comparison.a.count, ended.comparison.b.count) == (50, 50)


def test_a_killed_experiment_is_swept_and_a_living_one_is_not(
    in_service: ControlPlane,
    world: World,
    days: Days,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
) -> None:
    def silent_for(seconds: int) -> None:
        with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
            cursor.execute("UPDATE beats SET at = now() - make_interval(secs => %s)", (seconds,))
        connection.close()

    def die() -> None:
        assert sweep_once(in_service).given_back == ()
        assert in_service.platform.routes("flights") == PLAN.routes()
        monkeypatch.setattr("flows.steps.experimenting._give_back", lambda *_: None)
        raise KeyboardInterrupt

    days.happens = die
    with pytest.raises(KeyboardInterrupt):
        go(in_service)
    monkeypatch.undo()
    silent_for(60)
    assert sweep_once(in_service).given_back == ()  # it may be taken up again
    silent_for(1000)
    (sentence,) = sweep_once(in_service).given_back
    assert "an experiment that nobody drives any more was ended" in sentence
    assert in_service.platform.routes("flights") == Routes({"flights-v1": 0, "flights-v2": 100})
    assert sweep_once(in_service).given_back == ()
    del world


def test_one_experiment_in_the_way_keeps_no_other_from_being_given_back(
    in_service: ControlPlane, world: World, days: Days, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    def die() -> None:
        monkeypatch.setattr("flows.steps.experimenting._give_back", lambda *_: None)
        raise KeyboardInterrupt

    days.happens = die
    with pytest.raises(KeyboardInterrupt):
        go(in_service)
    monkeypatch.undo()
    registry = in_service.registry
    gone = Plan("absent", "absent-v1", "absent-v2")  # a model that the registry does not know any more
    registry.note("absent", "experiment-started", {"plan": asdict(gone), "look_seconds": 1})
    registry.hear_experiment("absent")
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE beats SET at = now() - interval '1000 seconds'")
    connection.close()
    swept = sweep_once(in_service)
    assert [sentence.partition(":")[0] for sentence in swept.given_back] == ["flights"]
    assert [problem.partition(":")[0] for problem in swept.problems] == ["absent"]
    assert in_service.platform.routes("flights") == Routes({"flights-v1": 0, "flights-v2": 100})
    del world


def test_redis_away_for_a_while(in_service: ControlPlane, world: World, days: Days, monkeypatch: Any) -> None:
    away = True

    def happens() -> None:
        nonlocal away
        world.visit(100)
        away = days.now < 60

    from flows.adapters.outcomes import OutcomeStream

    call = OutcomeStream._call

    def patchy(self: OutcomeStream, command: str, *arguments: Any, **options: Any) -> list[Any]:
        if away and command == "xrange":
            raise DependencyDown("Redis does not answer: the experiment goes on when it is back")
        return call(self, command, *arguments, **options)

    monkeypatch.setattr(OutcomeStream, "_call", patchy)
    days.happens = happens
    ended, said = go(in_service)
    assert ended.why == "decided"
    assert "Redis does not answer" in said[0]


def test_redis_that_is_not_there(in_service: ControlPlane, tmp_path: Path) -> None:
    settings = in_service.settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none.sock"})
    before = in_service.platform.routes("flights")
    with pytest.raises(DependencyDown, match="Redis does not answer"):
        go(replace(in_service, settings=settings))
    assert in_service.platform.routes("flights") == before


# -- on a cluster, where the arms of a test are kept at their size


@pytest.fixture
def cluster() -> FakeKubernetes:
    return FakeKubernetes()


@pytest.fixture
def on_a_cluster(
    in_service: ControlPlane, cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ControlPlane]:
    """Two promoted releases of the model `digits`."""
    with kubernetes_platform(cluster, tmp_path, monkeypatch.setenv) as platform:
        plane = replace(in_service, platform=platform)
        for version in (1, 2):
            release = Release(
                "digits", version, f"s3://bundles/digits/{version}", f"{version:064x}", f"r/digits@{DIGEST}"
            )
            spec_text = SPEC.replace("flights", "digits")
            plane.registry.register(release, spec_text)
            promotion = plane.registry.begin("digits", version, f"run-{version}", 3600, 60)
            platform.start(release, parse_spec(spec_text, "model.yaml"))
            with plane.registry.turn("digits") as turn:
                turn.record_image(promotion, f"r/digits@{DIGEST}")
                turn.record_weight(promotion, 100)
                turn.crown(promotion)
                standing = turn.standing()
                routes = settled(standing.stable, standing.previous)
                turn.intend_route(routes)
                platform.route("digits", routes)
                turn.end(promotion, State.PROMOTED, "certified")
            platform.settle("digits")
        yield plane


def pinned(cluster: FakeKubernetes) -> set[str]:
    return {
        thing["metadata"]["name"]
        for (_, plural, _, _), thing in cluster.objects.items()
        if plural == "horizontalpodautoscalers"
        and PINNED_ANNOTATION in (thing["metadata"].get("annotations") or {})
    }


def test_both_arms_keep_their_size_until_it_ends(
    on_a_cluster: ControlPlane, cluster: FakeKubernetes, days: Days, world: World
) -> None:
    during: list[set[str]] = []
    days.happens = lambda: during.append(pinned(cluster))
    go(on_a_cluster, replace(PLAN, model="digits", a="digits-v1", b="digits-v2"), seconds=30)
    assert during == [{"digits-v1", "digits-v2"}] * 2
    assert pinned(cluster) == set()
    del world


def test_an_arm_that_does_not_start_leaves_nobody_pinned(
    on_a_cluster: ControlPlane, cluster: FakeKubernetes, world: World
) -> None:
    def quota(_: FakeKubernetes, deployment: Thing) -> None:
        message = 'pods "digits-v1-" is forbidden: exceeded quota: servers'
        condition = {"type": "ReplicaFailure", "status": "True", "message": message}
        deployment["status"] = {"conditions": [condition]}

    cluster.kubelet = quota
    pin = {"metadata": {"annotations": {PINNED_ANNOTATION: "1"}}}
    key = ("autoscaling", "horizontalpodautoscalers", cluster.namespace, "digits-v2")
    cluster.merge(key, pin)
    with pytest.raises(ReleaseNotReady, match="exceeded quota"):
        go(on_a_cluster, replace(PLAN, model="digits", a="digits-v1", b="digits-v2"))
    assert pinned(cluster) == set()
    assert on_a_cluster.platform.routes("digits") == Routes({"digits-v1": 0, "digits-v2": 100})
    del world
