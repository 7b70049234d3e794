"""A drift check for people: a markdown page for Prefect, a table for the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.domain.drift.column_tests import NUMERIC
from flows.domain.drift.findings import ColumnDrift, DriftResult
from flows.domain.drift.performance import ASSUMPTION, QUALITY, Performance

BLOCKS = "▁▂▃▄▅▆▇█"
WORST = 12
NEARLY_ALL = 0.95
"""From this share of known outcomes on, an estimate has nothing to add."""
VISIBLE = 0.05
"""Relative change of the error from which on it is worth a line."""
HEADINGS = (
    "column",
    "drifted",
    "score",
    "what moved",
    "share moved",
    "windows",
    "effect on prediction",
    "smallest alert",
)
SHORT = {"share moved": "moved", "effect on prediction": "effect"}
"""What fits a terminal."""
COLOURS = {
    "stable": "green",
    "noticed": "cyan",
    "drifted": "yellow",
    "harmed": "red",
    "damaged": "red",
}


def sparkline(values: tuple[float, ...], top: float = 0.5) -> str:
    """Distances over the windows as small bars, full at `top`."""
    return "".join(BLOCKS[min(int(value / top * len(BLOCKS)), len(BLOCKS) - 1)] for value in values)


def change_text(column: ColumnDrift) -> str:
    """What moved and by how much, in the column's own words."""
    if column.test in NUMERIC:
        moved = f"{column.test} {column.change:+.2f}"
        if column.test == "location":
            moved += " sd"
            if column.mean is not None and column.reference_mean is not None:
                moved += f" (mean {column.reference_mean:.4g} to {column.mean:.4g})"
        return moved
    return f"{column.test} {100 * column.change:+.1f} points"


def detectable_text(column: ColumnDrift) -> str:
    if column.detectable is None:
        return "cannot alert"
    if column.test in NUMERIC:
        return f"{column.detectable:.2f}{' sd' if column.test == 'location' else ''}"
    return f"{100 * column.detectable:.1f} points"


def effect_text(column: ColumnDrift) -> str:
    return "unknown" if column.effect is None else f"{column.effect:+.4f}"


def performance_lines(performance: Performance | None, said: str = "") -> list[str]:
    """Realised performance, the estimate with its assumption, and how far outcomes have replaced it.

    `said`: the verdict's own sentence, which need not be said twice.
    """
    if performance is None:
        return ["performance: no outcomes and no reference to estimate from"]
    lines = [f"performance: {performance.state.replace('_', ' ')}"]
    if performance.sentence != said:
        lines[0] += f". {performance.sentence}"
    if performance.quality is not None and performance.low is not None and performance.high is not None:
        measured = f"{QUALITY[performance.task]} {performance.quality:.4g}"
        lines.append(f"{measured}, 95 % interval {performance.low:.4g} to {performance.high:.4g}")
    if performance.loss is not None and performance.base_loss is not None and performance.state != "harmful":
        lines.append(f"log loss {performance.loss:.4f}; the base rate alone {performance.base_loss:.4f}")
    known = performance.outcomes / max(performance.rows, 1)
    if performance.estimate is not None and known < NEARLY_ALL:
        lines.append(
            f"AUC expected {performance.estimate:.4g}: {100 * known:.0f} % of the rows by their outcomes, "
            f"the rest {ASSUMPTION}"
        )
    return lines


def lines(result: DriftResult) -> list[str]:
    """Everything beside the columns, one sentence each."""
    found = [_judged(result)]
    if result.consequence:
        found.append(f"consequence: {result.consequence}")
    found += performance_lines(result.performance, result.sentence)
    if result.multivariate is not None:
        told = f"; told by {', '.join(result.multivariate.told_by)}" if result.multivariate.told_by else ""
        found.append(f"all columns together: {result.multivariate.sentence}{told}")
    shown = [c for c in result.error_changes if abs(c.after - c.before) >= VISIBLE * max(c.before, 1e-9)]
    for change in shown[-3:]:
        word = "rose" if change.worse else "fell"
        found.append(
            f"the error {word} from {change.before:.3f} to {change.after:.3f} at about {moment(change.at)}"
        )
    return found


def _judged(result: DriftResult) -> str:
    number = len(result.windows)
    text = f"{result.rows:,} rows, {number} window{'s' * (number != 1)} judged"
    starts = [window.start for window in result.windows if window.start is not None]
    return f"{text}, which began from {moment(starts[0])} to {moment(starts[-1])}" if starts else text


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC") if at > 1e8 else f"row {at:.0f}"


def markdown(result: DriftResult) -> str:
    """The page that Prefect shows: verdict, worst columns, findings, link to the report."""
    text = [f"# {result.model}: {result.outcome}", "", result.sentence, ""]
    if result.report:
        text += [f"[Report with plots]({result.report})", ""]
    text += [f"- {line}" for line in lines(result)]
    if result.columns:
        text += [
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|" + "---|" * len(HEADINGS),
        ]
        for column in result.columns[:WORST]:
            cells = [
                f"`{column.column}`",
                "**yes**" if column.drifted else "no",
                f"{column.score:.2f}",
                change_text(column),
                f"{100 * column.distance:.1f} %",
                sparkline(column.trend),
                effect_text(column),
                detectable_text(column),
            ]
            text.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if len(result.columns) > WORST:
            text.append(f"\n{len(result.columns) - WORST} more columns are in the report.")
    if result.findings:
        text += ["", "## Findings", ""]
        text += [f"- {'**' + f.kind.replace('_', ' ') + '**'}: {f.sentence}" for f in result.findings]
    return "\n".join(text) + "\n"


def table(result: DriftResult) -> RenderableType:
    """The check for a terminal."""
    shown = Table(title=None, header_style="bold", expand=False)
    for heading in HEADINGS:
        right = heading in ("score", "share moved", "effect on prediction", "smallest alert")
        shown.add_column(SHORT.get(heading, heading), justify="right" if right else "left", overflow="fold")
    for column in result.columns[:WORST]:
        style = "yellow" if column.drifted else ("dim" if column.detectable is None else "")
        shown.add_row(
            column.column,
            "yes" if column.drifted else "no",
            f"{column.score:.2f}",
            change_text(column),
            f"{100 * column.distance:.1f} %",
            sparkline(column.trend[-12:]),
            effect_text(column),
            detectable_text(column),
            style=style,
        )
    colour = COLOURS.get(result.outcome.value, "magenta")
    name = result.release or result.model
    head = Text.assemble((f"{name}: ", "bold"), (result.outcome.value.replace("_", " "), f"bold {colour}"))
    parts: list[RenderableType] = [head, Text(result.sentence)]
    parts += [Text(f"  {line}", style="dim") for line in lines(result)]
    if result.columns:
        parts.append(shown)
    if len(result.columns) > WORST:
        parts.append(Text(f"  {len(result.columns) - WORST} more columns are in the report", style="dim"))
    parts += [Text(f"  {finding.kind.replace('_', ' ')}: {finding.sentence}") for finding in result.findings]
    if result.report:
        parts.append(Text(f"report: {result.report}"))
    return Group(*parts)
