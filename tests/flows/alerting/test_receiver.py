"""The alert receiver: every kind of alert has its answer, and none is lost or answered twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flows.adapters.memory import MemoryPlatform
from flows.alerting.receiver import receiver
from flows.domain.errors import DependencyDown
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.promotion import State
from flows.domain.release import Phase
from flows.wiring import ControlPlane
from tests.flows.conftest import Story

TOKEN = "a-secret"


def alert(fingerprint: str = "f1", status: str = "firing", **labels: str) -> dict[str, Any]:
    wanted = {"alertname": "ReleaseFailing", "action": "rollback", "model": "flights", "version": "2"}
    return {
        "status": status,
        "labels": {key: value for key, value in (wanted | labels).items() if value},
        "annotations": {"summary": "flights-v2 fails 40 % of its requests"},
        "startsAt": "2026-11-22T03:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": fingerprint,
    }


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[TestClient]:
    with TestClient(receiver(plane, TOKEN), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.fixture
def settled(story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    story.promoted(2)


def answer(client: TestClient, *alerts: dict[str, Any]) -> list[str]:
    response = client.post("/alerts", json={"version": "4", "alerts": list(alerts)})
    assert response.status_code == 200, response.text
    return [outcome["outcome"] for outcome in response.json()["alerts"]]


@pytest.mark.usefixtures("settled")
def test_a_firing_alert_rolls_the_newest_release_back_even_without_prefect(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    assert answer(client, alert()) == ["rolled-back"]
    assert story.weights() == {"flights-v1": 100}
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REJECTED}
    (noted,) = [event for event in plane.registry.events("flights") if event.kind == "alert"]
    assert noted.detail["outcome"] == "rolled-back"
    assert "fails 40 % of its requests" in noted.detail["why"]


@pytest.mark.usefixtures("settled")
def test_repetitions_are_answered_once(client: TestClient, story: Story) -> None:
    assert answer(client, alert(), alert()) == ["rolled-back", "duplicate"]
    assert answer(client, alert()) == ["duplicate"]
    assert story.phases() == {1: Phase.STABLE, 2: Phase.REJECTED}


@pytest.mark.usefixtures("settled")
def test_an_alert_that_somebody_is_answering_is_to_be_sent_again(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    """Whoever answers it may die: only a settled alert is a duplicate."""
    at = datetime(2026, 11, 22, 3, tzinfo=UTC)
    assert plane.registry.claim_alert("f1", at, "flights") == "mine"
    assert client.post("/alerts", json={"alerts": [alert()]}).status_code == 503
    assert story.weights() == {"flights-v2": 100}
    plane.registry.release_alert("f1", at)
    assert answer(client, alert()) == ["rolled-back"]


@pytest.mark.usefixtures("settled")
def test_a_kept_canary_leaves_though_nothing_preceded_it(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    story.register(3)
    promotion = story.begin(3, 25)
    with plane.registry.turn("flights") as turn:
        turn.end(promotion, State.KEPT, "not certified by its deadline")
    assert answer(client, alert(version="3")) == ["rolled-back"]
    assert story.weights() == {"flights-v2": 100}


@pytest.mark.usefixtures("settled")
def test_a_rollback_that_failed_leaves_no_cool_down(
    client: TestClient, platform: MemoryPlatform, plane: ControlPlane
) -> None:
    platform.fail["route"] = DependencyDown("the gateway is away")
    assert client.post("/alerts", json={"alerts": [alert()]}).status_code == 503
    assert not plane.registry.cooling_down("flights")


@pytest.mark.usefixtures("settled")
def test_resolved_foreign_and_unknown_alerts_move_nothing(client: TestClient, story: Story) -> None:
    outcomes = answer(
        client,
        alert("a", status="resolved"),
        alert("b", action=""),
        alert("c", model="nobody"),
        alert("d", version="7"),
    )
    assert outcomes == ["resolved", "no-action", "unknown-model", "not-in-service"]
    assert story.weights() == {"flights-v2": 100}


@pytest.mark.usefixtures("settled")
def test_a_second_alert_within_the_cool_down_waits_for_a_person(client: TestClient, story: Story) -> None:
    assert answer(client, alert("a")) == ["rolled-back"]
    story.register(3)
    story.promoted(3)
    assert answer(client, alert("b", version="3")) == ["cooling-down"]
    assert story.weights() == {"flights-v3": 100}


@pytest.mark.usefixtures("settled")
def test_an_alert_that_fires_through_a_cool_down_is_answered_after_it(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    assert answer(client, alert("a")) == ["rolled-back"]
    story.register(3)
    story.promoted(3)
    for _ in range(2):
        assert answer(client, alert("b", version="3")) == ["cooling-down"]
    assert plane.registry.unanswered() == {"flights": 1}
    assert 'modelserve_alerts_unanswered{model="flights"} 1.0' in client.get("/metrics").text
    plane.registry.end_cool_down("flights")
    assert answer(client, alert("b", version="3")) == ["rolled-back"]
    assert story.weights() == {"flights-v1": 100}
    assert answer(client, alert("b", version="3")) == ["duplicate"]
    assert plane.registry.unanswered() == {}
    told = [event.detail["outcome"] for event in plane.registry.events("flights") if event.kind == "alert"]
    assert told == ["rolled-back", "cooling-down", "rolled-back"]


def test_a_shared_incident_that_turns_out_to_be_the_canary_s_is_answered(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25)

    def judged(number: int, verdict: Verdict) -> None:
        window = Window(2.0 * number, 2.0 * number + 2, 25).to_json()
        plane.registry.store_window(promotion, number, window, verdict.to_json(), None, watching=False)

    judged(0, Verdict("hold", "incident", "both releases fail alike: a shared incident"))
    assert answer(client, alert()) == ["shared-incident"]
    judged(1, Verdict("hold", "errors", "only the canary fails now"))
    assert answer(client, alert()) == ["rolled-back"]
    assert story.weights() == {"flights-v1": 100}


def test_a_failing_stable_does_not_take_out_the_hotfix_that_rescues_it(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    """Alerts about budgets name no version; the canary's own counts say that it is not the cause."""
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25)
    verdict = Verdict("hold", "time", "20 of 100 s at this step", interval=(-0.31, -0.24))
    window = Window(0.0, 2.0, 25).to_json()
    plane.registry.store_window(promotion, 0, window, verdict.to_json(), None, watching=False)
    assert answer(client, alert(version="")) == ["shared-incident"]
    assert story.weights() == {"flights-v1": 75, "flights-v2": 25}
    assert "proven to fail less" in (plane.registry.standing("flights").frozen or "")
    # An alert that names the release is about something else than the errors that it has fewer of.
    assert answer(client, alert("f2")) == ["rolled-back"]


