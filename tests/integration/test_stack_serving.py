"""The real model server under the local platform: supervised, routed, scraped, with the stack's own parts."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from flows.adapters.local import LocalPlatform
from flows.adapters.prometheus import PrometheusCounters
from flows.adapters.stack import Supervisor, up
from flows.domain.errors import DependencyDown, ReleaseNotReady
from flows.domain.judge.counters import Snapshot, difference
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Counts
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec, parse_spec
from flows.settings import Settings
from serving.inference.bundle import seal
from tests.platform import local_stack

MODEL = {
    "name": "doubles",
    "signature": {
        "inputs": [{"name": "x", "type": "number"}],
        "outputs": [{"name": "y", "type": "number"}],
    },
    "serving": {"runtime": {"kind": "handler"}},
    "resources": {"start_seconds": 60, "drain_seconds": 2},
}
HANDLER = """
def load(folder, device):
    return {factor}

def predict(model, rows):
    return [{{"y": row["x"] * model}} for row in rows]
"""


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with local_stack.local_settings(python=sys.executable) as settings:
        up(settings, print, only=("postgres", "redis", "envoy", "prometheus"))
        yield settings


@pytest.fixture(scope="module")
def platform(settings: Settings) -> LocalPlatform:
    return LocalPlatform(settings, Supervisor(settings))


def release(folder: Path, version: int, factor: int, handler: str = HANDLER, **other: Any) -> Release:
    model = MODEL | other
    bundle = folder / f"{model['name']}-v{version}"
    bundle.mkdir()
    (bundle / "model.yaml").write_text(yaml.safe_dump(model))
    (bundle / "handler.py").write_text(textwrap.dedent(handler.format(factor=factor)))
    return Release(str(model["name"]), version, str(bundle), seal(bundle))


@pytest.fixture(scope="module")
def first(platform: LocalPlatform, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release that runs."""
    running = release(tmp_path_factory.mktemp("bundles"), 1, 2)
    platform.start(running, spec())
    return running


def spec() -> ModelSpec:
    return parse_spec(yaml.safe_dump(MODEL), "model.yaml")


