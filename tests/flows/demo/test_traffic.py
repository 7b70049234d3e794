"""The replay against a gateway that behaves as told: what it sends, counts, and never hides."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from flows.demo import traffic
from flows.demo.traffic_rows import Selection
from flows.demo.traffic_statistics import NOBODY, Answers, Statistics
from flows.demo.traffic_users import Replay
from flows.domain.errors import DependencyDown, ModelServeError

FIRST = datetime(2013, 7, 1, 6, 0)
Behaviour = Callable[["Gateway", int, web.Request], "tuple[int, dict[str, str]] | None"]
"""Number of the request -> status and headers; None: hang up without an answer."""


def good(_gateway: Gateway, _number: int, _request: web.Request) -> tuple[int, dict[str, str]]:
    return 200, {"X-Model-Version": "1"}


@dataclass
class Gateway:
    """A real HTTP server in a thread of its own; it remembers everything that it was sent."""

    behaviour: Behaviour = good
    seconds: float = 0.0
    """How long an answer takes."""
    url: str = ""
    predictions: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    """When, request id, body."""
    feedback: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)
    most_at_once: int = 0
    healthy: bool = True
    _at_once: int = 0

    async def predict(self, request: web.Request) -> web.Response:
        number = len(self.predictions)
        request_id = request.headers["X-Request-Id"]
        self.predictions.append((time.monotonic(), request_id, await request.json()))
        self.cookies += request.headers.getall("Cookie", [])
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(self.seconds)
        self._at_once -= 1
        told = self.behaviour(self, number, request)
        if told is None:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        status, headers = told
        headers = {"X-Feedback-Id": request_id, **headers}
        return web.json_response({"predictions": [0.5]}, status=status, headers=headers)

    async def take_feedback(self, request: web.Request) -> web.Response:
        self.feedback.append((time.monotonic(), await request.json()))
        return web.json_response({"status": "accepted"}, status=202)

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        application = web.Application()
        application.router.add_post("/models/flights/predict", self.predict)
        application.router.add_post("/models/flights/feedback", self.take_feedback)
        application.router.add_get("/models/flights/v2/health/ready", self.health)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway, started = Gateway(), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(gateway.serve(started, stop)))
    thread.start()
    assert started.wait(10)
    yield gateway
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """1 000 rows, one every ten minutes from the first of July on; every fifth has no outcome."""
    return _write_rows(tmp_path / "rows.parquet", 1000)


def _write_rows(path: Path, count: int) -> Path:
    table = pa.table(
        {
            "at": pa.array([FIRST + timedelta(minutes=10 * number) for number in range(count)]),
            "outcome": pa.array([None if number % 5 == 0 else number % 2 for number in range(count)]),
            "number": pa.array(range(count)),
            "carrier": pa.array(["MQ"] * count),
            "age": pa.array([None if number % 3 == 0 else 1.5 for number in range(count)]),
        }
    )
    pq.write_table(table, path, row_group_size=100)
    return path


def _replay(gateway: Gateway, rows: Path, **changes: Any) -> Statistics:
    settings = {"rate": 200.0, "feedback_delay": 0.2, "progress": False, **changes}
    return traffic.run(Replay(rows=rows, model="flights", gateway=gateway.url, **settings))


def test_rows_go_out_in_order_as_real_requests(gateway: Gateway, rows: Path) -> None:
    statistics = _replay(gateway, rows, selection=Selection(until=date(2013, 7, 2)))
    # The ids count up as requests leave; on a busy machine they may arrive in another order.
    by_id = sorted(gateway.predictions, key=lambda prediction: prediction[1])
    sent = [body["instances"][0] for _, _, body in by_id]
    assert [row["number"] for row in sent] == list(range(108)), "108 rows between six and midnight"
    assert sent[0] == {"number": 0, "carrier": "MQ", "age": None}, "neither time nor outcome is sent"
    ids = [request_id for _, request_id, _ in gateway.predictions]
    assert len(set(ids)) == len(ids)
    assert (statistics.sent, statistics.answered, statistics.failed) == (108, 108, 0)
    assert statistics.row_time == "2013-07-01T23:50"


def test_outcomes_follow_their_answers(gateway: Gateway, rows: Path) -> None:
    statistics = _replay(gateway, rows, selection=Selection(until=date(2013, 7, 3)), feedback_delay=0.4)
    number_of = {request_id: body["instances"][0]["number"] for _, request_id, body in gateway.predictions}
    asked_at = {request_id: at for at, request_id, _ in gateway.predictions}
    told = {number_of[body["request_id"]]: body["outcomes"] for _, body in gateway.feedback}
    assert told == {number: [number % 2] for number in range(252) if number % 5}
    assert (statistics.feedback_sent, statistics.feedback_failed, statistics.feedback_unsent) == (201, 0, 0)
    assert statistics.without_outcome == 51
    # The first ones; what is still waiting at the end goes out early.
    first = [(at, body["request_id"]) for at, body in gateway.feedback if number_of[body["request_id"]] < 40]
    assert min(at - asked_at[request_id] for at, request_id in first) >= 0.4


def test_an_outcome_goes_to_the_id_that_the_answer_gave(gateway: Gateway, rows: Path) -> None:
    gateway.behaviour = lambda _g, number, _r: (
        200,
        {"X-Model-Version": "1", "X-Feedback-Id": f"own-{number}"},
    )
    _replay(gateway, rows, duration=0.3)
    assert gateway.feedback
    assert all(body["request_id"].startswith("own-") for _, body in gateway.feedback)


def test_answers_are_counted_by_release_and_status(gateway: Gateway, rows: Path) -> None:
    def mixed(_gateway: Gateway, number: int, _request: web.Request) -> tuple[int, dict[str, str]] | None:
        if number % 10 == 9:
            return None
        if number % 10 == 8:
            return 503, {}
        return (500 if number % 4 == 3 else 200), {"X-Model-Version": "2" if number % 2 else "1"}

    gateway.behaviour = mixed
    before = time.time()
    statistics = _replay(gateway, rows, selection=Selection(until=date(2013, 7, 2)))
    content = statistics.as_json(time.time())
    one, two, nobody = (content["releases"][version] for version in ("1", "2", NOBODY))
    assert (one["requests"], one["failed"], one["statuses"]) == (44, 0, {"200": 44})
    failing = sum(1 for number in range(108) if number % 10 < 8 and number % 4 == 3)
    assert two["statuses"] == {"200": 44 - failing, "500": failing}
    assert two["failed"] == failing
    assert nobody["statuses"] == {"503": 10, "0": 10}
    assert nobody["failed"] == 20
    assert content["failed"] == failing + 20
    assert before < two["first_at"] <= two["first_failure_at"] < two["last_failure_at"] <= time.time()
    assert one["first_failure_at"] is None
    assert content["last_error"]
    assert statistics.feedback_sent + statistics.without_outcome == 88 - failing, (
        "no outcome without an answer"
    )


def test_nothing_is_sent_twice(gateway: Gateway, rows: Path) -> None:
    """A retry would show the users' failures as successes."""
    gateway.behaviour = lambda _g, number, _r: None if number % 2 else (500, {"X-Model-Version": "1"})
    statistics = _replay(gateway, rows, selection=Selection(until=date(2013, 7, 2)))
    assert len(gateway.predictions) == statistics.sent == statistics.failed == 108


