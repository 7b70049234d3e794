"""The report of a drift check: one self-contained page with a plot of every column."""

from __future__ import annotations

import html
from collections.abc import Sequence

from flows.domain.drift.binning import FIRST_BIN, FIRST_CATEGORY
from flows.domain.drift.column_drift import NEWEST
from flows.domain.drift.findings import ColumnDrift, DriftResult, WindowSummary
from flows.domain.drift.performance import QUALITY
from flows.domain.drift.report import change_text, detectable_text, effect_text, lines, moment
from flows.domain.pages import with_policy


def page(result: DriftResult, second_opinion: str | None = None, link: str | None = None) -> str:
    """A self-contained page: verdict, findings, and a plot of every column against the reference."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines(result))
    items += "".join(
        f"<li><b>{html.escape(f.kind.replace('_', ' '))}</b>: {html.escape(f.sentence)}</li>"
        for f in result.findings
    )
    other = ""
    if second_opinion:
        there = f' <a href="{html.escape(link)}">Evidently report</a>' if link else ""
        other = f"<p>Second opinion. {html.escape(second_opinion)}.{there}</p>"
    newest = result.windows[-NEWEST:]
    plots = "".join(_card(column, newest) for column in result.columns)
    windows = _windows(newest)
    title = f"{html.escape(result.release or result.model)}: {html.escape(result.outcome.value)}"
    return with_policy(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style>"
        f"</head><body><h1>{title}</h1><p>{html.escape(result.sentence)}</p>{other}<ul>{items}</ul>"
        f"{windows}"
        f'<p class="key"><i class="r"></i> reference <i class="s"></i> newest windows; below, what '
        "share of the rows moved in each window, dashed: what is usual in the reference</p>"
        f'<div class="grid">{plots}</div></body></html>\n'
    )


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
  color: #1c2733; background: #fff }
h1 { font-size: 1.5rem }
h2 { font-size: 1rem; margin: .2rem 0 }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)) }
.card { border: 1px solid #d5dbe1; border-radius: 6px; padding: .7rem }
.card.drifted { border: 2px solid #c2410c }
small { color: #51606f }
.badge { background: #c2410c; color: #fff; border-radius: 4px; padding: 0 .4em; font-weight: normal;
  font-size: .8rem }
.axis { display: flex; justify-content: space-between; gap: 1em; font-size: .75rem; color: #51606f }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { text-align: left; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid #d5dbe1 }
.badge.mute { background: #51606f }
svg { width: 100% }
svg.bins { height: 90px }
svg.trend { height: 60px; margin-top: .5rem; border-bottom: 1px solid #d5dbe1 }
.key i { display: inline-block; width: .9em; height: .9em; vertical-align: -1px }
.r { background: #9aa7b4 }
.s { background: #0f6fb8 }
"""


def _windows(windows: Sequence[WindowSummary]) -> str:
    """A line a window: when, how many rows, and how good the predictions were."""
    lines = []
    for number, window in enumerate(windows, start=1):
        performance = window.performance
        quality = known = expected = ""
        if performance is not None:
            known = f"{100 * performance.outcomes / max(performance.rows, 1):.0f} %"
            if performance.quality is not None:
                quality = f"{QUALITY[performance.task]} {performance.quality:.3f}"
                if performance.low is not None and performance.high is not None:
                    quality += f" ({performance.low:.3f} to {performance.high:.3f})"
            if performance.estimate is not None and known != "100 %":
                expected = f"AUC {performance.estimate:.3f}"
        start = moment(window.start) if window.start is not None else f"window {number}"
        cells = "".join(f"<td>{cell}</td>" for cell in (start, f"{window.rows:,}", known, quality, expected))
        lines.append(f"<tr>{cells}</tr>")
    head = "".join(
        f"<th>{text}</th>" for text in ("window from", "rows", "outcomes known", "performance", "estimate")
    )
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>" if lines else ""


