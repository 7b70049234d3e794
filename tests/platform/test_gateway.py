"""The local data plane under real requests: who answers, what is counted, what happens when parts die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.adapters.local import LocalPlatform
from flows.adapters.stack import Supervisor
from flows.domain.errors import DependencyDown, ReleaseNotReady, RouteConflict
from flows.domain.release import Release
from flows.domain.routes import Match, Mirror, Routes
from flows.settings import Settings
from tests.platform import local_stack

START = Callable[..., Release]


@pytest.fixture
def client(local_settings: Settings) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=local_settings.gateway_url, trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def start(local: LocalPlatform, tmp_path: Path) -> START:
    def start(model: str, version: int, **behaviour: Any) -> Release:
        release = local_stack.release(tmp_path, model, version, **behaviour)
        local.start(release, local_stack.spec(model))
        return release

    return start


def versions(client: httpx.Client, count: int, model: str = "flights", **headers: str) -> Counter[str]:
    answers = [client.post(f"/models/{model}/predict", json={}, headers=headers) for _ in range(count)]
    return Counter(answer.headers.get("x-model-version", str(answer.status_code)) for answer in answers)


def counted(settings: Settings, cluster: str) -> Counter[str]:
    """Requests of a cluster by class, after Envoy's next flush."""
    time.sleep(1.2)
    admin = f"http://127.0.0.1:{settings.ports.gateway_admin}/stats/prometheus"
    lines = httpx.get(admin, trust_env=False).text.splitlines()
    counts: Counter[str] = Counter()
    for line in lines:
        if line.startswith("envoy_cluster_upstream_rq_xx{") and f'envoy_cluster_name="{cluster}"' in line:
            counts[line.split('envoy_response_code_class="')[1][0]] += int(line.rsplit(" ", 1)[1])
    return counts


# -- who answers ------------------------------------------------------------------------------------------


def test_the_split_is_as_written_and_switches_at_once(
    local: LocalPlatform, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    start("flights", 2)
    local.route("flights", Routes({"flights-v1": 80, "flights-v2": 20}))
    shares = versions(client, 500)
    # Four standard deviations of a binomial with n = 500, p = 0.2.
    assert abs(shares["2"] - 100) < 36
    assert shares["1"] + shares["2"] == 500
    local.route("flights", Routes({"flights-v1": 100, "flights-v2": 0}))
    assert versions(client, 100) == {"1": 100}
    local.route("flights", Routes({"flights-v2": 100}))
    assert versions(client, 100) == {"2": 100}


def test_no_request_fails_while_routes_and_servers_change(
    local: LocalPlatform, local_settings: Settings, start: START
) -> None:
    start("flights", 1)
    local.route("flights", Routes({"flights-v1": 100}))
    answers: Counter[int] = Counter()
    done = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=local_settings.gateway_url, trust_env=False) as client:
            while not done.is_set():
                answers[client.post("/models/flights/predict", json={}).status_code] += 1

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        second = start("flights", 2)
        for weight in (5, 25, 50, 100, 50, 0):
            local.route("flights", Routes({"flights-v1": 100 - weight, "flights-v2": weight}))
        local.route("flights", Routes({"flights-v1": 100}))
        local.stop(second)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert answers[200] > 50
    assert set(answers) == {200}