def test_a_dead_gateway_is_failures_not_an_end(rows: Path) -> None:
    gone = Gateway(url="http://127.0.0.1:1")
    statistics = _replay(gone, rows, duration=0.5)
    assert 90 <= statistics.sent <= 101
    assert statistics.failed == statistics.sent
    assert "127.0.0.1:1" in str(statistics.last_error)


def test_the_rate_is_held(gateway: Gateway, rows: Path) -> None:
    statistics = _replay(gateway, rows, rate=150.0, duration=3.0, feedback=False)
    assert statistics.sent == pytest.approx(450, rel=0.04)
    assert statistics.as_json(time.time())["rate"] == pytest.approx(150, rel=0.05)
    assert gateway.feedback == []


def test_a_slow_gateway_does_not_slow_the_users(gateway: Gateway, rows: Path) -> None:
    gateway.seconds = 0.5
    statistics = _replay(gateway, rows, rate=60.0, duration=2.0)
    assert statistics.sent == pytest.approx(120, rel=0.06)
    assert gateway.most_at_once >= 20, "users do not wait for each other"
    assert statistics.skipped_seconds == 0


def test_concurrency_is_bounded_and_the_lag_is_owned_up_to(gateway: Gateway, rows: Path) -> None:
    gateway.seconds = 0.5
    statistics = _replay(gateway, rows, rate=100.0, duration=4.0, concurrency=5)
    assert gateway.most_at_once == 5
    assert statistics.sent <= 50
    assert statistics.skipped_seconds > 1.5