def _card(column: ColumnDrift, windows: Sequence[WindowSummary]) -> str:
    """Shares by bin, the distance over time, and the facts of one column."""
    badge = ' <span class="badge">drifted</span>' if column.drifted else ""
    if column.detectable is None:
        badge += ' <span class="badge mute">cannot alert</span>'
    facts = [
        f"score {column.score:.2f}",
        change_text(column),
        f"{100 * column.distance:.1f} % of the rows moved",
        *([f"smallest alert {detectable_text(column)}"] if column.detectable is not None else []),
        *([f"effect on the prediction {effect_text(column)}"] if column.role == "input" else []),
    ]
    name = html.escape(column.column)
    return (
        f'<div class="card{" drifted" if column.drifted else ""}"><h2>{name}{badge}</h2>'
        f"{_bins(column)}{_trend(column, windows)}<small>{html.escape('; '.join(facts))}</small></div>"
    )


def _trend(column: ColumnDrift, windows: Sequence[WindowSummary]) -> str:
    """The distance from the reference, window by window; dashed: what is usual among its own."""
    if not column.trend:
        return ""
    usual = column.usual or 0.0
    top = max(*column.trend, 2 * usual, 0.02)
    step = 300 / len(column.trend)
    starts = [
        moment(window.start) if window.start is not None else f"window {number}"
        for number, window in enumerate(windows, start=1)
    ]
    points, dots = [], ""
    for place, (start, share) in enumerate(zip(starts, column.trend, strict=True)):
        x, y = (place + 0.5) * step, 58 - 54 * share / top
        points.append(f"{x:.1f},{y:.1f}")
        dots += (
            f"<g><title>{start}: {100 * share:.1f} % of the rows moved</title>"
            f'<rect x="{place * step:.1f}" y="0" width="{step:.1f}" height="60" fill="transparent"/>'
            f'<rect x="{x - 2:.1f}" y="{y - 2:.1f}" width="4" height="4" fill="#0f6fb8"/></g>'
        )
    line = ""
    if column.usual is not None:
        height = 58 - 54 * usual / top
        line = (
            f'<line class="usual" x1="0" x2="300" y1="{height:.1f}" y2="{height:.1f}" stroke="#9aa7b4" '
            f'stroke-dasharray="4 3"/>'
        )
    ends = "".join(f"<span>{start}</span>" for start in (starts[0], *starts[1:][-1:]))
    return (
        f'<svg class="trend" viewBox="0 0 300 60" preserveAspectRatio="none" role="img" '
        f'aria-label="distance of {html.escape(column.column)} over the windows">{line}'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="#0f6fb8" stroke-width="1.5"/>{dots}</svg>'
        f'<div class="axis">{ends}</div>'
    )


def _bins(column: ColumnDrift) -> str:
    """Shares by bin, reference and seen side by side."""
    bins = len(column.expected)
    top = max([*column.expected, *column.seen, 1e-9])
    width = 300 / max(bins, 1)
    bars = "".join(
        f"<g><title>{html.escape(label)}: {100 * share:.1f} % in the reference, {100 * now:.1f} % now</title>"
        f'<rect x="{place * width:.1f}" y="{90 - 88 * share / top:.1f}" width="{width * 0.45:.1f}" '
        f'height="{88 * share / top:.1f}" fill="#9aa7b4"/>'
        f'<rect x="{(place + 0.45) * width:.1f}" y="{90 - 88 * now / top:.1f}" width="{width * 0.45:.1f}" '
        f'height="{88 * now / top:.1f}" fill="#0f6fb8"/></g>'
        for place, (share, now, label) in enumerate(
            zip(column.expected, column.seen, column.labels, strict=True)
        )
    )
    inside = column.labels[FIRST_BIN:-1] if column.kind == "numeric" else column.labels[FIRST_CATEGORY:]
    axis = "".join(f"<span>{html.escape(label)}</span>" for label in (*inside[:1], *inside[1:][-1:]))
    return (
        f'<svg class="bins" viewBox="0 0 300 90" preserveAspectRatio="none" role="img" '
        f'aria-label="shares by bin of {html.escape(column.column)}">{bars}</svg>'
        f'<div class="axis">{axis}</div>'
    )