def eventually(check: Callable[[], Any], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := check()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert result
    return result


def query(settings: Settings, expression: str) -> list[dict[str, Any]]:
    url = f"{settings.prometheus_url}/api/v1/query"
    answer = httpx.get(url, params={"query": expression}, trust_env=False)
    results: list[dict[str, Any]] = answer.json()["data"]["result"]
    return results


def test_a_release_answers_through_the_gateway_and_is_counted_on_both_sides(
    settings: Settings, platform: LocalPlatform, first: Release
) -> None:
    platform.route("doubles", Routes({first.name: 100}))
    url = f"{settings.gateway_url}/models/doubles/predict"
    with httpx.Client(trust_env=False) as client:
        for number in range(20):
            headers = {"x-request-id": f"row-{number}"}
            answer = client.post(url, json={"instances": [{"x": number}]}, headers=headers)
            assert answer.json() == {"predictions": [number * 2]}
            assert answer.headers["x-model-version"] == "1"
            assert answer.headers["x-request-id"] == f"row-{number}"
        refused = client.post(url, json={"instances": [{"x": "not a number"}]})
        assert refused.status_code == 422
        assert refused.headers["content-type"] == "application/problem+json"
    served = 'modelserve_requests_total{model="doubles",version="1",code="200"}'
    eventually(lambda: [r for r in query(settings, served) if float(r["value"][1]) >= 20])
    routed = 'envoy_cluster_upstream_rq_xx{envoy_cluster_name="doubles-v1",envoy_response_code_class="2"}'
    eventually(lambda: [r for r in query(settings, routed) if float(r["value"][1]) == 20])
    refusals = 'envoy_cluster_upstream_rq_xx{envoy_cluster_name="doubles-v1",envoy_response_code_class="4"}'
    eventually(lambda: [r for r in query(settings, refusals) if float(r["value"][1]) == 1])
    with redis.Redis.from_url(settings.redis_url) as store:
        eventually(lambda: store.xlen("samples:doubles") > 0)


def test_a_bundle_with_another_digest_never_gets_ready_and_says_why(
    platform: LocalPlatform, tmp_path: Path
) -> None:
    good = release(tmp_path, 2, 3)
    forged = Release("doubles", 2, good.bundle, "0" * 64)
    begun = time.monotonic()
    with pytest.raises(ReleaseNotReady, match=r"doubles-v2 .*manifest") as refused:
        platform.start(forged, spec())
    assert "\n" not in str(refused.value)
    assert time.monotonic() - begun < 45
    assert "doubles-v2" not in platform.running()


def test_a_second_release_takes_over_without_a_failed_request(
    settings: Settings, platform: LocalPlatform, first: Release, tmp_path: Path
) -> None:
    platform.start(release(tmp_path, 4, 4), spec())
    url = f"{settings.gateway_url}/models/doubles/predict"
    answers = []
    with httpx.Client(trust_env=False) as client:

        def ask(times: int) -> list[float]:
            return [client.post(url, json={"instances": [1]}).json()["predictions"][0] for _ in range(times)]

        for weight in (0, 50, 100):
            platform.route("doubles", Routes({first.name: 100 - weight, "doubles-v4": weight}))
            answers.append(ask(20))
        platform.route("doubles", Routes({"doubles-v4": 100}))
        platform.stop(first)
        answers.append(ask(5))
    assert answers[0] == [2.0] * 20
    assert set(answers[1]) == {2.0, 4.0}
    assert answers[2] == [4.0] * 20
    assert answers[3] == [4.0] * 5


SLOW = {
    "name": "slow",
    "serving": {"runtime": {"kind": "handler"}, "cache": {"enabled": True, "timeout_seconds": 1.0}},
}
SLOW_HANDLER = "import time\n" + HANDLER.replace("    return [", "    time.sleep(0.1)\n    return [")


def test_a_cold_cache_is_told_from_a_slow_release(
    settings: Settings, platform: LocalPlatform, tmp_path: Path
) -> None:
    """Server, Redis, gateway and Prometheus: known answers are counted apart, and are not held against it."""
    for version in (1, 2):
        platform.start(
            release(tmp_path, version, 2, SLOW_HANDLER, **SLOW),
            parse_spec(yaml.safe_dump(MODEL | SLOW), "model.yaml"),
        )
    url = f"{settings.gateway_url}/models/slow/predict"
    counters = PrometheusCounters(settings.prometheus_url)

    def ask(version: int, rows: range) -> list[bool]:
        """Whether each answer was known."""
        platform.route("slow", Routes({f"slow-v{version}": 100, f"slow-v{3 - version}": 0}))
        with httpx.Client(trust_env=False) as client:
            answers = [client.post(url, json={"instances": [{"x": row}]}) for row in rows]
        assert [answer.json()["predictions"] for answer in answers] == [[2 * row] for row in rows]
        assert all("x-envoy-upstream-canary" not in answer.headers for answer in answers)
        return [answer.headers.get("x-cache") == "hit" for answer in answers]

    def seen(number: int, earlier: Snapshot | None) -> Snapshot | None:
        """The counters, once the gateway has counted and timed so many requests."""
        try:
            found = counters.snapshot(["slow-v1", "slow-v2"], earlier)
        except DependencyDown:
            return None
        for kind, label in (("requests", "2"), ("latency", "inf")):
            counted = [v for one, v in found.counters.items() if (one.kind, one.label) == (kind, label)]
            if sum(counted) != number:
                return None
        return found if not found.doubt(60) else None

    ask(1, range(30))
    before = eventually(lambda: seen(30, None), 40)
    known = [*ask(1, range(30)), *ask(1, range(30, 50))]
    computed = ask(2, range(50))
    assert sum(known) >= 25, "a busy Redis may answer too late now and then"
    assert not any(computed)
    after = eventually(lambda: seen(130, before), 40)
    window = difference(before, after, "slow-v2", "slow-v1", 50)
    assert window.observed, window.why
    assert window.stable is not None
    assert (window.stable.timed, window.canary.timed) == (50, 50)
    assert (window.stable.cached, window.canary.cached) == (sum(known), 0)

    def judged(stable: Counts) -> Verdict:
        """Of a minute like this."""
        policy = PromotionPolicy(warm_up_seconds=0, require_metrics=False)
        minute = [replace(window, start=5.0 * n, end=5.0 * n + 5, stable=stable) for n in range(24)]
        return judge(policy, minute)

    assert judged(window.stable).kind != "reject"
    alike = judged(replace(window.stable, cached=0, cached_slow={}))
    assert (alike.kind, alike.metric) == ("reject", "latency"), "what would be said of it otherwise"
