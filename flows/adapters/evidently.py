"""Draws Evidently's report on a sample: its pictures, and its defaults as a second opinion.

Evidently decides nothing here. Its default thresholds do not know how many rows a window has, nor how much
the reference's own windows differ. The library is imported inside, since that takes seconds and a gigabyte.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from flows.domain.errors import ModelServeError
from flows.domain.pages import plain, with_policy


class ReportFailed(ModelServeError):
    """Evidently could not draw; the check itself is not affected."""


@dataclass(frozen=True)
class SecondOpinion:
    """Evidently's report and what its default preset thinks."""

    html: bytes
    """One self-contained page."""
    drifted: tuple[str, ...]
    columns: int
    dataset_drift: bool
    """At least half of the columns, its default."""

    @property
    def sentence(self) -> str:
        verdict = "dataset drift" if self.dataset_drift else "no dataset drift"
        return f"Evidently's defaults: {len(self.drifted)} of {self.columns} columns, {verdict}"


def draw(
    reference: pd.DataFrame, current: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]
) -> SecondOpinion:
    """Compare two samples with the same columns. Columns without a value on either side are left out.

    Raises ReportFailed with Evidently's reason.
    """
    usable = [
        name
        for name in (*numeric, *categorical)
        if name in current
        and name in reference
        and current[name].notna().any()
        and reference[name].notna().any()
    ]
    if not usable:
        raise ReportFailed("Evidently has no column to compare; the check itself stands")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # scipy's and pandas' remarks on degenerate columns, inside of Evidently
        try:
            from evidently import DataDefinition, Dataset, Report
            from evidently.presets import DataDriftPreset

            definition = DataDefinition(
                numerical_columns=[name for name in usable if name in numeric],
                categorical_columns=[name for name in usable if name in categorical],
            )
            sides = [
                Dataset.from_pandas(_clean(frame[usable], categorical), data_definition=definition)
                for frame in (current, reference)
            ]
            run = Report([DataDriftPreset()], include_tests=True).run(*sides)
            tests = run.dict()["tests"]
            with tempfile.TemporaryDirectory(prefix="modelserve-report-") as folder:
                page = Path(folder) / "report.html"
                run.save_html(str(page))
                html = with_policy(page.read_text(encoding="utf-8")).encode()
        except Exception as error:  # any failure of the drawing must leave the verdict alone
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ReportFailed(
                f"Evidently could not draw its report ({reason}); the check itself stands"
            ) from error
    failed = [test for test in tests if test["status"].value == "FAIL"]
    drifted = tuple(sorted(column for test in failed if (column := _column(test)) is not None))
    return SecondOpinion(html, drifted, len(usable), any(_column(test) is None for test in failed))


def _column(test: dict[str, dict[str, dict[str, str]]]) -> str | None:
    return test["metric_config"]["params"].get("column")


def _clean(frame: pd.DataFrame, categorical: Sequence[str]) -> pd.DataFrame:
    """Categories as text: Evidently sorts them, which mixed types do not allow, and writes them into a script
    of its page as they are, so that a value with `</script>` in it would end that and begin its own."""
    return frame.assign(
        **{
            name: frame[name].map(lambda value: plain(str(value)), na_action="ignore")
            for name in categorical
            if name in frame
        }
    ).reset_index(drop=True)
