"""The alert receiver: Alertmanager calls it, and it rolls back at three in the morning.

It rolls back in its own process, as a Prefect flow run that the UI shows; when the Prefect server is away
it does the same without one. Starting a worker's process or a pod first would cost users seconds of errors.
An alert counts as answered only when it is settled: a receiver that dies half-way gets it again, and a
rollback that had begun is on record and finished by the sweep. An answer that moved nothing (a cool-down, an
incident that both share) is only postponed: the alert is asked again for as long as it fires, and the metrics
page says so until then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import anyio.to_thread
import httpx
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field

from flows.adapters.registry import POSTPONED
from flows.alerting.attribution import Blame, blame
from flows.alerting.door import Door, TokenMissing, read_token
from flows.alerting.exposition import exposition
from flows.domain.errors import DependencyDown, ModelServeError
from flows.domain.promotion import State
from flows.rollback import rollback
from flows.steps.restore import roll_back
from flows.wiring import ControlPlane, control_plane

log = logging.getLogger(__name__)


class Alert(BaseModel):
    """One alert of Alertmanager's webhook (version 4)."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    status: str
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: datetime = Field(alias="startsAt")
    fingerprint: str


class Notification(BaseModel):
    model_config = ConfigDict(extra="ignore")

    alerts: list[Alert]


@dataclass(frozen=True)
class Outcome:
    """What became of one alert: a word for machines, a sentence for people."""

    word: str
    sentence: str


def handle(plane: ControlPlane, alert: Alert) -> Outcome:
    """Answer one alert. Raises DependencyDown when it must be sent again."""
    name = alert.labels.get("alertname", "an alert")
    if alert.status != "firing":
        plane.registry.end_alert(alert.fingerprint, alert.starts_at)
        return Outcome("resolved", f"{name} is over; nothing to do")
    if alert.labels.get("action") != "rollback":
        return Outcome("no-action", f"{name} asks for no action (label action=rollback)")
    model = alert.labels.get("model", "")
    if model not in plane.registry.models():
        return Outcome("unknown-model", f"{name} names the model {model!r}, which is not registered")
    claim = plane.registry.claim_alert(alert.fingerprint, alert.starts_at, model)
    if claim == "settled":
        return Outcome("duplicate", f"{name} for {model} has been answered already")
    if claim == "busy":
        # Whoever answers it may die; Alertmanager sends it again until it is settled.
        raise DependencyDown(f"{name} for {model} is being answered; send it again")
    try:
        outcome = _answer(plane, alert, model, name)
    except BaseException:
        plane.registry.release_alert(alert.fingerprint, alert.starts_at)
        raise
    plane.registry.settle_alert(alert.fingerprint, alert.starts_at, outcome.word)
    if claim == "mine" or outcome.word not in POSTPONED:  # said once, however often it is asked again
        plane.registry.note(model, "alert", {"alert": name, "outcome": outcome.word, "why": outcome.sentence})
    return outcome


def _answer(plane: ControlPlane, alert: Alert, model: str, name: str) -> Outcome:
    finding = blame(plane, model, alert.labels.get("version"))
    if finding.kind is Blame.SHARED:
        if not plane.registry.standing(model).frozen:
            plane.registry.freeze(model, f"{name}: {finding.sentence}")
        return Outcome("shared-incident", f"{model} is frozen, not rolled back: {finding.sentence}")
    if finding.kind is Blame.NOT_IN_SERVICE:
        return Outcome("not-in-service", finding.sentence)
    if plane.registry.cooling_down(model):
        return Outcome(
            "cooling-down", f"{model} was rolled back by an alert a moment ago; it is asked again after that"
        )
    summary = alert.annotations.get("summary", "no summary")
    sentence = _with_prefect(plane, model, finding.version, f"alert {name}: {summary}")
    # Only now: a rollback that failed must not keep its own repetition from being tried.
    plane.registry.cool_down(model, plane.settings.cooldown_seconds)
    return Outcome("rolled-back", sentence)


def _with_prefect(plane: ControlPlane, model: str, version: int, reason: str) -> str:
    """As a flow run when the Prefect server answers; users do not wait for it when it does not."""
    try:
        httpx.get(f"{plane.settings.prefect_url}/health", timeout=1.0).raise_for_status()
        return rollback(model=model, reason=reason, leaving=version, against_the_release=True)
    except ModelServeError:
        raise
    except Exception as error:  # half-up servers fail in many ways; none may keep users waiting
        log.warning("rolling back without a Prefect flow run: %s", error)
        return roll_back(plane, model, reason, state=State.REJECTED, leaving=version).sentence


def receiver(plane: ControlPlane, token: str) -> FastAPI:
    """The receiver's web application; `token` is the bearer token that Alertmanager shows."""
    app = FastAPI(title="ModelServeAI alert receiver", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Door, token=token)

    @app.post("/alerts")
    async def alerts(notification: Notification) -> dict[str, list[dict[str, str]]]:
        outcomes = []
        again: list[str] = []
        for alert in notification.alerts:
            try:
                outcome = await anyio.to_thread.run_sync(handle, plane, alert)
            except (ModelServeError, OSError) as error:
                log.error("alert %s: %s", alert.labels.get("alertname"), error)
                again.append(str(error))
                continue
            log.info("%s: %s", outcome.word, outcome.sentence)
            outcomes.append({"outcome": outcome.word, "why": outcome.sentence})
        if again:
            # Alertmanager sends the whole group again; what was answered is a duplicate then.
            raise HTTPException(503, "; ".join(again))
        return {"alerts": outcomes}

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics() -> Response:
        try:
            return Response(exposition(plane), media_type=CONTENT_TYPE_LATEST)
        except DependencyDown as error:
            raise HTTPException(503, str(error)) from error

    return app


def serve() -> None:
    """Run the receiver until it is told to stop; ends at once, with a sentence, when it has no token."""
    import uvicorn

    plane = control_plane()
    try:
        token = read_token(Path(plane.settings.alerts_token_file))
    except TokenMissing as error:
        raise SystemExit(str(error)) from None
    uvicorn.run(
        receiver(plane, token),
        host=plane.settings.alerts_host,
        port=plane.settings.ports.alerts,
        log_level="info",
        access_log=False,
    )


if __name__ == "__main__":
    serve()
