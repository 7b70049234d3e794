"""Columns whose reference says nothing by construction, and columns that nobody could judge.

What a reference holds it has seen, so a statistic such as "never seen" is 0 in each of its windows unless
the window is left out. The same goes for what lies beyond its highest value, and for which categories are
frequent enough to have a name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.domain.drift.check import check
from flows.domain.drift.column_tests import expected_counts, questions
from flows.domain.drift.findings import DriftResult, FindingKind, Outcome
from flows.domain.drift.page import page
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import make_profile, parse_profile
from flows.domain.drift.reference_sample import as_sampled, reference_sample
from flows.domain.signature import Column, Signature
from tests.domain.drift.columns import (
    DAY,
    POLICY,
    START,
    framed,
    identifiers,
    products,
    profile_of,
    sentences,
    signature,
    zipf,
)
from tests.domain.drift.test_report import shown

Make = Callable[[np.random.Generator, int], Any]


def sessions(random: np.random.Generator, count: int) -> list[str]:
    """Rare values come in a row, as the visits of one customer do."""
    starts = random.random(count) < 0.05
    own = np.where(random.random(count) < 0.5, np.cumsum(starts) % 1500, -1)
    return [f"c{number}" for number in np.where(own >= 0, own * 7 % 1500, random.integers(0, 20, count))]


UNCHANGED: dict[str, tuple[str, Make]] = {
    "zipf of 1 000": ("string", lambda random, count: products(random, count, 1000)),
    "zipf of 1 500, flat": ("string", lambda random, count: products(random, count, 1500, 0.7)),
    "zipf of 20 000": ("string", lambda random, count: products(random, count, 20_000)),
    "45 values with a tail": ("string", lambda random, count: products(random, count, 45, 2.2)),
    "1 000 equal values": ("string", lambda random, count: products(random, count, 1000, 0)),
    "visits": ("string", sessions),
    "numbers with a tail": ("number", lambda random, count: random.pareto(1.2, count)),
    "counts with a tail": ("integer", lambda random, count: np.floor(random.pareto(1.2, count)).astype(int)),
    "free text": ("string", sentences),
    "unique ids": ("string", identifiers),
}


@pytest.mark.parametrize(
    "days",
    [pytest.param(None, id="in row order", marks=pytest.mark.thorough), pytest.param(20.0, id="in time")],
)
@pytest.mark.parametrize("kind", UNCHANGED)
def test_a_column_in_which_nothing_changes_does_not_alarm(kind: str, days: float | None) -> None:
    type_, make = UNCHANGED[kind]
    alarms = []
    for seed in range(6):
        random = np.random.default_rng([seed, 22])
        profile = profile_of(make(random, 8000), type_, days=days)
        live = framed(make(random, 2000), days and 5.0, START + 40 * DAY)
        result = check(profile, live, POLICY)
        assert result.outcome in (Outcome.STABLE, Outcome.DRIFTED), result.sentence
        alarms += [result.sentence] if result.alerts else []
    assert len(alarms) <= 1, alarms


CHANGES: dict[str, tuple[str, Make, Make]] = {
    "new products": (
        "string",
        lambda random, count: products(random, count, 1000),
        lambda random, count: [f"new-{n}" if n % 10 == 0 else f"sku-{n}" for n in zipf(random, count, 1000)],
    ),
    "other products": (
        "string",
        lambda random, count: products(random, count, 1000, 0),
        lambda random, count: [f"sku-{number // 2}" for number in zipf(random, count, 1000, 0)],
    ),
    "longer text": (
        "string",
        sentences,
        lambda random, count: [f"{text} etc" for text in sentences(random, count)],
    ),
    "other words": ("string", sentences, lambda random, count: sentences(random, count, slice(100, None))),
    "another alphabet": (
        "string",
        sentences,
        lambda random, count: [
            text.translate(str.maketrans("aeiou", "αειου")) for text in sentences(random, count)
        ],
    ),
    "ids of another make": (
        "string",
        identifiers,
        lambda random, count: [str(number) for number in random.integers(10**15, 10**16, count)],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_such_a_column_is_found(change: str) -> None:
    type_, before, after = CHANGES[change]
    random = np.random.default_rng(5)

    result = check(profile_of(before(random, 8000), type_), framed(after(random, 4000)), POLICY)

    assert result.outcome is Outcome.DRIFTED, result.sentence


@pytest.mark.parametrize("values", [[1.0], [0.0, 1.0, 1.0], [1.0, 2.0, 2.0, 2.0, 9.0]])
def test_as_many_rows_as_in_the_reference_are_no_change_whatever_share_is_null(values: list[float]) -> None:
    """What is expected is a share of each bin, what is seen are rows: nulls must weigh alike in both."""
    random = np.random.default_rng(14)
    made = random.choice(values, 8000)
    made[random.random(8000) < 0.2] = np.nan
    column = profile_of(made, "number").columns[0]
    asked = questions(column)

    seen, _ = asked.means(column.total)
    expected, _ = asked.means(expected_counts(column, None))

    assert seen == pytest.approx(expected, abs=1e-9)


def test_new_values_of_a_heavy_tail_are_compared_with_what_is_usual() -> None:
    random = np.random.default_rng(6)
    profile = profile_of(products(random, 8000, 1000))

    result = check(profile, framed(products(random, 4000, 1000)), POLICY)

    column = next(column for column in result.columns if column.column == "x")
    assert column.unknown < 0.01
    unseen = next(f for f in result.findings if f.kind is FindingKind.UNSEEN_CATEGORY)
    assert "are usual" in unseen.sentence


def test_the_picture_of_a_heavy_tail_has_the_same_categories_on_both_sides() -> None:
    """Evidently draws both: names of single rows on one side only would be drift by construction."""
    random = np.random.default_rng(12)
    profile = profile_of(products(random, 8000, 1000))

    before, now = reference_sample(profile, 8000), as_sampled(profile, framed(products(random, 4000, 1000)))

    shares = [side["x"].value_counts(normalize=True) for side in (before, now)]
    assert set(shares[1].index) <= {*profile.columns[0].categories, "(rare)", "(other)"}
    assert shares[0].sub(shares[1], fill_value=0).abs().sum() / 2 < 0.1


def test_a_reference_of_before_windows_were_left_out_is_read_and_does_not_alarm() -> None:
    text = Path(__file__).with_name("old_reference.json").read_text()
    old = parse_profile(text, "reference.json")
    random = np.random.default_rng(7)

    alarms = [
        check(old, framed(products(random, 1000, 1000), 5.0, START + 40 * DAY), POLICY).alerts
        for _ in range(12)
    ]

    assert sum(alarms) <= 1


def aloud(result: DriftResult) -> list[str]:
    """What the findings, the page and the terminal say of columns that cannot alert; it is the same."""
    said = [f.sentence for f in result.findings if f.kind is FindingKind.CANNOT_ALERT]
    assert said
    assert all(sentence in page(result) for sentence in said)
    assert all(sentence in " ".join(shown(result, 400).split()) for sentence in said)
    return said


def clock(count: int, start: float = START) -> Any:
    return start + np.arange(count) * 60 + np.random.default_rng(1).random(count) * 300


MUTE: dict[str, tuple[str, Callable[[], Any], Callable[[], Any], str]] = {
    "a clock": (
        "number",
        lambda: clock(8000),
        lambda: clock(2000, START + 40 * DAY),
        "rises or falls with time",
    ),
    "a counter": (
        "integer",
        lambda: np.arange(8000),
        lambda: np.arange(9000, 11_000),
        "rises or falls with time",
    ),
    "a countdown": (
        "integer",
        lambda: -np.arange(8000),
        lambda: -np.arange(9000, 11_000),
        "rises or falls with",
    ),
    "numbers that are text": (
        "number",
        lambda: ["1.5"] * 4000,
        lambda: [None] * 2000,
        "no value that can be read",
    ),
    "nothing": ("string", lambda: [None] * 4000, lambda: [None] * 2000, "no value that can be read"),
}


@pytest.mark.parametrize("days", [None, 20.0], ids=["in row order", "in time"])
@pytest.mark.parametrize("kind", MUTE)
def test_a_column_that_cannot_alert_is_said_aloud(kind: str, days: float | None) -> None:
    type_, before, after, why = MUTE[kind]
    profile = profile_of(before(), type_, days=days)

    result = check(profile, framed(after(), days and 5.0, START + 40 * DAY), POLICY)

    assert result.outcome is Outcome.CANNOT_TELL, result.sentence
    assert any("x: " in sentence and why in sentence for sentence in aloud(result))
    assert next(column for column in result.columns if column.column == "x").detectable is None
    assert "cannot alert" in shown(result, 200)


def test_a_category_that_is_judged_as_text_is_not_said_to_be_judged_by_nobody() -> None:
    """3 000 flight numbers: hardly one is frequent enough for a name, and all are read as text."""
    random = np.random.default_rng(13)

    result = check(
        profile_of(products(random, 8000, 3000, 0.335)), framed(products(random, 2000, 3000, 0.335)), POLICY
    )

    assert FindingKind.CANNOT_ALERT not in {finding.kind for finding in result.findings}
    assert {column.column for column in result.columns} >= {"x.length", "x.letters", "x.hash1"}
    assert all(column.detectable is not None for column in result.columns)


def test_unique_ids_declared_a_category_are_said_aloud() -> None:
    """As they are in an old reference, which does not know a text from a category."""
    policy = DriftPolicy(min_influence=0, categorical=("x",))
    random = np.random.default_rng(8)

    result = check(
        profile_of(identifiers(random, 8000), policy=policy), framed(identifiers(random, 2000)), policy
    )

    assert any("x: nearly every value is new" in sentence for sentence in aloud(result))


def test_inputs_that_the_training_rows_lacked_are_said_aloud() -> None:

    both = Signature(
        inputs=(*signature("number").inputs, Column(name="z", type="number")), outputs=signature().outputs
    )
    random = np.random.default_rng(9)
    profile = make_profile(framed(random.normal(size=4000)), both, POLICY, model="shop")

    result = check(profile, framed(random.normal(size=2000)).assign(z=1.0), POLICY)

    assert any("z: " in sentence and "training rows" in sentence for sentence in aloud(result))


@pytest.mark.parametrize("rows", [30, 500, 4000])
@pytest.mark.parametrize("season", ["none", "hour", "weekday", "hour_of_week"])
def test_a_reference_without_whole_windows_cannot_alert_and_does_not_crash(season: str, rows: int) -> None:
    """No whole window, whatever the season: of the inputs, and of a holdout."""

    policy = DriftPolicy(window="7d", time_column="t", season=season)  # type: ignore[arg-type]
    random = np.random.default_rng(10)

    def dated(count: int, days: float, start: float = START) -> Any:
        frame = framed(random.normal(size=count), days, start)
        score = random.random(count)
        outcome = (random.random(count) < score).astype(float)
        return frame.assign(t=frame["@time"], **{"prediction.y": score, "@outcome": outcome})

    live = dated(4000, 28, START + 60 * DAY)
    for training, holdout in [
        (dated(rows, 2), None),
        (dated(rows, 2), dated(rows, 2)),
        (dated(8000, 56), dated(rows, 2)),
    ]:
        profile = make_profile(training, signature("number"), policy, model="shop", holdout=holdout)
        result = check(profile, live, policy)

        if len(training) == rows:
            assert not profile.sizes
            assert result.outcome is Outcome.CANNOT_TELL, result.sentence
        assert any("cannot alert" in sentence for sentence in aloud(result))
        assert len(reference_sample(profile, 100)) >= 1


def test_outcomes_of_which_no_row_has_a_time_are_no_reference_of_performance() -> None:

    policy = DriftPolicy(time_column="t")
    random = np.random.default_rng(11)
    frame = framed(random.normal(size=4000), 20).rename(columns={"@time": "t"})
    frame["prediction.y"] = random.random(4000)
    frame["@outcome"] = np.where(np.arange(4000) < 1000, (random.random(4000) < 0.5).astype(float), np.nan)
    frame.loc[:999, "t"] = np.nan

    assert make_profile(frame, signature("number"), policy, model="shop").performance is None