def test_every_request_is_another_user(gateway: Gateway, rows: Path) -> None:
    headers = {"X-Model-Version": "1", "Set-Cookie": "experiment=2; Path=/models/flights/"}
    gateway.behaviour = lambda _g, _n, _r: (200, headers)
    gateway.url = gateway.url.replace("127.0.0.1", "localhost")  # Cookies are for names, not for addresses.
    _replay(gateway, rows, duration=0.3)
    assert len(gateway.predictions) > 10
    assert gateway.cookies == []


def test_a_hung_request_times_out_and_counts(gateway: Gateway, rows: Path) -> None:
    gateway.seconds = 3.0
    statistics = _replay(gateway, rows, rate=20.0, duration=0.5, timeout=0.5)
    assert statistics.failed == statistics.sent == statistics.releases[NOBODY].statuses["0"]
    assert "Timeout" in str(statistics.last_error)


def test_repeat_starts_again(gateway: Gateway, tmp_path: Path) -> None:
    few = _write_rows(tmp_path / "few.parquet", 30)
    assert _replay(gateway, few, duration=1.0).sent == 30
    assert _replay(gateway, few, duration=1.0, repeat=True).sent > 100


def test_waiting_for_a_release(gateway: Gateway, rows: Path) -> None:
    gateway.healthy = False
    with pytest.raises(DependencyDown, match=r"ready did not answer within 0\.5 s; start the stack"):
        _replay(gateway, rows, wait=0.5)
    assert gateway.predictions == []
    timer = threading.Timer(0.5, lambda: setattr(gateway, "healthy", True))
    timer.start()
    assert _replay(gateway, rows, wait=10, duration=0.3).failed == 0
    timer.join()


def test_statistics_and_log_on_disk(gateway: Gateway, rows: Path, tmp_path: Path) -> None:
    written, log = tmp_path / "new" / "traffic.json", tmp_path / "new" / "log.jsonl"
    seen: list[dict[str, Any]] = []
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            if written.exists():
                seen.append(json.loads(written.read_text()))

    reader = threading.Thread(target=read_on)
    reader.start()
    try:
        statistics = _replay(gateway, rows, duration=2.5, statistics=written, log=log)
    finally:
        done.set()
        reader.join()
    assert {one["state"] for one in seen} >= {"running"}
    final = json.loads(written.read_text())
    assert (final["state"], final["sent"]) == ("finished", statistics.sent)
    assert final["started_at"] < final["finished_at"] <= final["updated_at"]
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(entries) == statistics.answered
    assert set(entries[0]) == {"at", "request_id", "version", "status", "milliseconds"}
    assert {entry["request_id"] for entry in entries} == {one for _, one, _ in gateway.predictions}
    assert sorted(path.name for path in written.parent.iterdir()) == ["log.jsonl", "traffic.json"]


