"""The README's plot of the acceptance table: every number of it that should be 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = {
    "ours": "ModelServeAI",
    "Argo": "Argo Rollouts, 99 % a minute",
    "example": "Argo Rollouts, 95 % in 5 minutes",
    "Flagger": "Flagger, 99 % a minute",
    "Kayenta": "Kayenta, Mann-Whitney",
}
OURS, GOOD, BAD = "#1a7f5a", "#f4f7f5", "#b5402a"


BURSTS = {"ours": "ModelServeAI", "independent": "the same, requests taken as independent", **NAMES}


def draw(healthy: Sequence[Any], sick: Sequence[Any], bursts: Sequence[Any], file: Path) -> None:
    """Top: healthy canaries whose servers pause. Left: healthy ones without pauses. Right: sick ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ramp = list(NAMES)
    kept = [who for who in ramp if who in healthy[0].held]
    pausing = [one for one in bursts if len(one.rejected) == len(BURSTS) and "/" in one.name]
    figure = pyplot.figure(figsize=(13, 9.4), layout="constrained")
    grid = figure.add_gridspec(
        3,
        2,
        width_ratios=[len(healthy), len(sick)],
        height_ratios=[len(BURSTS) + 1.5, len(ramp), len(kept)],
    )
    top = figure.add_subplot(grid[0, :])
    shares = [[100 * one.rejected[who] for one in pausing] for who in BURSTS]
    _table(top, shares, list(BURSTS.values()))
    top.set_title(
        "Healthy canary whose servers pause as the stable's do, rolled back in the ramp (%)", **_TITLE
    )
    labels = [one.name.replace("000 rps", "k rps") for one in pausing]
    top.set_xticks(range(len(pausing)), labels, fontsize=8, rotation=90)
    top.set_xlabel(
        "traffic, servers of canary / stable, pauses an hour and server and their length", fontsize=9
    )
    axes = [[figure.add_subplot(grid[row, column]) for column in (0, 1)] for row in (1, 2)]
    shares = [[100 * row.rolled_back[who] for row in healthy] for who in ramp]
    _table(axes[0][0], shares, [NAMES[who] for who in ramp])
    axes[0][0].set_title("Healthy canary, independent errors, rolled back in the ramp (%)", **_TITLE)
    shares = [[100 * row.held[who] for row in healthy] for who in kept]
    _table(axes[1][0], shares, [NAMES[who] for who in kept])
    axes[1][0].set_title("Healthy canary, kept at 10 % for an hour, rolled back (%)", **_TITLE)
    labels = [row.name.removeprefix("healthy, ").replace(", ", "\n") for row in healthy]
    axes[1][0].set_xticks(range(len(healthy)), labels, fontsize=9)
    axes[1][0].set_xlabel("errors of both releases, traffic of the model", fontsize=9)
    shares = [[100 * (1 - row.rolled_back[who]) for row in sick] for who in ramp]
    _table(axes[0][1], shares, [""] * len(ramp))
    axes[0][1].set_title("Sick canary, not rolled back (%)", **_TITLE)
    minutes = [[row.minutes[who] for row in sick] for who in kept]
    texts = [["never" if math.isinf(one) else f"{one:.0f} min" for one in line] for line in minutes]
    _table(axes[1][1], [[0.0] * len(sick) for _ in kept], [""] * len(kept), texts)
    axes[1][1].set_title("Sick canary, median time to the rollback", **_TITLE)
    labels = [row.name.replace(", ", "\n").replace(" on ", "\non ").replace(" of ", "\nof ") for row in sick]
    axes[1][1].set_xticks(range(len(sick)), labels, fontsize=9)
    axes[1][1].set_xlabel("its errors against the stable's, traffic of the model", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


_TITLE = {"fontsize": 10.5, "loc": "left", "fontweight": "bold"}


def _table(
    axes: Any, shares: list[list[float]], names: list[str], texts: list[list[str]] | None = None
) -> None:
    """A cell a number; the redder, the more canaries were treated wrongly. `texts` stand in their place."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("wrong", [GOOD, "#f0b48c", BAD])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=100, aspect="auto")
    for line, row in enumerate(shares):
        for column, share in enumerate(row):
            number = "0" if share < 0.05 else f"{share:.1f}" if share < 9.95 else f"{share:.0f}"
            text = texts[line][column] if texts else number
            colour = "white" if share > 60 else "#222222"
            weight = "bold" if line == 0 else "normal"
            axes.text(
                column, line, text, ha="center", va="center", color=colour, fontsize=9.5, fontweight=weight
            )
    axes.set_yticks(range(len(names)), names, fontsize=9.5)
    axes.set_xticks([])
    for line, label in enumerate(axes.get_yticklabels()):
        label.set(color=OURS if line == 0 else "#222222", fontweight="bold" if line == 0 else "normal")
    axes.set_yticks([place - 0.5 for place in range(1, len(names))], minor=True)
    axes.set_xticks([place - 0.5 for place in range(1, len(shares[0]))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