def test_a_postponed_alert_that_is_over_waits_for_nobody(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    story.register(1, 2)
    story.promoted(1)
    assert answer(client, alert(version="2")) == ["not-in-service"]
    assert plane.registry.unanswered() == {"flights": 1}
    assert answer(client, alert(version="2", status="resolved")) == ["resolved"]
    assert plane.registry.unanswered() == {}


@pytest.mark.usefixtures("settled")
def test_the_last_release_that_is_left_is_not_taken_out_by_an_alert(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    assert answer(client, alert("a")) == ["rolled-back"]
    assert answer(client, alert("b", version="1")) == ["shared-incident"]
    assert story.weights() == {"flights-v1": 100}
    assert "no earlier release to go back to" in (plane.registry.standing("flights").frozen or "")


def test_a_canary_is_taken_out_when_the_evidence_does_not_clear_it(client: TestClient, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    story.begin(2, 25)
    assert answer(client, alert()) == ["rolled-back"]
    assert story.weights() == {"flights-v1": 100}


def test_a_shared_incident_freezes_and_says_so(client: TestClient, story: Story, plane: ControlPlane) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 25)
    verdict = Verdict("hold", "incident", "both releases fail alike: a shared incident")
    plane.registry.store_window(
        promotion, 0, Window(0, 2, 25).to_json(), verdict.to_json(), None, watching=False
    )
    assert answer(client, alert()) == ["shared-incident"]
    assert story.weights() == {"flights-v1": 75, "flights-v2": 25}
    assert "both releases fail alike" in (plane.registry.standing("flights").frozen or "")


def test_an_alert_about_the_old_release_does_not_take_the_new_one_out(
    client: TestClient, story: Story
) -> None:
    story.register(1, 2)
    story.promoted(1)
    story.begin(2, 25)
    assert answer(client, alert(version="1")) == ["shared-incident"]
    assert story.weights() == {"flights-v1": 75, "flights-v2": 25}


@pytest.mark.usefixtures("settled")
def test_a_rollback_that_fails_is_sent_again_by_alertmanager_and_then_succeeds(
    client: TestClient, story: Story, platform: MemoryPlatform, plane: ControlPlane
) -> None:
    platform.fail["route"] = DependencyDown("the gateway is away")
    response = client.post("/alerts", json={"alerts": [alert()]})
    assert response.status_code == 503
    assert "the gateway is away" in response.json()["detail"]
    assert plane.registry.retreating() == ["flights"]
    assert answer(client, alert()) == ["rolled-back"]
    assert story.weights() == {"flights-v1": 100}
    assert plane.registry.retreating() == []


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic YTpi", TOKEN[:-1]])
def test_without_the_token_nothing_is_done(plane: ControlPlane, story: Story, header: str | None) -> None:
    story.register(1, 2)
    story.promoted(1)
    story.promoted(2)
    headers = {"Authorization": header} if header else {}
    with TestClient(receiver(plane, TOKEN), headers=headers) as client:
        assert client.post("/alerts", json={"alerts": [alert()]}).status_code == 401
    assert story.weights() == {"flights-v2": 100}


@pytest.mark.parametrize("body", ["{", "[]", '{"alerts": [{}]}', '{"alerts": "x"}'])
def test_a_malformed_notification_is_the_sender_s_mistake(client: TestClient, body: str) -> None:
    assert client.post("/alerts", content=body).status_code == 422


@pytest.mark.usefixtures("settled")
def test_the_metrics_page_shows_weights_promotions_and_the_sweep(
    client: TestClient, story: Story, plane: ControlPlane
) -> None:
    story.register(3)
    story.begin(3, 25)
    plane.registry.beat("sweep")
    plane.registry.record_drift("flights", "drifted", {"scores": {"hour": 1.5}, "alerts": True})
    met = [{"kind": "missing_column", "count": 40}, {"kind": "missing_column", "count": 2}]
    failed = {"scores": {}, "alerts": False, "findings": met}
    plane.registry.record_drift("flights", "failed", failed)
    page = client.get("/metrics").text
    assert 'modelserve_release_weight{model="flights",version="3"} 25.0' in page
    assert 'modelserve_promotion_running{model="flights",state="running",version="3"} 1.0' in page
    assert 'modelserve_drift_score{column="hour",model="flights"} 1.5' in page
    assert 'modelserve_drift_outcome{model="flights",outcome="failed"} 1.0' in page
    assert 'modelserve_drift_alert{model="flights",outcome="failed"} 0.0' in page
    assert 'modelserve_drift_findings{kind="missing_column",model="flights"} 42.0' in page
    assert 'modelserve_drift_failed_checks{model="flights"} 1.0' in page
    assert "modelserve_sweep_last_success_timestamp_seconds 1" in page
