"""The registry against a real PostgreSQL: its invariants hold whoever writes."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg2
import pytest

from flows.adapters.registry import Registry, StoredWindow
from flows.domain.errors import (
    DependencyDown,
    ModelServeError,
    PromotionLost,
    PromotionRunning,
    ReleaseExists,
    ReleaseUnknown,
)
from flows.domain.promotion import State, plan_retreat
from flows.domain.release import Phase, Release
from flows.domain.routes import Match, Mirror, Routes

LEASE = 60.0


def release(version: int, sha256: str = "a" * 64) -> Release:
    return Release("flights", version, f"file:///bundles/flights/{version}", sha256)


def registered(registry: Registry, *versions: int) -> None:
    for version in versions:
        registry.register(release(version), "name: flights")


def promote(registry: Registry, version: int) -> None:
    promotion = registry.begin("flights", version, f"run-{version}", 60, LEASE)
    with registry.turn("flights") as turn:
        turn.crown(promotion)
        turn.end(turn.promotion(promotion.id), State.PROMOTED, "certified")


def phases(registry: Registry) -> dict[int, Phase]:
    return {release.version: release.phase for release in registry.releases("flights")}


def test_registering_the_same_content_twice_is_one_release(registry: Registry) -> None:
    registered(registry, 1, 1)
    assert len(registry.releases("flights")) == 1
    with pytest.raises(ReleaseExists, match="use a new version number"):
        registry.register(release(1, "b" * 64), "name: flights")
    assert registry.release("flights", 1).sha256 == "a" * 64


def test_unknown_models_and_versions_name_the_known_ones(registry: Registry) -> None:
    registered(registry, 1, 2)
    with pytest.raises(ReleaseUnknown, match=r"registered versions: 1, 2"):
        registry.release("flights", 9)
    with pytest.raises(ReleaseUnknown, match=r"registered models: flights"):
        registry.standing("fligths")


def test_a_second_promotion_of_a_model_is_refused(registry: Registry) -> None:
    registered(registry, 1, 2)
    registry.begin("flights", 1, "run-1", 60, LEASE)
    with pytest.raises(PromotionRunning, match=r"flights v1 is being promoted .* 'modelserve abort flights'"):
        registry.begin("flights", 2, "run-2", 60, LEASE)
    with pytest.raises(PromotionRunning):
        registry.begin("flights", 1, "another-run", 60, LEASE)


def test_of_twenty_that_begin_at_once_one_wins(registry: Registry) -> None:
    registered(registry, 1)
    outcomes: list[str] = []

    def begin(number: int) -> None:
        try:
            registry.begin("flights", 1, f"run-{number}", 60, LEASE)
            outcomes.append("began")
        except PromotionRunning:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["began"] + ["refused"] * 19


def test_a_dead_run_s_promotion_is_taken_over_and_the_dead_loses_its_turn(registry: Registry) -> None:
    registered(registry, 1)
    first = registry.begin("flights", 1, "run-1", 60, lease_seconds=0)
    second = registry.begin("flights", 1, "run-2", 60, lease_seconds=0)
    assert second.id == first.id
    with registry.turn("flights") as turn:
        turn.mine(second)
        with pytest.raises(PromotionLost, match="another run took over"):
            turn.mine(first)
    with pytest.raises(PromotionLost):
        registry.renew(first, LEASE)


def test_a_young_database_does_not_call_leases_expired(registry: Registry) -> None:
    """After an outage of the database the runs need time to renew what they could not renew before."""
    registered(registry, 1)
    registry.begin("flights", 1, "run-1", 60, lease_seconds=0)
    assert registry.abandoned(grace_seconds=3600) == []
    assert [promotion.version for promotion, _ in registry.abandoned(grace_seconds=0)] == [1]


def test_crowning_moves_every_phase_on(registry: Registry) -> None:
    registered(registry, 1, 2, 3)
    for version in (1, 2, 3):
        promote(registry, version)
    assert phases(registry) == {1: Phase.RETIRED, 2: Phase.PREVIOUS, 3: Phase.STABLE}
    with pytest.raises(ModelServeError, match="stable release already"):
        registry.begin("flights", 3, "run", 60, LEASE)


def test_a_retreat_is_on_record_before_it_is_settled(registry: Registry) -> None:
    registered(registry, 1, 2)
    promote(registry, 1)
    promotion = registry.begin("flights", 2, "run-2", 60, LEASE)
    with registry.turn("flights") as turn:
        retreat = plan_retreat(turn.standing(), State.REJECTED, "5 % errors")
        assert retreat is not None
        turn.intend_retreat(retreat)
        assert registry.retreating() == ["flights"]
        with pytest.raises(PromotionLost):
            turn.mine(promotion)
        turn.settle_retreat(retreat, promotion)
    assert registry.retreating() == []
    assert phases(registry) == {1: Phase.STABLE, 2: Phase.REJECTED}
    ended = registry.promotion(promotion.id)
    assert (ended.state, ended.reason) == (State.REJECTED, "5 % errors")
    assert [event.kind for event in registry.events("flights", promotion)] == ["began", "ended"]


def test_a_retreat_to_a_chosen_version_makes_it_stable(registry: Registry) -> None:
    registered(registry, 1, 2, 3)
    for version in (1, 2, 3):
        promote(registry, version)
    with registry.turn("flights") as turn:
        retreat = plan_retreat(turn.standing(), State.ABORTED, "by hand", to=1)
        assert retreat is not None
        turn.intend_retreat(retreat)
        turn.settle_retreat(retreat, None)
    assert phases(registry) == {1: Phase.STABLE, 2: Phase.PREVIOUS, 3: Phase.REGISTERED}


def test_events_cannot_be_changed(registry: Registry, database_url: str) -> None:
    registered(registry, 1)
    for statement in ("UPDATE events SET kind = 'x'", "DELETE FROM events", "TRUNCATE events"):
        connection = psycopg2.connect(database_url)
        with pytest.raises(psycopg2.Error, match="append-only"), connection, connection.cursor() as cursor:
            cursor.execute(statement)
        connection.close()
    assert [event.kind for event in registry.events("flights")] == ["registered"]


def test_the_database_itself_refuses_two_canaries(registry: Registry, database_url: str) -> None:
    registered(registry, 1, 2)
    for phase in ("canary", "stable", "previous"):
        connection = psycopg2.connect(database_url)
        with pytest.raises(psycopg2.errors.UniqueViolation), connection, connection.cursor() as cursor:
            cursor.execute("UPDATE releases SET phase = %s", (phase,))
        connection.close()


def test_windows_are_stored_once_with_their_snapshot(registry: Registry) -> None:
    registered(registry, 1)
    promotion = registry.begin("flights", 1, "run-1", 60, LEASE)
    registry.store_window(promotion, 0, {"n": 1}, {"kind": "hold"}, {"at": 1.0}, watching=False)
    registry.store_window(promotion, 0, {"n": 2}, {"kind": "reject"}, None, watching=True)
    assert registry.windows(promotion) == [StoredWindow({"n": 1}, {"kind": "hold"}, False)]
    assert registry.snapshot(promotion) == {"at": 1.0}


def test_a_route_survives_with_its_matches_and_mirror(registry: Registry) -> None:
    registered(registry, 1)
    routes = Routes(
        {"flights-v1": 100}, (Match("header", "x-group", "b", "flights-v1"),), Mirror("flights-v1", 10)
    )
    with registry.turn("flights") as turn:
        turn.intend_route(routes)
    assert registry.standing("flights").route == routes


def test_an_alert_is_claimed_once_and_cool_downs_hold(registry: Registry) -> None:
    from datetime import UTC, datetime

    registered(registry, 1)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert [registry.claim_alert("f", at, "flights") for _ in range(2)] == ["mine", "busy"]
    registry.release_alert("f", at)
    assert registry.claim_alert("f", at, "flights") == "mine"
    registry.settle_alert("f", at, "rolled-back")
    assert registry.claim_alert("f", at, "flights") == "settled"
    assert not registry.cooling_down("flights")
    assert [registry.cool_down("flights", 60) for _ in range(2)] == [True, False]
    assert registry.cooling_down("flights")


def test_a_frozen_model_is_not_promoted(registry: Registry) -> None:
    registered(registry, 1)
    registry.freeze("flights", "drift in 3 columns")
    with pytest.raises(ModelServeError, match="frozen: drift in 3 columns"):
        registry.begin("flights", 1, "run", 60, LEASE)
    registry.freeze("flights", None)
    registry.begin("flights", 1, "run", 60, LEASE)


def test_an_approval_needs_an_open_promotion(registry: Registry) -> None:
    registered(registry, 1)
    with pytest.raises(ModelServeError, match="may have been rolled back"):
        registry.approve("flights", 50, "ann", "looks fine")
    promotion = registry.begin("flights", 1, "run", 60, LEASE)
    registry.approve("flights", 50, "ann", "looks fine")
    assert registry.approved(promotion, 50)
    assert not registry.approved(promotion, 100)


def test_migrating_twice_and_at_once_is_one_schema(database_url: str) -> None:
    registry = Registry(database_url)
    threads = [threading.Thread(target=registry.migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry.migrate()
    assert registry.models() == []


def test_a_dead_database_is_named_in_one_line(tmp_path: Path) -> None:
    registry = Registry(f"postgresql://postgres@/none?host={tmp_path}", patience=0.3)
    with pytest.raises(DependencyDown, match=r"^PostgreSQL does not answer: [^\n]+$"):
        registry.models()


def test_events_of_an_earlier_version_read_in_the_words_of_today(registry: Registry) -> None:
    """Events are append-only, so what was written as `retreated` stays so in the table."""
    for kind in ("retreat", "retreated", "rolled back"):
        registry.note("flights", kind, {})
    assert [event.kind for event in registry.events("flights")] == [
        "rolling back",
        "rolled back",
        "rolled back",
    ]