def test_sigterm_ends_it_in_order(gateway: Gateway, rows: Path, tmp_path: Path) -> None:
    written = tmp_path / "traffic.json"
    command = [sys.executable, "-m", "flows.demo.traffic", "--rows", str(rows), "--model", "flights"]
    command += ["--repeat", "--gateway", gateway.url, "--rate", "100", "--feedback-delay", "60"]
    process = subprocess.Popen([*command, "--statistics", str(written)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while len(gateway.predictions) < 100 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, output = process.communicate(timeout=20)
    assert time.monotonic() - asked < 5
    assert process.returncode == 0
    final = json.loads(written.read_text())
    assert final["state"] == "finished"
    assert final["answered"] == final["sent"] == len(gateway.predictions)
    assert final["feedback"]["unsent"] == 0, "outcomes that waited are sent before the end"
    assert len(gateway.feedback) == final["feedback"]["sent"] > 50
    assert f"{final['sent']} sent, 0 failed" in output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.parquet", "No such file or directory; give a Parquet file"),
        ("text.parquet", "not a Parquet file; give a Parquet file"),
        ("other.parquet", "no column at and outcome; rows to replay need 'at', 'outcome' and the inputs"),
        ("rows.parquet", "no rows in this period; choose other dates"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(
    rows: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (rows.parent / "text.parquet").write_text("not this")
    pq.write_table(pa.table({"x": [1]}), rows.parent / "other.parquet")
    given = ["--rows", str(rows.parent / name), "--model", "flights", "--since", "2014-01-01", "--quiet"]
    assert traffic.main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith("traffic: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_full_disk_ends_it_with_an_error(gateway: Gateway, rows: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        _replay(gateway, rows, duration=5.0, log=Path("/dev/full"))


def test_selection_by_date_and_share(rows: Path) -> None:
    second = list(Selection(since=date(2013, 7, 2), until=date(2013, 7, 3)).rows(rows))
    assert {row.at.date() for row in second} == {date(2013, 7, 2)}
    assert len(second) == 144
    sampled = [row.at for row in Selection(sample=0.2).rows(rows)]
    assert 150 < len(sampled) < 250
    assert sampled == [row.at for row in Selection(sample=0.2).rows(rows)] == sorted(sampled)
    with pytest.raises(ModelServeError):
        list(Selection().rows(rows.parent / "nothing"))


def test_a_replay_of_late_rows_reads_only_their_groups(rows: Path) -> None:
    """The first groups are damaged: whoever reads them fails."""
    metadata = pq.read_metadata(rows)
    last = metadata.row_group(9).column(0)
    start = min(last.dictionary_page_offset or last.data_page_offset, last.data_page_offset)
    content = bytearray(rows.read_bytes())
    content[4:start] = bytes(start - 4)
    rows.write_bytes(bytes(content))
    late = Selection(since=date(2013, 7, 8))
    expected = sum(1 for number in range(1000) if (FIRST + timedelta(minutes=10 * number)).day >= 8)
    assert expected < 100
    assert len(list(late.rows(rows))) == expected
    with pytest.raises(OSError, match=r".+"):
        list(Selection().rows(rows))


def test_latency_quantiles() -> None:
    answers = Answers()
    assert answers.latency_ms(0.5) is None
    for milliseconds in range(1, 101):
        answers.add(200, milliseconds / 1000, at=0.0)
    for share, exact in ((0.5, 50), (0.99, 99)):
        bound = answers.latency_ms(share)
        assert bound is not None
        assert exact <= bound <= exact * 1.25
    slow = Answers()
    slow.add(0, 60.0, at=0.0)
    assert slow.latency_ms(0.99) == pytest.approx(11_500, rel=0.05), (
        "the last bound stands for everything above"
    )


def test_the_line_says_who_failed() -> None:
    statistics = Statistics("flights", 150, started_at=0.0)
    assert statistics.line() == "traffic at the start: no answer yet"
    statistics.row_time = "2013-07-01T06:00"
    statistics.answer("1", 200, 0.01, at=1.0)
    statistics.answer("2", 500, 0.01, at=1.0)
    statistics.answer(NOBODY, 0, 0.01, at=1.0)
    assert statistics.line() == (
        "traffic at 2013-07-01T06:00: v1 1 served; v2 0 served, 1 FAILED; no release 0 served, 1 FAILED"
    )
