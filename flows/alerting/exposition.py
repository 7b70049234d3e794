"""The control plane's metrics page, read from the registry at every scrape.

Flows are short-lived processes that nobody could scrape; the registry remembers for them. Drift scores,
open promotions and the sweep's last success therefore survive any crash, and need no push gateway.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from flows.domain.release import parse_release_name
from flows.wiring import ControlPlane


def exposition(plane: ControlPlane) -> bytes:
    """The page in Prometheus' text format. Raises DependencyDown when the registry does not answer."""
    page = CollectorRegistry(auto_describe=False)

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"modelserve_{name}", text, labels, registry=page)

    running = gauge("promotion_running", "1 while a promotion is open.", "model", "version", "state")
    started = gauge("promotion_started_timestamp_seconds", "When it began.", "model", "version")
    deadline = gauge("promotion_deadline_timestamp_seconds", "When its policy decides.", "model", "version")
    weight = gauge("release_weight", "Percent of the traffic meant for a release.", "model", "version")
    frozen = gauge("model_frozen", "1 while no promotion of the model may begin.", "model")
    checked = gauge("drift_last_success_timestamp_seconds", "Last finished drift check.", "model")
    outcome = gauge("drift_outcome", "1 for how the newest drift check ended.", "model", "outcome")
    alerting = gauge("drift_alert", "1 when the newest drift check calls for somebody.", "model", "outcome")
    score = gauge("drift_score", "Drift of a column over its calibrated threshold.", "model", "column")
    findings = gauge("drift_findings", "What the newest drift check met in the data.", "model", "kind")
    failures = gauge("drift_failed_checks", "Drift checks that could not be finished.", "model")
    unanswered = gauge("alerts_unanswered", "Alerts that fire and whose answer was postponed.", "model")
    postponed = plane.registry.unanswered()
    for model in plane.registry.overview():
        unanswered.labels(model.model).set(postponed.get(model.model, 0))
        frozen.labels(model.model).set(model.frozen)
        for name, percent in model.weights.items():
            weight.labels(model.model, str(parse_release_name(name)[1])).set(percent)
        if model.version is not None and model.started is not None and model.deadline is not None:
            version = str(model.version)
            running.labels(model.model, version, model.state).set(1)
            started.labels(model.model, version).set(model.started)
            deadline.labels(model.model, version).set(model.deadline)
        if model.drift_outcome is not None:
            outcome.labels(model.model, model.drift_outcome).set(1)
            alerting.labels(model.model, model.drift_outcome).set(model.drift_alerts)
        if model.drift_checked is not None:
            checked.labels(model.model).set(model.drift_checked)
        failures.labels(model.model).set(model.drift_failures)
        for kind, count in model.drift_findings.items():
            findings.labels(model.model, kind).set(count)
        for column, value in model.drift_scores.items():
            score.labels(model.model, column).set(value)
    for name, at in plane.registry.beats().items():
        text = f"Last time the {name} succeeded."
        gauge(f"{name}_last_success_timestamp_seconds", text).set(at.timestamp())
    return generate_latest(page)
