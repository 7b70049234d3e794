"""What people read of a check: the terminal's table, Prefect's page, and the report with plots."""

from __future__ import annotations

import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from flows.domain.drift.check import check
from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.drift.page import page
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import make_profile
from flows.domain.drift.report import detectable_text, markdown, table
from tests.domain.drift import columns
from tests.domain.drift import test_check as made
from tests.domain.drift import test_performance as judged


def shown(result: DriftResult, width: int = 120) -> str:
    target = io.StringIO()
    Console(file=target, width=width).print(table(result))
    return target.getvalue()


def line_of(text: str, name: str) -> list[str]:
    lines = (line.replace("|", "│") for line in text.splitlines())
    line = next(line for line in lines if line.startswith(f"│ {name} "))
    return [cell.strip(" `") for cell in line.strip("│").split("│")]


@pytest.fixture(scope="module")
def shifted() -> DriftResult:
    result = check(made.profile(), made.shift(made.rows(2000, 7)), made.POLICY, release="paint-v1")
    assert result.outcome is Outcome.DRIFTED
    return result


@pytest.fixture(scope="module")
def worse() -> DriftResult:
    profile = make_profile(judged.judged(8000, 1), judged.SIGNATURE, DriftPolicy(), model="flights")
    result = check(profile, judged.judged(4000, 6, noise=4, known=0.6), DriftPolicy())
    assert result.outcome is Outcome.HARMED
    return result


def test_the_table_marks_what_drifted_without_colour_and_says_how_small_a_change_it_would_see(
    shifted: DriftResult,
) -> None:
    text = shown(shifted)

    assert text.startswith("paint-v1: drifted\n")
    found, calm = line_of(text, "x4"), line_of(text, "x5")
    assert (found[1], calm[1]) == ("yes", "no")
    assert found[3].startswith("location +0.2")
    assert found[-1].endswith(" sd")
    assert "2,000 rows, 2 windows judged" in text
    assert line_of(markdown(shifted), "`x4`")[1] == "**yes**"


def test_long_tables_say_what_they_leave_out(shifted: DriftResult) -> None:
    many = replace(shifted, columns=shifted.columns * 3)
    assert "more columns are in the report" in shown(many)
    assert "more columns are in the report" not in shown(shifted)


@pytest.mark.parametrize("width", [60, 200])
def test_a_narrow_terminal_loses_no_column(shifted: DriftResult, width: int) -> None:
    text = shown(shifted, width)
    assert all(column.column[:2] in text for column in shifted.columns)
    assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("change", [made.shift, made.spread, made.swap, made.newcomer, made.nulls])
def test_the_smallest_alert_is_of_the_kind_that_was_found(change: object) -> None:
    assert callable(change)
    first, *others = check(made.profile(), change(made.rows(2000, 7)), made.POLICY).columns

    assert first.drifted
    assert first.detectable is not None
    assert abs(first.change) / first.detectable == pytest.approx(first.score, rel=1e-6)
    for column in others:
        assert column.detectable is not None
        assert abs(column.change) < column.detectable
    unit = detectable_text(first).split(" ", 1)[1:]
    assert unit == {"location": ["sd"], "spread": []}.get(first.test, ["points"])


def test_the_verdict_is_said_once_and_the_estimate_with_its_assumption(worse: DriftResult) -> None:
    text = shown(worse, 200)

    assert text.count(worse.sentence) == 1
    assert "performance: harmful\n" in text
    assert "60 % of the rows by their outcomes, the rest estimated from the model's own" in text
    assert "blind to concept drift" in text


def test_the_report_is_one_page_with_every_window_and_every_column(worse: DriftResult) -> None:
    text = page(worse, "Evidently's defaults: no dataset drift", "evidently.html")

    body = ElementTree.fromstring(text.split("<body>")[1].split("</body>")[0].join(["<body>", "</body>"]))
    assert len(body.findall(".//tr")) == 1 + len(worse.windows)
    assert len(body.findall(".//svg[@class='bins']")) == len(worse.columns)
    assert worse.windows[0].performance is not None
    assert f"AUC {worse.windows[0].performance.quality:.3f} (" in text
    assert ">estimate<" in text
    assert not [word for word in ("http://", "https://", "<script", "src=") if word in text]


def test_names_from_the_data_cannot_break_the_pages() -> None:
    """A category that is markup, and a pipe, which would add a cell to Prefect's table."""
    odd = {"red": "<script>alert(1)</script>", "green": "a|b"}
    frame = made.rows(8000, 1).assign(colour=lambda f: f["colour"].replace(odd))
    profile = make_profile(frame, made.SIGNATURE, made.POLICY, model="paint")
    live = made.rows(2000, 7)
    live["colour"] = np.where(np.arange(2000) % 2, "<script>alert(1)</script>", "a|b")

    result = check(profile, live, made.POLICY)

    first = result.columns[0]
    assert first.column == "colour"
    assert "<script>" not in page(result)
    row = next(line for line in markdown(result).splitlines() if line.startswith("| `colour`"))
    assert row.replace("\\|", "").count("|") == 9


@pytest.mark.parametrize("days", [None, 12.0], ids=["in row order", "in time"])
def test_every_column_has_its_distance_over_time_beside_what_is_usual(days: float | None) -> None:
    """A line with a point a window, by its date where there are dates, that rises when the change begins."""
    profile = columns.profile_of(np.random.default_rng(1).normal(size=8000), "number", days=days and 40.0)
    values = np.random.default_rng(2).normal(size=2400) + np.where(np.arange(2400) < 1200, 0, 1)
    live = columns.framed(values, days, columns.START + 60 * columns.DAY)

    result = check(profile, live, columns.POLICY, window_rows=None if days else 200)

    first = result.columns[0]
    assert len(first.trend) == len(result.windows) == 12
    assert first.usual is not None
    assert max(first.trend[:6]) < 2 * first.usual
    assert min(first.trend[6:]) > 2 * first.usual
    body = ElementTree.fromstring(page(result).split("<body>")[1].split("</body>")[0].join(["<b>", "</b>"]))
    (chart,) = body.findall(".//svg[@class='trend']")
    line = chart.find("polyline")
    assert line is not None
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert len(heights) == 12
    assert min(heights[:6]) > max(heights[6:]), "further up is further from the reference"
    assert chart.find("line[@class='usual']") is not None
    titles = [title.text or "" for title in chart.findall(".//title")]
    assert any("2024" in text for text in titles) == (days is not None)
    assert sum("% of the rows" in text for text in titles) == 12


def test_a_column_that_cannot_alert_says_so_in_its_card() -> None:
    """Also in the terminal, where the worst come first and many are left out."""
    made_of = columns.profile_of(np.arange(8000), "integer")
    result = check(made_of, columns.framed(np.arange(9000, 11_000)), columns.POLICY)

    card = page(result).split('class="card')[1]

    assert card.split("</h2>")[0].endswith('<span class="badge mute">cannot alert</span>')
    many = replace(result, columns=result.columns * 20)
    assert "cannot alert: x: it rises or falls" in " ".join(shown(many, 200).split())
