"""What a Prometheus may answer, well or badly: a typed outcome each. The fake is a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from flows.adapters.prometheus import PrometheusCounters
from flows.domain.errors import DependencyDown
from flows.domain.judge.counters import Series, Snapshot, difference

NOW = 1_700_000_000.0
RELEASES = ["flights-v1", "flights-v2"]


class FakePrometheus(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.status = 200
        self.body: bytes = b""
        self.queries: list[str] = []

    def answer(self, content: Any, status: int = 200) -> None:
        self.status = status
        self.body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def vector(self, *samples: tuple[str, str], at: float = NOW, **more: Any) -> None:
        """Samples as `name{label="value"}` texts with their values."""
        result = [{"metric": _labels(text), "value": [at, value]} for text, value in samples]
        self.answer({"status": "success", "data": {"resultType": "vector", "result": result}} | more)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: FakePrometheus

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.queries.append(form["query"][0])
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def _labels(text: str) -> dict[str, str]:
    name, _, rest = text.partition("{")
    pairs = (pair.split("=", 1) for pair in rest.rstrip("}").split(",") if pair)
    return {"__name__": name} | {key.strip(): value.strip('"') for key, value in pairs}


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    server = FakePrometheus()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


IDENTITY = 'model="flights",version="2"'
TOOK = "modelserve_request_duration_seconds_bucket"
SCRAPED = ('traffic:scrape:seconds{pod="a"}', str(NOW - 1))
CANARY = ('traffic:requests:count{model="flights",version="2",class="2",pod="a"}', "40")


def requests(canary: str, *extra: tuple[str, str]) -> list[tuple[str, str]]:
    return [
        SCRAPED,
        (CANARY[0], canary),
        ('traffic:requests:count{model="flights",version="1",class="2",pod="a"}', "360"),
        *extra,
    ]


def test_all_kinds_of_one_moment_are_read_by_one_query(fake: FakePrometheus) -> None:
    fake.vector(
        *requests("40"),
        ('traffic:latency:bucket{model="flights",version="2",le="0.25",pod="a"}', "30"),
        ('traffic:latency:bucket{model="flights",version="2",le="+Inf",pod="a"}', "40"),
        ('modelserve_outputs_total{model="flights",version="2",bin="le_0.1",instance="s1"}', "12"),
        (
            'modelserve_requests_total{model="flights",version="2",route="/predict",code="200",instance="s1"}',
            "7",
        ),
        ('modelserve_requests_total{model="flights",version="2",route="/v2",code="202",instance="s1"}', "5"),
        ('modelserve_requests_total{model="flights",version="2",route="/v2",code="500",instance="s1"}', "1"),
        ('traffic:requests:count{model="flights",version="11",class="2",pod="a"}', "9"),
        (f'{TOOK}{{{IDENTITY},route="/predict",le="0.25",instance="s1"}}', "6"),
        (f'{TOOK}{{{IDENTITY},route="/v2",le="0.25",instance="s1"}}', "5"),
        (f'{TOOK}{{{IDENTITY},route="/v2",le="+Inf",instance="s1"}}', "5"),
    )
    found = PrometheusCounters(fake.url).snapshot(RELEASES)
    assert found.at == NOW
    assert found.scraped == {"a": NOW - 1}
    assert found.counters == {
        Series("requests", "flights-v2", "2", "a"): 40,
        Series("requests", "flights-v1", "2", "a"): 360,
        Series("latency", "flights-v2", "0.25", "a"): 30,
        Series("latency", "flights-v2", "inf", "a"): 40,
        Series("outputs", "flights-v2", "le_0.1", "s1"): 12,
        Series("served", "flights-v2", "2", "s1"): 12,
        Series("served", "flights-v2", "5", "s1"): 1,
        Series("took", "flights-v2", "0.25", "s1"): 11,
        Series("took", "flights-v2", "inf", "s1"): 5,
    }
    assert len(fake.queries) == 1
    assert 'model="flights",version=~"1|2"' in fake.queries[0]


def test_duplicates_of_two_replicas_are_one_counter(fake: FakePrometheus) -> None:
    fake.vector(
        SCRAPED,
        ('traffic:scrape:seconds{pod="a",replica="y"}', str(NOW - 4)),
        (CANARY[0].replace("}", ',replica="x"}'), "40"),
        (CANARY[0].replace("}", ',replica="y"}'), "38"),
    )
    found = PrometheusCounters(fake.url).snapshot(RELEASES)
    assert found.counters == {Series("requests", "flights-v2", "2", "a"): 40}
    assert found.scraped == {"a": NOW - 1}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-3"])
def test_a_value_that_is_no_count_makes_the_window_unobserved(fake: FakePrometheus, value: str) -> None:
    counters = PrometheusCounters(fake.url)
    fake.vector(*requests("40"))
    before = counters.snapshot(RELEASES)
    fake.vector(*requests(value), at=NOW + 15)
    after = counters.snapshot(RELEASES, before)
    window = difference(before, after, "flights-v2", "flights-v1", 5)
    assert not window.observed
    assert "traffic:requests:count of 2 is" in window.why


def test_no_data_at_all_is_not_zero(fake: FakePrometheus) -> None:
    counters = PrometheusCounters(fake.url)
    fake.vector()
    with pytest.raises(DependencyDown, match="scrapes no gateway"):
        counters.snapshot(RELEASES)
    fake.vector(*requests("40"))
    before = counters.snapshot(RELEASES)
    fake.vector()
    window = difference(before, counters.snapshot(RELEASES, before), "flights-v2", "flights-v1", 5)
    assert not window.observed
    assert "scrapes no gateway" in window.why


def test_an_answer_in_part_is_unobserved(fake: FakePrometheus) -> None:
    counters = PrometheusCounters(fake.url)
    fake.vector(*requests("40"))
    before = counters.snapshot(RELEASES)
    fake.vector(*requests("41"), at=NOW + 15, warnings=["store 10.0.0.3 is away"])
    window = difference(before, counters.snapshot(RELEASES, before), "flights-v2", "flights-v1", 5)
    assert "answered in part: store 10.0.0.3 is away" in window.why


def test_a_first_snapshot_must_be_fresh(fake: FakePrometheus) -> None:
    fake.vector(('traffic:scrape:seconds{pod="a"}', str(NOW - 300)), CANARY)
    with pytest.raises(DependencyDown, match="last scraped 300 s ago"):
        PrometheusCounters(fake.url).snapshot(RELEASES)
    fake.vector(('traffic:scrape:seconds{pod="a"}', "0"), CANARY)
    with pytest.raises(DependencyDown, match="gateway a does not answer Prometheus"):
        PrometheusCounters(fake.url).snapshot(RELEASES)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"<html>Sign in</html>", 200, "does not answer as Prometheus does"),
        (b"Service Unavailable", 503, "HTTP 503"),
        ({"status": "error", "error": "query timed out"}, 422, "refused a query: query timed out"),
        (
            {"status": "success", "data": {"resultType": "scalar", "result": [0, "1"]}},
            200,
            "as Prometheus does",
        ),
        ({"status": "success"}, 200, "as Prometheus does"),
        ([], 200, "as Prometheus does"),
    ],
)
def test_answers_that_are_none(fake: FakePrometheus, content: Any, status: int, message: str) -> None:
    fake.answer(content, status)
    with pytest.raises(DependencyDown, match=message) as caught:
        PrometheusCounters(fake.url).snapshot(RELEASES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sample",
    [
        # No class: an error would count as a success. No bound, no version, another version's rules.
        'traffic:requests:count{model="flights",version="2",pod="a"}',
        'traffic:latency:bucket{model="flights",version="2",pod="a"}',
        'traffic:latency:bucket{model="flights",version="2",le="fast",pod="a"}',
        'traffic:requests:count{model="flights",class="2",pod="a"}',
        'traffic:requests:rate{model="flights",version="2",class="2",pod="a"}',
    ],
)
def test_a_series_that_cannot_be_read_is_not_taken_for_something_else(
    fake: FakePrometheus, sample: str
) -> None:
    fake.vector(*requests("40", (sample, "7")))
    with pytest.raises(DependencyDown, match="holds a series that cannot be read") as caught:
        PrometheusCounters(fake.url).snapshot(RELEASES)
    assert "\n" not in str(caught.value)


def test_a_native_histogram_is_no_counter(fake: FakePrometheus) -> None:
    series = {"__name__": "traffic:latency:bucket", "model": "flights", "version": "2", "le": "1"}
    result = [{"metric": {"__name__": "traffic:scrape:seconds", "pod": "a"}, "value": [NOW, str(NOW)]}]
    result += [{"metric": series, "histogram": [NOW, {"count": "3"}]}]
    fake.answer({"status": "success", "data": {"resultType": "vector", "result": result}})
    with pytest.raises(DependencyDown, match="'value'"):
        PrometheusCounters(fake.url).snapshot(RELEASES)


def test_several_series_of_a_release_are_kept_apart_and_counted_once_each(fake: FakePrometheus) -> None:
    def moment(at: float, a: int, b: int) -> list[tuple[str, str]]:
        name = 'traffic:requests:count{model="flights",version="2",class="2",pod="%s"}'
        scraped = 'traffic:scrape:seconds{pod="%s"}'
        up = [(scraped % pod, str(at - 1)) for pod in "ab"]
        return [*up, (name % "a", str(a)), (name % "b", str(b))]

    counters = PrometheusCounters(fake.url)
    fake.vector(*moment(NOW, 40, 1000))
    before = counters.snapshot(RELEASES)
    # One gateway began again: added up first, the sum would have gone down by 938.
    fake.vector(*moment(NOW + 15, 52, 50), at=NOW + 15)
    window = difference(before, counters.snapshot(RELEASES, before), "flights-v2", "flights-v1", 5)
    assert (window.observed, window.canary.requests) == (True, 12 + 50)


def test_nobody_there() -> None:
    with pytest.raises(DependencyDown, match="does not answer"):
        PrometheusCounters("http://127.0.0.1:9", timeout_seconds=1).snapshot(RELEASES)


def test_releases_are_of_one_model(fake: FakePrometheus) -> None:
    with pytest.raises(ValueError, match="one model"):
        PrometheusCounters(fake.url).snapshot(["flights-v1", "digits-v1"])


def test_the_last_hours_traffic_is_counted_across_resets(fake: FakePrometheus) -> None:
    def series(code: str, values: list[float]) -> dict[str, Any]:
        points = [[NOW + 10 * index, str(value)] for index, value in enumerate(values)]
        return {"metric": {"class": code, "pod": "a"}, "values": points}

    result = [series("2", [100, 300, 50, 149]), series("5", [0, 1, 1, 1])]
    fake.answer({"status": "success", "data": {"resultType": "matrix", "result": result}})
    rps, errors = PrometheusCounters(fake.url).recent("flights")
    assert rps == pytest.approx((200 + 50 + 99 + 1) / 30)
    assert errors == pytest.approx(1 / 350)
    fake.answer({"status": "success", "data": {"resultType": "matrix", "result": []}})
    assert PrometheusCounters(fake.url).recent("flights") == (0.0, 0.0)
    # What is no count tells nothing, and does not make the plan's numbers NaN.
    torn = [series("2", [100, float("nan"), 300]), series("5", [float("nan")])]
    fake.answer({"status": "success", "data": {"resultType": "matrix", "result": torn}})
    assert PrometheusCounters(fake.url).recent("flights") == (pytest.approx(200 / 20), 0.0)
    del torn[0]["metric"]["class"]
    fake.answer({"status": "success", "data": {"resultType": "matrix", "result": torn}})
    with pytest.raises(DependencyDown, match="'class'"):
        PrometheusCounters(fake.url).recent("flights")


def test_snapshots_of_an_answer_survive_json(fake: FakePrometheus) -> None:
    fake.vector(*requests("40"))
    found = PrometheusCounters(fake.url).snapshot(RELEASES)
    assert Snapshot.from_json(json.loads(json.dumps(found.to_json()))) == found
