"""What a promotion leaves in the Prefect UI: a decision report, a plot, a table of windows, the image."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.adapters.registry import Event
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import Spoken, spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.pages import plain_markdown
from flows.domain.promotion import Promotion, State
from flows.domain.release import release_name
from flows.domain.spec import ModelSpec
from flows.steps import hotfix
from flows.steps.plots import promotion_plot
from flows.wiring import ControlPlane

log = logging.getLogger(__name__)

HEADLINE = {
    State.PROMOTED: "✅ promoted",
    State.REJECTED: "⛔ rejected, traffic went back",
    State.FAILED: "⚠️ failed, traffic went back",
    State.ABORTED: "↩️ aborted, traffic went back",
    State.KEPT: "⏸️ kept at its weight, unproven",
    State.UNPROVEN: "🟡 unproven: too little evidence, and none against it",
    State.RUNNING: "running",
    State.WATCHING: "at 100 %, being watched",
}


class Progress:
    """Prints a line when the judge says something new, and moves the run's progress bar."""

    def __init__(self, promotion: Promotion, policy: PromotionPolicy) -> None:
        self._steps = [*policy.steps, 101]
        self._key = f"progress-{promotion.model}"
        self._artifact: UUID | None = None
        self._said = ""

    def __call__(self, window: Window, verdict: Verdict) -> None:
        if verdict.sentence != self._said:
            self._said = verdict.sentence
            print(f"{window.weight} %: {verdict.kind}: {verdict.sentence}")
        done = sum(step <= window.weight for step in self._steps)
        percent = min(99.0, 100.0 * (done - (verdict.kind != "advance")) / (len(self._steps) - 1))
        try:
            if self._artifact is None:
                created = create_progress_artifact(percent, self._key, description=verdict.sentence)
                self._artifact = created if isinstance(created, UUID) else None
            else:
                update_progress_artifact(self._artifact, percent, description=verdict.sentence)
        except Exception as error:  # the Prefect server may be away: watching goes on without it
            log.warning("progress was not shown: %s", error)


def publish_image(promotion: Promotion, image: str, scanned: str) -> None:
    """The image by digest and what the scanners found (markdown), before anything is deployed."""
    name = release_name(promotion.model, promotion.version)
    try:
        create_markdown_artifact(plain_markdown(scanned), key=f"scan-{name}", description=image)
    except Exception as error:  # a report must not decide how a promotion ends
        log.warning("the scan of %s could not be published: %s", name, error)


def publish_report(plane: ControlPlane, promotion: str, spec: ModelSpec) -> None:
    """Write the report of the promotion with this id to the artifact store and to Prefect. Never fails it."""
    try:
        _publish(plane, plane.registry.promotion(promotion), spec)
    except Exception as error:  # a report must not decide how a promotion ends
        log.warning("the report of promotion %s could not be published: %s", promotion, error)


def _publish(plane: ControlPlane, promotion: Promotion, spec: ModelSpec) -> None:
    name = release_name(promotion.model, promotion.version)
    stored = plane.registry.windows(promotion)
    windows = [Window.from_json(window.content) for window in stored]
    verdicts = [Verdict.from_json(window.verdict) for window in stored]
    shown = spoken(spec.promotion, windows, verdicts[-1] if verdicts else None)
    events = plane.registry.events(promotion.model, promotion)
    text = plain_markdown(decision_report(promotion, events, windows, verdicts, shown))
    folder = f"reports/{promotion.model}/{promotion.id}"
    uri = plane.artifacts.write_bytes(f"{folder}/report.md", text.encode())
    create_markdown_artifact(text, key=f"decision-{name}", description=promotion.reason)
    if windows:
        plot = promotion_plot(f"{name}: {promotion.state}", spec.promotion, windows, verdicts)
        plane.artifacts.write_bytes(f"{folder}/plot.png", plot)
        picture = f"data:image/png;base64,{base64.b64encode(plot).decode()}"
        create_image_artifact(picture, key=f"plot-{name}", description=f"{name}: weights, errors, evidence")
        create_table_artifact(
            window_rows(windows, verdicts, shown),
            key=f"windows-{name}",
            description=f"{name}: what the judge saw",
        )
    create_link_artifact(uri, key=f"report-{name}", link_text=f"report of {name} in the artifact store")


def decision_report(
    promotion: Promotion,
    events: Sequence[Event],
    windows: Sequence[Window],
    verdicts: Sequence[Verdict],
    shown: Spoken,
) -> str:
    """Markdown: how it ended, why, what happened when, and the last of what the judge saw."""
    lines = [
        f"# {promotion.model} v{promotion.version}: {HEADLINE[promotion.state]}",
        "",
        f"**{promotion.reason or 'no reason recorded'}**",
        "",
        f"Promotion `{promotion.id}`, began {promotion.started_at:%Y-%m-%d %H:%M:%S} UTC"
        + (f", took {_seconds(promotion):.0f} s" if promotion.ended_at else ""),
        "",
    ]
    asked = hotfix.agreed(events)
    if asked is not None:
        lines += [f"A {hotfix.sentence(asked)}", ""]
    if windows:
        canary = sum(window.canary.requests for window in windows)
        failed = sum(window.canary.errors for window in windows)
        unseen = sum(not window.observed for window in windows)
        lines += [
            "| what the judge saw | |",
            "|---|---|",
            f"| windows | {len(windows)}, of which {unseen} unobserved |",
            f"| requests to the new release | {canary}, of which {failed} failed |",
            *_of_the_gate(shown),
            f"| last evidence against it | {verdicts[-1].evidence:.3g} |",
            f"| last verdict | {verdicts[-1].kind}: {verdicts[-1].sentence} |",
            "",
        ]
    lines += ["| seconds | event | |", "|---|---|---|"]
    for event in events:
        at = (event.at - promotion.started_at).total_seconds()
        lines.append(f"| {at:.1f} | {event.kind} | {_detail(event.detail)} |")
    lines += ["", f"Replay every verdict: `modelserve explain {promotion.id[:8]} --replay`", ""]
    return "\n".join(lines)


def _of_the_gate(shown: Spoken) -> list[str]:
    """A line on the gate that spoke, where that was not the errors'."""
    if shown.gate == "errors":
        return []
    (bad, every), (bad_stable, every_stable) = shown.totals
    return [
        f"| {shown.what} | {bad} of {every} on the new release, {bad_stable} of {every_stable} on the old |"
    ]


def window_rows(
    windows: Sequence[Window], verdicts: Sequence[Verdict], shown: Spoken
) -> list[dict[str, Any]]:
    """One row a window, for a table that sorts and searches, with the counts of the gate that spoke."""
    begin = windows[0].start if windows else 0.0
    return [
        {
            "seconds": round(window.end - begin, 1),
            "weight": window.weight,
            "share %": round(100 * window.share, 1),
            "canary": canary[1],
            f"canary: {shown.what}": canary[0],
            "stable": stable[1],
            f"stable: {shown.what}": stable[0],
            "E": float(f"{verdict.evidence:.3g}"),
            "verdict": verdict.kind,
            "why": verdict.sentence,
        }
        for window, verdict, canary, stable in zip(windows, verdicts, shown.canary, shown.stable, strict=True)
    ]


def _seconds(promotion: Promotion) -> float:
    assert promotion.ended_at is not None
    return (promotion.ended_at - promotion.started_at).total_seconds()


def _detail(detail: dict[str, Any]) -> str:
    short = {key: value for key, value in detail.items() if not isinstance(value, list | dict)}
    text = ", ".join(f"{key} {value}" for key, value in short.items() if value is not None)
    return text.replace("|", "\\|").replace("\n", " ")[:300]
