"""What every `Platform` promises. The same tests run over each adapter; see `conftest.harness`."""

from __future__ import annotations

from typing import Any

import pytest

from flows.domain.errors import ReleaseNotReady
from flows.domain.routes import Match, Mirror, Routes


def started(harness: Any, model: str, *versions: int) -> list[Any]:
    releases = [harness.healthy(model, version) for version in versions]
    for release in releases:
        harness.platform.start(release, harness.spec(model))
    return releases


def test_a_started_release_runs_and_has_an_address(harness: Any) -> None:
    first, second = started(harness, "flights", 1, 2)
    assert harness.platform.running() == {"flights-v1", "flights-v2"}
    assert harness.platform.url(first) != harness.platform.url(second)


def test_starting_twice_changes_nothing(harness: Any) -> None:
    [release] = started(harness, "flights", 1)
    address = harness.platform.url(release)
    harness.platform.start(release, harness.spec("flights"))
    assert harness.platform.url(release) == address
    assert harness.platform.running() == {"flights-v1"}


def test_a_release_that_never_becomes_ready_is_refused_by_name_and_can_be_stopped(harness: Any) -> None:
    release = harness.broken("flights", 3)
    with pytest.raises(ReleaseNotReady, match="flights-v3"):
        harness.platform.start(release, harness.spec("flights"))
    harness.platform.stop(release)
    assert harness.platform.running() == frozenset()


def test_a_broken_release_does_not_disturb_the_others(harness: Any) -> None:
    started(harness, "flights", 1)
    harness.platform.route("flights", Routes({"flights-v1": 100}))
    with pytest.raises(ReleaseNotReady):
        harness.platform.start(harness.broken("flights", 2), harness.spec("flights"))
    assert harness.platform.routes("flights") == Routes({"flights-v1": 100})
    assert "flights-v1" in harness.platform.running()


def test_the_log_of_a_release_is_its_own_and_no_longer_than_asked_for(harness: Any) -> None:
    first, _ = started(harness, "flights", 1, 2)
    assert len(harness.platform.log(first, 1)) <= 1
    assert harness.platform.log(harness.healthy("flights", 9), 10) == []


def test_stopping_is_idempotent(harness: Any) -> None:
    [release] = started(harness, "flights", 1)
    harness.platform.stop(release)
    harness.platform.stop(release)
    assert harness.platform.running() == frozenset()


def test_stopping_what_was_never_started_does_nothing(harness: Any) -> None:
    harness.platform.stop(harness.healthy("flights", 1))
    assert harness.platform.running() == frozenset()


def test_a_stopped_release_starts_again(harness: Any) -> None:
    [release] = started(harness, "flights", 1)
    harness.platform.stop(release)
    harness.platform.start(release, harness.spec("flights"))
    assert harness.platform.running() == {"flights-v1"}


def test_a_release_without_servers_has_no_address(harness: Any) -> None:
    with pytest.raises(ReleaseNotReady, match="flights-v1"):
        harness.platform.url(harness.healthy("flights", 1))


def test_a_model_without_a_route_has_an_empty_one(harness: Any) -> None:
    assert harness.platform.routes("flights") == Routes()


@pytest.mark.parametrize(
    "routes",
    [
        Routes({"flights-v1": 100}),
        Routes({"flights-v1": 0, "flights-v2": 100}),
        Routes({"flights-v1": 95, "flights-v2": 5}),
        Routes({"flights-v1": 100}, matches=(Match("header", "x-team", "data", "flights-v2"),)),
        Routes({"flights-v1": 50, "flights-v2": 50}, matches=(Match("cookie", "arm", "b", "flights-v2"),)),
        Routes(
            {"flights-v1": 100, "flights-v2": 0},
            matches=(
                Match("cookie", "a.b", "1+1", "flights-v1"),
                Match("header", "x-team", "a b", "flights-v2"),
            ),
        ),
        Routes({"flights-v1": 100}, mirror=Mirror("flights-v2", 12.5)),
        Routes({"flights-v1": 100, "flights-v2": 0}, mirror=Mirror("flights-v2", 100)),
    ],
)
def test_a_route_reads_back_as_it_was_set(harness: Any, routes: Routes) -> None:
    started(harness, "flights", 1, 2)
    harness.platform.route("flights", routes)
    assert harness.platform.routes("flights") == routes
    assert harness.again().routes("flights") == routes


def test_a_route_is_replaced_whole(harness: Any) -> None:
    started(harness, "flights", 1, 2)
    full = Routes(
        {"flights-v1": 90, "flights-v2": 10},
        matches=(Match("header", "x-team", "data", "flights-v2"),),
        mirror=Mirror("flights-v2", 5),
    )
    harness.platform.route("flights", full)
    harness.platform.route("flights", Routes({"flights-v2": 100}))
    assert harness.platform.routes("flights") == Routes({"flights-v2": 100})


def test_setting_the_same_route_again_is_fine(harness: Any) -> None:
    started(harness, "flights", 1)
    for _ in range(3):
        harness.platform.route("flights", Routes({"flights-v1": 100}))
    assert harness.platform.routes("flights") == Routes({"flights-v1": 100})


def test_a_route_can_be_emptied_and_filled_again(harness: Any) -> None:
    started(harness, "flights", 1)
    for routes in (Routes(), Routes({"flights-v1": 100}), Routes(), Routes({"flights-v1": 100})):
        harness.platform.route("flights", routes)
        assert harness.platform.routes("flights") == routes


def test_models_do_not_touch_each_other(harness: Any) -> None:
    started(harness, "flights", 1)
    started(harness, "digits", 1, 2)
    harness.platform.route("flights", Routes({"flights-v1": 100}))
    digits = Routes({"digits-v1": 75, "digits-v2": 25}, mirror=Mirror("digits-v2", 1))
    harness.platform.route("digits", digits)
    harness.platform.route("flights", Routes())
    assert harness.platform.routes("digits") == digits
    assert harness.platform.routes("flights") == Routes()


@pytest.mark.parametrize(
    "routes",
    [
        Routes({"flights-v1": 90, "flights-v9": 10}),
        Routes({"flights-v1": 100}, matches=(Match("header", "x-team", "data", "flights-v9"),)),
        Routes({"flights-v1": 100}, mirror=Mirror("flights-v9", 10)),
    ],
)
def test_a_route_to_a_release_without_servers_is_refused_and_traffic_stays(
    harness: Any, routes: Routes
) -> None:
    started(harness, "flights", 1)
    before = Routes({"flights-v1": 100})
    harness.platform.route("flights", before)
    with pytest.raises(ReleaseNotReady, match="flights-v9"):
        harness.platform.route("flights", routes)
    assert harness.platform.routes("flights") == before


def test_stopping_a_release_leaves_the_route_alone(harness: Any) -> None:
    _, second = started(harness, "flights", 1, 2)
    routes = Routes({"flights-v1": 100, "flights-v2": 0})
    harness.platform.route("flights", routes)
    harness.platform.stop(second)
    assert harness.platform.routes("flights") == routes


def test_a_second_adapter_sees_the_same_platform(harness: Any) -> None:
    [release] = started(harness, "flights", 1)
    other = harness.again()
    assert other.running() == {"flights-v1"}
    assert other.url(release) == harness.platform.url(release)
    other.stop(release)
    assert harness.platform.running() == frozenset()
