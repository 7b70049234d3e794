"""Counters into windows: every way in which a counter can lie has its test."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.domain.judge.counters import Series, Snapshot, difference
from flows.domain.judge.windows import EvidenceInvalid, Window

CANARY, STABLE = "flights-v2", "flights-v1"
Values = dict[tuple[str, str, str, str], float]


def requests(canary: float, stable: float, errors: float = 0, pod: str = "a") -> Values:
    return {
        ("requests", CANARY, "2", pod): canary,
        ("requests", CANARY, "5", pod): errors,
        ("requests", STABLE, "2", pod): stable,
    }


def snapshot(at: float, values: Values, pods: tuple[str, ...] = ("a",), **more: object) -> Snapshot:
    scraped = dict.fromkeys(pods, at - 1)
    counters = {Series(*series): value for series, value in values.items()}
    return Snapshot(at, counters, scraped | dict(more.pop("scraped", {})), **more)  # type: ignore[call-overload, arg-type]


def window(before: Snapshot, after: Snapshot) -> Window:
    return difference(before, after.after(before), CANARY, STABLE, 5)


def test_counts_are_exact_differences() -> None:
    found = window(snapshot(100, requests(10, 90)), snapshot(115, requests(15, 190, errors=2)))
    assert (found.start, found.end, found.weight, found.observed) == (100, 115, 5, True)
    assert (found.canary.requests, found.canary.errors) == (7, 2)
    assert found.stable is not None
    assert (found.stable.requests, found.stable.errors) == (100, 0)
    assert found.share == pytest.approx(7 / 107)


def test_a_restarted_gateway_counts_from_zero_in_all_its_series() -> None:
    before = snapshot(100, requests(10, 900, errors=4))
    # The canary's successes went up even so: only its errors show that its counters began again.
    found = window(before, snapshot(115, requests(12, 30, errors=1)))
    assert (found.canary.requests, found.canary.errors) == (13, 1)
    assert found.stable is not None
    assert found.stable.requests == 30


def test_a_pod_that_vanishes_and_returns_loses_nothing_and_adds_nothing() -> None:
    first = snapshot(100, requests(10, 90) | requests(20, 180, pod="b"), ("a", "b"))
    without = snapshot(115, requests(11, 99)).after(first)
    again = snapshot(130, requests(12, 108) | requests(22, 198, pod="b"), ("a", "b")).after(without)
    gone = difference(first, without, CANARY, STABLE, 5)
    back = difference(without, again, CANARY, STABLE, 5)
    assert (gone.canary.requests, back.canary.requests) == (1, 1 + 2)


def test_an_unknown_gateways_past_is_not_counted_but_a_new_series_of_a_known_one_is() -> None:
    before = snapshot(100, {("requests", STABLE, "2", "a"): 90})
    after = snapshot(115, requests(3, 100) | requests(5000, 90_000, pod="b"), ("a", "b"))
    found = window(before, after)
    assert found.canary.requests == 3
    assert found.stable is not None
    assert found.stable.requests == 10


def test_the_canarys_new_servers_count_from_their_start_and_the_stables_do_not() -> None:
    before = snapshot(100, requests(0, 0))
    servers: Values = {
        ("outputs", CANARY, "le_1", "canary-1"): 40,
        ("outputs", STABLE, "le_1", "stable-9"): 7000,
    }
    found = window(before, snapshot(115, requests(40, 60) | servers))
    assert dict(found.canary.outputs) == {"le_1": 40}
    assert found.stable is not None
    assert dict(found.stable.outputs) == {"le_1": 0}
    assert found.canary.reported
    assert not window(before, snapshot(115, requests(1, 1))).canary.reported


def test_slow_requests_are_counted_per_bound_that_all_gateways_have() -> None:
    def all_of(scale: float) -> Values:
        return {
            ("latency", CANARY, "0.1", "a"): 6 * scale,
            ("latency", CANARY, "0.5", "a"): 9 * scale,
            ("latency", CANARY, "inf", "a"): 10 * scale,
            ("latency", CANARY, "0.5", "b"): 3 * scale,
            ("latency", CANARY, "inf", "b"): 5 * scale,
        }

    before = snapshot(100, all_of(1), ("a", "b"))
    found = window(before, snapshot(115, all_of(2), ("a", "b")))
    assert found.canary.timed == 15
    assert dict(found.canary.slow) == {0.5: 3}


def test_a_histogram_that_is_not_monotone_is_unobserved_by_name() -> None:
    before = snapshot(100, {})
    torn: Values = {("latency", CANARY, "0.1", "a"): 12, ("latency", CANARY, "inf", "a"): 10}
    found = window(before, snapshot(115, torn))
    assert not found.observed
    assert "slow[0.1]" in found.why
    assert found.canary.requests == 0


def test_halves_of_the_stables_servers() -> None:
    def served(scale: float) -> Values:
        return {
            ("served", STABLE, code, f"s{index}"): scale * amount
            for index in range(3)
            for code, amount in (("2", 10 + index), ("5", index))
        }

    found = window(snapshot(100, served(1)), snapshot(115, served(2)))
    assert found.halves is not None
    assert [(half.requests, half.errors) for half in found.halves] == [(10 + 14, 2), (12, 1)]
    assert [half.timed for half in found.halves] == [0, 0]

    def took(scale: float) -> Values:
        return served(scale) | {
            ("took", STABLE, bound, f"s{index}"): scale * amount
            for index in range(3)
            for bound, amount in (("0.1", 6 + index), ("inf", 10 + 2 * index))
        }

    timed = window(snapshot(100, took(1)), snapshot(115, took(2))).halves
    assert timed is not None
    assert [(half.timed, dict(half.slow)) for half in timed] == [(24, {0.1: 24 - 14}), (12, {0.1: 12 - 7})]
    one = {key: value for key, value in served(2).items() if key[3] == "s0"}
    assert window(snapshot(100, served(1)), snapshot(115, one)).halves is None


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (snapshot(115, requests(1, 1), (), problem="requests is NaN"), "requests is NaN"),
        (snapshot(115, requests(1, 1), ()), "scrapes no gateway"),
        (snapshot(115, requests(1, 1), scraped={"b": 0.0}), "gateway b does not answer"),
        (snapshot(115, requests(1, 1), scraped={"a": 20.0}), "last scraped 95 s ago"),
        (snapshot(115, requests(1, 1), scraped={"a": 300.0}), "in the future"),
        (snapshot(115, requests(1, 1), scraped={"a": 98.0}), "another Prometheus answered"),
        (snapshot(90, requests(1, 1)), "clock went back"),
        (snapshot(100, requests(1, 1)), "clock went back"),
    ],
)
def test_what_cannot_be_trusted_is_unobserved_and_says_why(after: Snapshot, why: str) -> None:
    before = snapshot(100, requests(0, 0))
    found = window(before, after)
    assert not found.observed
    assert why in found.why
    assert found.canary.requests == 0


def test_the_window_after_a_gap_covers_it() -> None:
    before = snapshot(100, requests(10, 90))
    bad = snapshot(115, {}, ()).after(before)
    assert not difference(before, bad, CANARY, STABLE, 5).observed
    found = window(before, snapshot(1900, requests(110, 990)))
    assert (found.start, found.end, found.canary.requests) == (100, 1900, 100)


def test_without_a_stable_there_is_none() -> None:
    found = difference(snapshot(100, requests(0, 0)), snapshot(115, requests(5, 0)), CANARY, None, 100)
    assert found.stable is None
    assert found.canary.requests == 5


def test_snapshots_survive_json_and_continue_exactly() -> None:
    first = snapshot(100.25, requests(10, 90) | requests(1, 2, pod="b"), ("a", "b"))
    second = snapshot(115.5, requests(12, 100)).after(first)
    again = Snapshot.from_json(json.loads(json.dumps(second.to_json())))
    assert again == second
    third = snapshot(130, requests(15, 110) | requests(4, 9, pod="b"), ("a", "b"))
    assert difference(again, third.after(again), CANARY, STABLE, 5) == window(second, third)
    with pytest.raises(EvidenceInvalid, match="stored snapshot"):
        Snapshot.from_json({"at": 1})


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from(["", "away", "lost", "restart"])),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_each_request_counts_once(events: list[tuple[int, int, str]]) -> None:
    """Gateway b is away, Prometheus is lost, or b restarts right after a look: nothing is lost or twice."""
    totals = {"a": 0, "b": 0}
    before = snapshot(100, _both(totals), ("a", "b"))
    served = counted = 0
    for index, (on_a, on_b, event) in enumerate([*events, (0, 0, "")], start=101):
        # A restart shows by a smaller value; one that has overtaken its old value cannot be told from none.
        restarts = event == "restart" and on_b < totals["b"] == _seen(before, "b")
        totals = {"a": totals["a"] + on_a, "b": on_b if restarts else totals["b"] + on_b}
        served += on_a + on_b
        if event == "lost":
            continue
        pods = ("a",) if event == "away" else ("a", "b")
        shown = {key: value for key, value in _both(totals).items() if key[3] in pods}
        after = snapshot(index, shown, pods).after(before)
        counted += difference(before, after, CANARY, STABLE, 5).canary.requests
        before = after
    assert counted == served


def _both(totals: dict[str, int]) -> Values:
    return {("requests", CANARY, "2", pod): float(value) for pod, value in totals.items()}


def _seen(last: Snapshot, pod: str) -> int:
    series = Series("requests", CANARY, "2", pod)
    return int(last.counters.get(series, last.gone.get(series, 0)))
