"""A promotion as a picture: who got the traffic, who failed, and what the evidence said."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.spoken import Spoken, spoken
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CANARY, STABLE, MUTED, ALARM = "#d95f02", "#1b7f79", "#8a8a8a", "#b3261e"


def promotion_plot(
    title: str, policy: PromotionPolicy, windows: Sequence[Window], verdicts: Sequence[Verdict]
) -> bytes:
    """PNG of weights, the counts of the gate that spoke, and evidence, over the seconds since the start."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    shown = spoken(policy, windows, verdicts[-1] if verdicts else None)
    traffic, counts, evidence = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 3))
    begin = windows[0].start if windows else 0.0
    ends = [window.end - begin for window in windows]
    _weights(traffic, ends, windows)
    _counts(counts, ends, windows, shown)
    _evidence(evidence, ends, policy, windows, verdicts)
    traffic.set_title(title, loc="left", fontsize=12, fontweight="bold")
    evidence.set_xlabel("seconds since the first step")
    for axes in (traffic, counts, evidence):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        for window, end in zip(windows, ends, strict=True):
            if not window.observed:
                axes.axvspan(window.start - begin, end, color="#f1e9c9", linewidth=0)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _weights(axes: Axes, ends: list[float], windows: Sequence[Window]) -> None:
    axes.step(ends, [window.weight for window in windows], where="pre", color=CANARY, label="weight set")
    measured = [(end, 100 * w.share) for end, w in zip(ends, windows, strict=True) if w.observed and w.stable]
    if measured:
        axes.plot(*zip(*measured, strict=True), ".", color=MUTED, markersize=4, label="share measured")
    axes.set_ylim(0, 105)
    axes.set_ylabel("% to the canary")
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def _counts(axes: Axes, ends: list[float], windows: Sequence[Window], shown: Spoken) -> None:
    """What the gate that spoke counts as bad; of the errors where none did."""
    width = max(0.5, 0.38 * min((w.seconds for w in windows), default=1.0))
    canary, stable = ([bad for bad, _ in arm] for arm in (shown.canary, shown.stable))
    axes.bar([end - width / 2 for end in ends], stable, width, color=STABLE, label="stable")
    axes.bar([end + width / 2 for end in ends], canary, width, color=CANARY, label="canary")
    axes.set_ylim(bottom=0, top=max([*canary, *stable, 4]) * 1.4)
    axes.set_ylabel("\n".join(wrap(shown.what, 18)))
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def _evidence(
    axes: Axes,
    ends: list[float],
    policy: PromotionPolicy,
    windows: Sequence[Window],
    verdicts: Sequence[Verdict],
) -> None:
    axes.plot(ends, [max(v.evidence, 1e-3) for v in verdicts], color=CANARY, label="evidence against it")
    limit = 1 / policy.alpha
    axes.axhline(limit, color=ALARM, linewidth=1, linestyle="--")
    axes.annotate(
        f"rejected at {limit:g}",
        (0, limit),
        xytext=(2, 3),
        textcoords="offset points",
        color=ALARM,
        fontsize=8,
    )
    axes.set_yscale("log")
    axes.set_ylim(1e-3, max([limit * 4, *(v.evidence * 2 for v in verdicts)]))
    axes.set_ylabel("E")
    for window, end, verdict in zip(windows, ends, verdicts, strict=True):
        if verdict.kind in ("advance", "reject") and window.observed:
            sign, colour = ("✕", ALARM) if verdict.kind == "reject" else ("✓", STABLE)
            axes.annotate(sign, (end, max(verdict.evidence, 1e-3)), color=colour, fontsize=12, ha="center")
    axes.legend(loc="lower left", frameon=False, fontsize=8)
