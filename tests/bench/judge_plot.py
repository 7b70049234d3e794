"""The README's plot of the acceptance table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WHO = (("ours", "ModelServeAI", "#1a7f5a"), ("Argo", "Argo Rollouts", "#b9522d"))
WHO += (("Flagger", "Flagger", "#d9a13b"), ("Kayenta", "Kayenta", "#7a8699"))


def draw(rows: Sequence[Any], file: Path) -> None:
    """Left: healthy canaries that were rolled back. Right: sick ones that were promoted or never found."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    healthy = [row for row in rows if row.name.startswith("healthy")]
    sick = [row for row in rows if not row.name.startswith("healthy")]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 4.6), gridspec_kw={"width_ratios": [len(healthy), len(sick)]}, layout="constrained"
    )
    _bars(left, healthy, [row.name.removeprefix("healthy, ").replace(", ", "\n") for row in healthy], False)
    left.set_title("Healthy canary: rolled back within the hour (should be none)", fontsize=10, loc="left")
    left.axhline(1, color="#1a7f5a", linewidth=0.8, linestyle=":")
    _bars(right, sick, [row.name.replace(", ", "\n").replace(" on ", "\non ") for row in sick], True)
    right.set_title("Sick canary: not rolled back (should be none)", fontsize=10, loc="left")
    left.set_ylabel("% of simulated promotions")
    left.set_xlabel("errors of both releases, traffic of the model")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _bars(axes: Any, rows: Sequence[Any], labels: list[str], missed: bool) -> None:
    for index, (key, label, colour) in enumerate(WHO):
        shares = [100 * (1 - row.rolled_back[key] if missed else row.rolled_back[key]) for row in rows]
        places = [place + 0.2 * (index - 1.5) for place in range(len(rows))]
        bars = axes.bar(places, shares, 0.19, color=colour, label=label)
        axes.bar_label(bars, [f"{share:.0f}" if share >= 1 else "" for share in shares], fontsize=7)
    axes.set_xticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(0, 108)
    axes.spines[["top", "right"]].set_visible(False)
