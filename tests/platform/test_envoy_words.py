"""Routes in Envoy's words and back, without an Envoy; and the words themselves, for reviewers, as a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.adapters.local.envoy import (
    cluster,
    clusters_named_in,
    entries_of,
    is_of,
    replaced,
    routes_in,
)
from flows.domain.errors import RouteConflict
from flows.domain.routes import Match, Mirror, Routes

GOLDEN = Path(__file__).parents[1] / "golden" / "envoy"
NAMES = st.sampled_from([f"flights-v{version}" for version in range(1, 6)])
PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
COOKIE_NAMES = st.text("abcxyzABC019_.-+*!", min_size=1, max_size=8)


@st.composite
def routes(draw: st.DrawFn) -> Routes:
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    if not names:
        return Routes()
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(names) - 1, max_size=len(names) - 1)))
    bounds = [0, *cuts, 100]
    weights = {name: bounds[index + 1] - bounds[index] for index, name in enumerate(names)}
    header = st.builds(Match, st.just("header"), st.sampled_from(["x-team", "X-Arm"]), PRINTABLE, NAMES)
    cookie = st.builds(Match, st.just("cookie"), COOKIE_NAMES, PRINTABLE, NAMES)
    matches = tuple(draw(st.lists(header | cookie, max_size=3)))
    percents = st.integers(0, 100_000).map(lambda number: number / 1000)
    mirror = draw(st.none() | st.builds(Mirror, NAMES, percents))
    return Routes(weights, matches, mirror)


@given(routes())
def test_every_route_reads_back_as_it_was_written(wanted: Routes) -> None:
    shown = json.loads(json.dumps(entries_of("flights", wanted, 60)))
    assert routes_in("flights", shown) == wanted


@given(routes(), routes())
def test_replacing_a_models_entries_touches_no_other(one: Routes, other: Routes) -> None:
    last: dict[str, Any] = {"name": "unknown model", "match": {"prefix": "/"}}
    by_hand: dict[str, Any] = {"name": "somebody else's", "match": {"prefix": "/x/"}}
    digits = Routes({"digits-v1": 100})
    entries = replaced([by_hand, last], "digits", entries_of("digits", digits, 60))
    for wanted in (one, other):
        entries = replaced(entries, "flights", entries_of("flights", wanted, 60))
        assert routes_in("flights", entries) == wanted
        assert routes_in("digits", entries) == digits
        assert entries[-2:] == [by_hand, last]


def test_a_model_whose_name_begins_like_anothers_is_another() -> None:
    entries = entries_of("flights-late", Routes({"flights-late-v1": 100}), 60)
    assert not any(is_of("flights", entry) for entry in entries)
    assert routes_in("flights", entries) == Routes()


def test_every_cluster_that_is_used_is_named() -> None:
    wanted = Routes(
        {"flights-v1": 100, "flights-v2": 0},
        (Match("header", "x-team", "a", "flights-v4"),),
        Mirror("flights-v3", 5),
    )
    named = clusters_named_in(entries_of("flights", wanted, 60))
    pinned = {"flights-v1@aside", "flights-v2@aside"}
    assert named == {"flights-v1", "flights-v2", "flights-v3@aside", "flights-v4"} | pinned


@pytest.mark.parametrize(
    "action",
    [
        {"cluster": "flights-v1"},
        {"weighted_clusters": {"clusters": [{"name": "flights-v1", "weight": 99}]}},
        {"weighted_clusters": {"clusters": [{"weight": 100}]}},
    ],
)
def test_an_edit_that_is_no_route_of_ours_is_a_conflict(action: dict[str, Any]) -> None:
    with pytest.raises(RouteConflict, match="flights"):
        routes_in("flights", [{"name": "flights/split", "route": action}])


def test_the_words_are_the_reviewed_ones() -> None:
    canary = Routes(
        {"flights-v1": 95, "flights-v2": 5},
        (Match("header", "x-team", "data", "flights-v2"), Match("cookie", "arm", "b", "flights-v2")),
        Mirror("flights-v3", 12.5),
    )
    written = {
        "clusters": [cluster("flights-v2", "127.0.0.1", 20001)],
        "canary": entries_of("flights", canary, 60),
        "nobody": entries_of("flights", Routes(), 60),
    }
    text = json.dumps(written, indent=2) + "\n"
    file = GOLDEN / "flights.json"
    if os.environ.get("REFRESH_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "run with REFRESH_GOLDEN=1 and review the difference"
