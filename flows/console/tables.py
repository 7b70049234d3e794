"""How the registry's words look in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from rich.markup import escape
from rich.table import Table

from flows.adapters.registry import Event, StoredWindow
from flows.adapters.stack import PartStatus
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.promotion import WITHOUT_PROOF, Promotion, Standing, State
from flows.domain.release import Release
from flows.settings import Settings

COLOURS = {
    State.PROMOTED: "green",
    State.RUNNING: "cyan",
    State.WATCHING: "cyan",
    **dict.fromkeys(WITHOUT_PROOF, "yellow"),
}
"""Of a promotion's state; red where there is none."""


def clock(at: datetime) -> str:
    """Local time of day; the date only when it is not today."""
    local = at.astimezone()
    today = datetime.now().astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


def addresses(settings: Settings) -> Table:
    table = Table.grid(padding=(0, 2))
    ports = settings.ports
    table.add_row("Prefect UI", settings.prefect_ui_url)
    table.add_row("gateway", f"{settings.gateway_url}/models/<model>/predict")
    table.add_row("Prometheus", settings.prometheus_url)
    table.add_row("Alertmanager", f"http://127.0.0.1:{ports.alertmanager}")
    table.add_row("logs", str(settings.logs))
    return table


def parts_table(parts: Sequence[PartStatus]) -> Table:
    table = Table(title="parts", title_justify="left")
    for column in ("part", "state", "pid", "up for", "address", "log"):
        table.add_column(column, overflow="fold")
    for part in parts:
        colour = "green" if part.healthy else "yellow" if part.state != "DOWN" else "dim"
        since = f"{part.seconds:.0f} s" if part.pid else ""
        # A process that lives and does not do its work is what misleads most at night.
        state = "not answering" if part.state == "RUNNING" and not part.healthy else part.state.lower()
        table.add_row(
            part.name,
            f"[{colour}]{state}[/]",
            str(part.pid or ""),
            since,
            part.url,
            str(part.log),
        )
    return table


def models_table(
    standings: Iterable[Standing], unanswered: Mapping[str, int] = MappingProxyType({})
) -> Table:
    """Who gets the traffic, and what is happening: one line a release in service, one a model without any.

    `unanswered`: by model, alerts that fire and moved nothing.
    """
    table = Table(title="models", title_justify="left")
    for column in ("model", "release", "phase", "traffic", "now"):
        table.add_column(column, overflow="fold")
    for standing in standings:
        now = escape(happening(standing))
        if alerts := unanswered.get(standing.model):
            word = "alert fires and moved" if alerts == 1 else "alerts fire and moved"
            now = f"{now}{'; ' if now else ''}[bold red]{alerts} {word} nothing[/]: somebody must look"
        serving = [release for release in standing.releases if release.in_service]
        for release in serving:
            weight = standing.route.weight(release.name)
            table.add_row(standing.model, release.name, release.phase, f"{weight} %" if weight else "", now)
            now = ""
        if not serving:
            table.add_row(standing.model, "", "serves nobody", "", now)
    return table


def happening(standing: Standing) -> str:
    """What a person should know of the model at this moment; empty when nothing is going on."""
    said = []
    if standing.retreat is not None:
        said.append(f"rolling back: {standing.retreat.reason}")
    elif (promotion := standing.promotion) is not None:
        paused = ", paused" if promotion.paused else ""
        said.append(f"promotion of v{promotion.version}: {promotion.state} at {promotion.weight} %{paused}")
    if standing.frozen:
        said.append(f"frozen: {standing.frozen}")
    return "; ".join(said)


def releases_table(standing: Standing, releases: Sequence[Release], *, older: bool = False) -> Table:
    table = Table(title=_title(standing.model, older), title_justify="left")
    if said := happening(standing):
        table.title = f"{table.title}: {escape(said)}"
    for column in ("release", "phase", "traffic", "sha256", "image"):
        table.add_column(column, overflow="fold")
    for release in releases:
        weight = standing.route.weight(release.name)
        table.add_row(
            release.name,
            release.phase,
            f"{weight} %" if weight else "",
            release.sha256[:12],
            release.image or "",
        )
    return table


def _title(what: str, older: bool) -> str:
    return f"{what} (there are older ones: --last N, or --all)" if older else what


def promotions_table(promotions: Sequence[Promotion], *, older: bool = False) -> Table:
    table = Table(title=_title("promotions", older), title_justify="left")
    for column in ("id", "version", "state", "weight", "began", "seconds", "why"):
        table.add_column(column, overflow="fold")
    for promotion in promotions:
        colour = COLOURS.get(promotion.state, "red")
        seconds = (
            f"{(promotion.ended_at - promotion.started_at).total_seconds():.0f}" if promotion.ended_at else ""
        )
        table.add_row(
            promotion.id[:8],
            f"v{promotion.version}",
            f"[{colour}]{promotion.state}[/]",
            f"{promotion.weight} %",
            clock(promotion.started_at),
            seconds,
            escape(promotion.reason or ""),
        )
    return table


def event_line(event: Event) -> str:
    release = f"v{event.version} " if event.version is not None else ""
    return f"{clock(event.at)}  {release}{event.kind}  {_detail(event.detail)}".rstrip()


def windows_table(promotion: Promotion, stored: Sequence[StoredWindow], policy: PromotionPolicy) -> Table:
    """One line a window, with the counts of the gate that spoke; the sentence only where it changes."""
    windows = [Window.from_json(window.content) for window in stored]
    shown = spoken(policy, windows, Verdict.from_json(stored[-1].verdict) if stored else None)
    state = f"[{COLOURS.get(promotion.state, 'red')}]{promotion.state}[/]"
    table = Table(
        title=f"{promotion.model} v{promotion.version}: {state}: {escape(promotion.reason or '')}",
        title_justify="left",
    )
    for column in (
        "seconds",
        "weight",
        "share",
        f"new: {shown.what} / all",
        f"old: {shown.what} / all",
        "E",
        "verdict",
        "why",
    ):
        table.add_column(column, overflow="fold")
    said = ""
    for window, row, new, old in zip(windows, stored, shown.canary, shown.stable, strict=True):
        verdict = Verdict.from_json(row.verdict)
        table.add_row(
            f"{window.end - windows[0].start:.1f}",
            f"{window.weight} %",
            f"{100 * window.share:.1f} %" if window.observed else escape(window.why),
            f"{new[0]} / {new[1]}",
            f"{old[0]} / {old[1]}" if window.stable else "",
            f"{verdict.evidence:.3g}",
            verdict.kind,
            "" if verdict.sentence == said else escape(verdict.sentence),
        )
        said = verdict.sentence
    return table


def events_table(events: Iterable[Event], *, older: bool = False) -> Table:
    table = Table(title=_title("events", older), title_justify="left")
    for column in ("at", "version", "event", "detail"):
        table.add_column(column, overflow="fold")
    for event in events:
        version = f"v{event.version}" if event.version is not None else ""
        table.add_row(clock(event.at), version, event.kind, escape(_detail(event.detail)))
    return table


def _detail(detail: dict[str, Any]) -> str:
    """The fields a person reads; long lists (findings, windows) are counted instead."""
    if sentence := detail.get("sentence"):
        return str(sentence)
    shown = []
    for key, value in detail.items():
        if value is None or value in ({}, []):
            continue
        if isinstance(value, list | dict):
            shown.append(f"{key}: {len(value)}")
        elif key == "weight":
            shown.append(f"{value} %")
        elif key in ("reason", "why"):
            shown.append(str(value))
        else:
            shown.append(f"{key} {value}")
    return ", ".join(shown)