def test_the_version_header_reaches_every_release_of_the_map(
    local: LocalPlatform, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    start("flights", 2)
    local.route("flights", Routes({"flights-v1": 100, "flights-v2": 0}))
    assert versions(client, 20, **{"x-model-version": "2"}) == {"2": 20}
    assert versions(client, 20, **{"x-model-version": "1"}) == {"1": 20}
    missing = client.post("/models/flights/predict", json={}, headers={"x-model-version": "7"})
    assert missing.status_code == 404
    assert "flights" in missing.json()["detail"]


def test_who_names_a_version_is_in_no_count_of_it(
    local: LocalPlatform, local_settings: Settings, client: httpx.Client, start: START
) -> None:
    """Requests of class 5 and requests that nobody waits for, at the canary and at the stable."""
    start("flights", 1)
    start("flights", 2, status=500)
    local.route("flights", Routes({"flights-v1": 90, "flights-v2": 10}))
    before = [counted(local_settings, f"flights-v{version}") for version in (1, 2)]
    assert versions(client, 20, **{"x-model-version": "1"}) == {"1": 20}
    assert versions(client, 20, **{"x-model-version": "2"}) == {"2": 20}
    assert [counted(local_settings, f"flights-v{version}") for version in (1, 2)] == before
    assert counted(local_settings, "flights-v2@aside")["5"] == 20


@pytest.mark.parametrize(
    "header",
    [
        {"x-envoy-upstream-rq-timeout-ms": "1"},
        {"x-envoy-upstream-rq-per-try-timeout-ms": "1"},
        {"x-envoy-expected-rq-timeout-ms": "1"},
        {"grpc-timeout": "1n", "content-type": "application/grpc"},
    ],
    ids=lambda header: next(iter(header)),
)
def test_no_client_sets_the_gateways_own_deadline(
    local: LocalPlatform, client: httpx.Client, start: START, header: dict[str, str]
) -> None:
    """It would be the gateway's 504, which counts against the release."""
    start("flights", 1, seconds=0.1)
    local.route("flights", Routes({"flights-v1": 100}))
    assert versions(client, 5, **header) == {"1": 5}
    assert versions(client, 5, **header, **{"x-forwarded-for": "10.0.0.1"}) == {"1": 5}


@pytest.mark.parametrize(
    "name", ["x-request-id", "cookie", "authorization", "x-forwarded-for", "x-client-trace-id", "traceparent"]
)
def test_no_header_chooses_the_arm_of_a_split(
    local: LocalPlatform, client: httpx.Client, start: START, name: str
) -> None:
    start("flights", 1)
    start("flights", 2)
    local.route("flights", Routes({"flights-v1": 50, "flights-v2": 50}))
    shares = versions(client, 60, **{name: "00-11111111111111111111111111111111-2222222222222222-01"})
    assert min(shares["1"], shares["2"]) >= 10  # five standard deviations from 30


def test_a_server_is_not_stopped_under_those_who_name_it(
    local: LocalPlatform, local_settings: Settings, start: START
) -> None:
    start("flights", 1)
    second = start("flights", 2, seconds=1.5)
    local.route("flights", Routes({"flights-v1": 100, "flights-v2": 0}))
    answers = []

    def ask() -> None:
        with httpx.Client(base_url=local_settings.gateway_url, trust_env=False, timeout=10) as client:
            answers.append(versions(client, 1, **{"x-model-version": "2"}))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    local.route("flights", Routes({"flights-v1": 100}))
    local.stop(second)
    asking.join()
    assert answers == [{"2": 1}]


@pytest.mark.parametrize(
    ("path", "is_counted"),
    [
        ("predict", True),
        ("predict?x=1", True),
        ("v1/models/flights:predict", True),
        ("v1/models/flights:predict?x=1", True),
        ("v2/models/flights/infer", True),
        ("v2/models/flights/versions/1/infer", True),
        ("v1/models/flights", False),
        ("v1/models/flights:explain", False),
        ("v2/models/flights", False),
        ("batch-predict", False),
        ("batch-predict/0a/results?page=1", False),
        ("feedback", False),
    ],
)
def test_only_predictions_are_counted(
    local: LocalPlatform,
    local_settings: Settings,
    client: httpx.Client,
    start: START,
    path: str,
    is_counted: bool,
) -> None:
    """Anybody may ask for a job that no database keeps, and be answered 503."""
    start("flights", 1)
    local.route("flights", Routes({"flights-v1": 100}))
    before = counted(local_settings, "flights-v1")
    answer = client.post(f"/models/flights/{path}", json={})
    assert (answer.headers["x-model-version"], answer.json()["path"]) == ("1", f"/{path}")
    assert counted(local_settings, "flights-v1").total() - before.total() == is_counted


def test_header_and_cookie_matches_win_over_the_weights(
    local: LocalPlatform, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    start("flights", 2)
    matches = (
        Match("header", "X-Team", "data (a+b)", "flights-v2"),
        Match("cookie", "arm", "b.1", "flights-v2"),
    )
    local.route("flights", Routes({"flights-v1": 100, "flights-v2": 0}, matches))
    assert versions(client, 10) == {"1": 10}
    assert versions(client, 10, **{"x-team": "data (a+b)"}) == {"2": 10}
    assert versions(client, 10, cookie="session=x; arm=b.1; other=y") == {"2": 10}
    assert versions(client, 10, cookie="arm=b.1") == {"2": 10}
    for other in ("arm=b.12", "xarm=b.1", "arm=bx1", "session=arm"):
        assert versions(client, 3, cookie=other) == {"1": 3}, other


def test_a_visitor_of_an_ab_test_keeps_the_release_that_the_split_gave(
    local: LocalPlatform, local_settings: Settings, start: START
) -> None:
    start("flights", 1)
    start("flights", 2)
    arms = (Match("cookie", "arm", "a", "flights-v1"), Match("cookie", "arm", "b", "flights-v2"))
    local.route("flights", Routes({"flights-v1": 50, "flights-v2": 50}, arms))
    first: Counter[str] = Counter()
    for _ in range(20):
        with httpx.Client(base_url=local_settings.gateway_url, trust_env=False) as visitor:
            shares = versions(visitor, 5)
            assert len(shares) == 1, "the visitor was moved to another release"
            first.update(shares.keys())
    assert set(first) == {"1", "2"}


def test_a_mirror_gets_copies_that_nobody_counts_or_sees(
    local: LocalPlatform, local_settings: Settings, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    shadow = start("flights", 5, status=500)
    before = counted(local_settings, "flights-v5")
    local.route("flights", Routes({"flights-v1": 100}, mirror=Mirror("flights-v5", 100)))
    assert versions(client, 30) == {"1": 30}
    log = Path(shadow.bundle) / "requests.log"
    deadline = time.monotonic() + 5
    while log.read_text().count("/predict") < 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert log.read_text().count("/predict") == 30
    assert counted(local_settings, "flights-v5") == before
    assert counted(local_settings, "flights-v5@aside")["5"] == 30


def test_a_mirror_of_a_part_gets_that_part(local: LocalPlatform, client: httpx.Client, start: START) -> None:
    start("flights", 1)
    shadow = start("flights", 5)
    local.route("flights", Routes({"flights-v1": 100}, mirror=Mirror("flights-v5", 25)))
    versions(client, 200)
    time.sleep(0.3)
    copies = (Path(shadow.bundle) / "requests.log").read_text().count("/predict")
    assert 25 <= copies <= 75  # four standard deviations around 50


@pytest.mark.parametrize(
    "path",
    [
        "metrics",
        "docs",
        "openapi.json",
        "healthz",
        "readyz",
        "%6detrics",
        "metrics/",
        "Metrics",
        "./metrics",
        "v2/../metrics",
        "v2/%2e%2e/metrics",
        "metrics;x=1",
        "metrics?x=predict",
        "nowhere/predict",
        "predict/",
        "",
    ],
)
@pytest.mark.parametrize("version", [None, "1"])
def test_what_is_not_for_users_is_not_at_the_gateway(
    local: LocalPlatform, client: httpx.Client, start: START, path: str, version: str | None
) -> None:
    """Counts, documentation and probes of every model were there for anybody, pinned or not."""
    start("flights", 1)
    local.route("flights", Routes({"flights-v1": 100}))
    headers = {} if version is None else {"x-model-version": version}
    answer = client.send(raw(client, f"/models/flights/{path}", headers))
    assert answer.status_code == 404
    assert "x-model-version" not in answer.headers, "no server was asked"


def raw(client: httpx.Client, path: str, headers: dict[str, str]) -> httpx.Request:
    """A request whose path the client does not put right."""
    request = client.build_request("GET", "/", headers=headers)
    request.url = request.url.copy_with(raw_path=path.encode())
    return request


def test_what_is_asked_for_is_shown(
    local_settings: Settings, local: LocalPlatform, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    local._gateway._shown = ("docs",)
    local.route("flights", Routes({"flights-v1": 100}))
    assert client.get("/models/flights/docs").json()["path"] == "/docs"
    assert client.get("/models/flights/metrics").status_code == 404
    assert local_settings.gateway_shows == ()


# -- what the caller sees ---------------------------------------------------------------------------------


def test_path_query_and_request_id_reach_the_server_unchanged(
    local: LocalPlatform, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    local.route("flights", Routes({"flights-v1": 100}))
    answer = client.get("/models/flights/v2/models/flights?x=1", headers={"x-request-id": "order-17/a"})
    assert answer.json()["path"] == "/v2/models/flights?x=1"
    assert answer.json()["headers"]["x-request-id"] == "order-17/a"
    assert answer.headers["x-request-id"] == "order-17/a"
    without = client.get("/models/flights/v2")
    assert without.headers["x-request-id"] == without.json()["headers"]["x-request-id"] != ""


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [("/models/unheard-of/predict", 404, "no such model"), ("/", 404, "no such model")],
)
def test_an_unknown_model_is_a_problem_document(
    client: httpx.Client, local: LocalPlatform, path: str, status: int, word: str
) -> None:
    del local
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert word in problem["detail"]
    assert problem["instance"] == path


def test_a_model_that_nobody_serves_says_503_and_its_name(local: LocalPlatform, client: httpx.Client) -> None:
    local.route("flights", Routes())
    answer = client.post("/models/flights/predict", json={})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "flights" in answer.json()["detail"]


def test_a_server_that_takes_too_long_is_a_504_of_its_own_release(
    local_settings: Settings, client: httpx.Client, start: START
) -> None:
    start("flights", 6, seconds=2)
    impatient = LocalPlatform(
        local_settings.model_copy(update={"gateway_timeout_seconds": 0.3}), Supervisor(local_settings)
    )
    impatient.route("flights", Routes({"flights-v6": 100}))
    answer = client.post("/models/flights/predict", json={})
    assert answer.status_code == 504
    assert answer.headers["content-type"] == "application/problem+json"
    assert counted(local_settings, "flights-v6")["5"] == 1


# -- what is counted --------------------------------------------------------------------------------------


def test_an_unreachable_release_counts_against_itself_once_a_request(
    local: LocalPlatform, local_settings: Settings, client: httpx.Client, start: START
) -> None:
    release = start("flights", 7)
    local.route("flights", Routes({"flights-v7": 100}))
    local.stop(release)
    assert versions(client, 10) == {"503": 10}
    assert counted(local_settings, "flights-v7") == {"5": 10}


def test_a_request_that_reached_a_server_is_never_sent_twice(
    local: LocalPlatform, client: httpx.Client, start: START
) -> None:
    release = start("flights", 8, drop=True)
    local.route("flights", Routes({"flights-v8": 100}))
    assert client.post("/models/flights/predict", json={}).status_code == 503
    assert (Path(release.bundle) / "requests.log").read_text().count("/predict") == 1


def test_the_access_log_names_the_release(
    local: LocalPlatform, local_settings: Settings, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    local.route("flights", Routes({"flights-v1": 100}))
    client.post("/models/flights/predict", json={}, headers={"x-request-id": "logged-request"})
    log = local_settings.logs / "gateway-access.log"
    deadline = time.monotonic() + 15  # Envoy writes its log in batches, every ten seconds at the latest
    while "logged-request" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    [line] = [json.loads(line) for line in log.read_text().splitlines() if "logged-request" in line]
    assert (line["release"], line["status"], line["path"]) == ("flights-v1", 200, "/models/flights/predict")


# -- servers ----------------------------------------------------------------------------------------------


def test_the_server_is_told_what_the_contract_says(
    local: LocalPlatform, local_settings: Settings, start: START
) -> None:
    release = start("flights", 4)
    told = httpx.get(f"{local.url(release)}/", trust_env=False).json()["settings"]
    port = local.url(release).rsplit(":", 1)[1]
    secrets = [local_settings.server_secret_file, local_settings.personal_key_file]
    assert [file.stat().st_mode & 0o777 for file in secrets] == [0o600, 0o600]
    assert all(len(file.read_text()) >= 32 for file in secrets)
    assert told == {
        "SERVING_SECRET": secrets[0].read_text(),
        "SERVING_PERSONAL_KEY": secrets[1].read_text(),
        "SERVING_BUNDLE": release.bundle,
        "SERVING_BUNDLE_SHA256": release.sha256,
        "SERVING_MODEL": "flights",
        "SERVING_VERSION": "4",
        "SERVING_HOST": "127.0.0.1",
        "SERVING_PORT": port,
        "SERVING_REDIS_URL": local_settings.redis_url,
        "SERVING_DATABASE_URL": local_settings.registry_url,
        "SERVING_JOBS_URI": f"{local_settings.artifacts_uri}/jobs",
        "SERVING_DRAIN_SECONDS": "3",
    }


def test_start_waits_until_the_server_is_ready(start: START) -> None:
    begun = time.monotonic()
    start("flights", 1, ready_after=1.0)
    assert time.monotonic() - begun >= 1.0


def test_a_server_that_dies_while_starting_is_refused_early_with_its_own_words(
    local: LocalPlatform, tmp_path: Path
) -> None:
    release = local_stack.release(tmp_path, "flights", 9, crash=True)
    begun = time.monotonic()
    with pytest.raises(ReleaseNotReady, match="the model file is not a model: on purpose") as refused:
        local.start(release, local_stack.spec("flights", start_seconds=60))
    assert time.monotonic() - begun < 15, "it waited for the deadline although nothing was left to wait for"
    assert "\n" not in str(refused.value)
    assert local.running() == frozenset()


def test_a_killed_server_is_brought_back(local: LocalPlatform, start: START) -> None:
    release = start("flights", 1)
    first = httpx.get(f"{local.url(release)}/", trust_env=False).json()["pid"]
    time.sleep(1.1)  # supervisord calls it started after a second
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 10
    pid = None
    while pid in (None, first) and time.monotonic() < deadline:
        try:
            pid = httpx.get(f"{local.url(release)}/", trust_env=False).json()["pid"]
        except httpx.HTTPError:
            time.sleep(0.05)
    assert pid not in (None, first)


def test_stop_answers_what_is_under_way(local: LocalPlatform, local_settings: Settings, start: START) -> None:
    start("flights", 1)
    slow = start("flights", 2, seconds=1.0)
    local.route("flights", Routes({"flights-v2": 100}))
    answers: list[int] = []

    def ask() -> None:
        url = f"{local_settings.gateway_url}/models/flights/predict"
        answers.append(httpx.post(url, json={}, trust_env=False).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    local.route("flights", Routes({"flights-v1": 100}))
    local.stop(slow)
    asking.join()
    assert answers == [200]


# -- files, turns, restarts -------------------------------------------------------------------------------

WRITER = """
import sys
from flows.adapters.local import LocalPlatform
from flows.adapters.stack import Supervisor
from flows.domain.routes import Routes
from flows.settings import Settings
from tests.platform import local_stack

model = sys.argv[1]
settings = Settings()
platform = LocalPlatform(settings, Supervisor(settings))
for weight in (5, 10, 25, 50, 75, 90):
    platform.route(model, Routes({f"{model}-v1": 100 - weight, f"{model}-v2": weight}))
    assert platform.routes(model).weight(f"{model}-v2") == weight
"""


def test_promotions_of_two_models_in_two_processes_do_not_lose_each_others_routes(
    local: LocalPlatform, local_settings: Settings, start: START
) -> None:
    for model in ("flights", "digits"):
        start(model, 1)
        start(model, 2)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, model], env={**os.environ, **local_settings.environment()}
        )
        for model in ("flights", "digits")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    for model in ("flights", "digits"):
        assert local.routes(model) == Routes({f"{model}-v1": 10, f"{model}-v2": 90})


def test_an_edit_by_hand_shows_and_other_models_leave_it_alone(
    local: LocalPlatform, local_settings: Settings, start: START
) -> None:
    start("flights", 1)
    start("flights", 2)
    start("digits", 1)
    local.route("flights", Routes({"flights-v1": 90, "flights-v2": 10}))
    file = local_settings.gateway_folder / "routes.json"

    def edit(old: str, new: str) -> None:
        text = file.read_text()
        assert old in text
        replacement = file.with_name("edited")
        replacement.write_text(text.replace(old, new))
        replacement.replace(file)
        time.sleep(0.5)

    edit('"weight": 90', '"weight": 60')
    with pytest.raises(RouteConflict, match="flights"):
        local.routes("flights")
    edit('"weight": 10', '"weight": 40')
    edited = Routes({"flights-v1": 60, "flights-v2": 40})
    assert local.routes("flights") == edited
    local.route("digits", Routes({"digits-v1": 100}))
    assert local.routes("flights") == edited
    local.route("flights", Routes({"flights-v1": 100}))
    assert local.routes("flights") == Routes({"flights-v1": 100})


def test_a_gateway_that_died_comes_back_with_its_routes(
    local: LocalPlatform, local_settings: Settings, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    local.route("flights", Routes({"flights-v1": 100}))
    supervisor = Supervisor(local_settings)
    time.sleep(1.1)
    state = supervisor.state("envoy")
    assert state is not None
    psutil.Process(state.pid).kill()
    # A writer that comes just now waits for it.
    local.route("flights", Routes({"flights-v1": 100}))
    assert versions(client, 5) == {"1": 5}


def test_while_the_gateway_is_away_the_wanted_route_is_kept_for_its_return(
    local: LocalPlatform, local_settings: Settings, client: httpx.Client, start: START
) -> None:
    start("flights", 1)
    start("flights", 2)
    local.route("flights", Routes({"flights-v1": 50, "flights-v2": 50}))
    supervisor = Supervisor(local_settings)
    hasty = LocalPlatform(local_settings, supervisor, patience=0.5)
    supervisor.stop("envoy")
    try:
        with pytest.raises(DependencyDown, match="gateway"):
            hasty.route("flights", Routes({"flights-v1": 100}))
        with pytest.raises(DependencyDown, match="gateway"):
            hasty.routes("flights")
    finally:
        supervisor.start("envoy")
    local.route("digits", Routes())
    assert local.routes("flights") == Routes({"flights-v1": 100})
    assert versions(client, 10) == {"1": 10}


def test_what_envoy_refuses_is_taken_back(
    local: LocalPlatform, local_settings: Settings, start: START
) -> None:
    start("flights", 1)
    good = Routes({"flights-v1": 100})
    local.route("flights", good)
    file = local_settings.gateway_folder / "routes.json"
    before = file.read_text()
    hasty = LocalPlatform(local_settings, Supervisor(local_settings), patience=1)
    impossible = Match("header", "no\nheader", "x", "flights-v1")
    with pytest.raises(DependencyDown, match="flights"):
        hasty.route("flights", Routes({"flights-v1": 100}, (impossible,)))
    assert json.loads(file.read_text()) == json.loads(before)
    assert local.routes("flights") == good
