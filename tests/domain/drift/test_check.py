"""The drift check on made-up data of which the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from flows.domain.drift.check import check, conclude
from flows.domain.drift.findings import DriftResult, FindingKind, Outcome
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import Profile, make_profile, parse_profile
from flows.domain.drift.tally import MOST_WINDOWS, Tally
from flows.domain.errors import ArtifactCorrupt, SpecInvalid
from flows.domain.signature import Column, Signature

NUMBERS = [f"x{place}" for place in range(8)]
SIGNATURE = Signature(
    inputs=(*(Column(name=name, type="number") for name in NUMBERS), Column(name="colour", type="string")),
    outputs=(Column(name="score", type="number"),),
)
POLICY = DriftPolicy(min_influence=0)
"""These tests are about what is found; which of it is an alert is a question of its own, further below."""
DAY = 86400.0
COLOURS = ["red", "green", "blue", "grey"]
SHARES = [0.5, 0.3, 0.15, 0.05]


def rows(count: int, seed: int) -> pd.DataFrame:
    """Independent normal numbers, except that x0 and x1 go together, and a colour."""
    random = np.random.default_rng(seed)
    table = random.normal(size=(count, len(NUMBERS)))
    table[:, 1] = 0.9 * table[:, 0] + np.sqrt(1 - 0.81) * table[:, 1]
    frame = pd.DataFrame(table, columns=NUMBERS)
    frame["colour"] = random.choice(COLOURS, count, p=SHARES)
    frame["prediction.score"] = 1 / (1 + np.exp(-(2 * frame["x2"] + 0.2 * frame["x3"])))
    return frame


def wandering(count: int, seed: int, likeness: float = 0.9) -> pd.DataFrame:
    """Stationary AR(1): neighbours resemble each other, as readings of one day do."""
    random = np.random.default_rng(seed)
    steps = random.normal(size=(count + 200, len(NUMBERS))) * np.sqrt(1 - likeness**2)
    for place in range(1, len(steps)):
        steps[place] += likeness * steps[place - 1]
    frame = rows(count, seed)
    frame[NUMBERS] = steps[200:]
    return frame


@cache
def profile() -> Profile:
    return make_profile(rows(8000, 1), SIGNATURE, POLICY, model="paint")


@cache
def wandering_profile() -> Profile:
    return make_profile(wandering(8000, 1), SIGNATURE, POLICY, model="paint")


def drifted(result: DriftResult) -> set[str]:
    return {column.column for column in result.columns if column.drifted}


def verdict(live: pd.DataFrame, **changes: object) -> DriftResult:
    return check(profile(), live, DriftPolicy(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [200, 1000])
def test_unchanged_rows_do_not_alarm(count: int) -> None:
    alarms = 0
    for seed in range(4):  # four references: an unlucky one is a part of the promised 1 %
        made = make_profile(rows(8000, seed), SIGNATURE, POLICY, model="paint")
        alarms += sum(check(made, rows(count, 1000 + 100 * seed + n), POLICY).alerts for n in range(15))
    assert alarms <= 2, "three of sixty have a chance of 2 % at the promised 1 % each"


def test_rows_that_resemble_their_neighbours_do_not_alarm() -> None:
    alarms = [
        seed for seed in range(25) if check(wandering_profile(), wandering(500, 50 + seed), POLICY).alerts
    ]
    assert len(alarms) <= 1
    naive = profile().model_copy(update={"sample": None})
    wrong = [seed for seed in range(10) if check(naive, wandering(500, 50 + seed), POLICY).alerts]
    assert len(wrong) >= 5, (
        "calibrated on independent rows, the same rows are called drift: the test has teeth"
    )


def test_a_real_shift_of_wandering_rows_is_still_found() -> None:
    live = wandering(2000, 99)
    live["x5"] += 2
    assert drifted(check(wandering_profile(), live, POLICY)) == {"x5"}


def shift(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(x4=frame["x4"] + 0.3)


def spread(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(x4=frame["x4"] * 1.4)


def swap(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(colour=frame["colour"].replace({"red": "green", "green": "red"}))


def nulls(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(x4=frame["x4"].where(np.arange(len(frame)) % 20 != 0))


def newcomer(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(colour=frame["colour"].where(np.arange(len(frame)) % 20 != 0, "pink"))


def garbage(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(x4=frame["x4"].where(np.arange(len(frame)) % 25 != 0, -999.0))


@pytest.mark.parametrize(
    ("change", "column", "test"),
    [
        (shift, "x4", "location"),
        (spread, "x4", "spread"),
        (swap, "colour", "share of"),
        (nulls, "x4", "null"),
        (newcomer, "colour", "never seen"),
        (garbage, "x4", "below the reference"),
    ],
)
def test_a_change_is_found_and_named(
    change: Callable[[pd.DataFrame], pd.DataFrame], column: str, test: str
) -> None:
    result = check(profile(), change(rows(2000, 7)), POLICY)

    assert result.outcome is Outcome.DRIFTED
    assert drifted(result) == {column}
    found = result.columns[0]
    assert found.column == column
    assert found.test.startswith(test)
    assert found.score >= 1
    assert all(other.score < 1 for other in result.columns[1:])


def test_columns_that_change_together_are_found_although_none_changes_alone() -> None:
    live = rows(1000, 8)
    live["x1"] = -live["x1"]

    result = check(profile(), live, POLICY)

    assert drifted(result) == set()
    assert result.outcome is Outcome.DRIFTED
    assert result.multivariate is not None
    assert result.multivariate.told_by[0] == "x0 * x1"
    assert result.multivariate.low is not None
    assert result.multivariate.low > 0.55


def test_one_bad_window_is_no_drift_yet() -> None:
    live = rows(2000, 9)
    live.loc[1000:, "x4"] += 1
    assert drifted(check(profile(), live, POLICY, window_rows=1000)) == set()
    live.loc[:999, "x4"] += 1
    assert drifted(check(profile(), live, POLICY, window_rows=1000)) == {"x4"}


def test_certain_but_tiny_changes_are_no_drift() -> None:
    live = rows(60_000, 10)
    live["x4"] += 0.05
    large = make_profile(rows(60_000, 11), SIGNATURE, POLICY, model="paint")

    column = next(c for c in check(large, live, POLICY).columns if c.column == "x4")

    assert column.p < 0.001
    assert not column.drifted


def test_drift_that_the_predictions_do_not_follow_is_noticed_without_an_alert() -> None:
    """x4 has no part in the score, and x0 and x1 have none either, alone or together."""
    for live in (shift(rows(2000, 7)), rows(2000, 8).assign(x1=lambda frame: -frame["x1"])):
        result = verdict(live)

        assert result.outcome is Outcome.NOTICED
        assert not result.alerts
        assert result.to_dict()["alerts"] is False
        assert result.scores()
        assert "the predictions do not follow" in result.sentence


@pytest.mark.parametrize(
    ("live", "why"),
    [
        (lambda: rows(2000, 7).assign(x2=lambda f: f["x2"] + 0.3), "columns drifted"),
        (lambda: rows(2000, 7).assign(x2=lambda f: f["x2"] + 0.3, **{"prediction.score": rows(2000, 6)[
            "prediction.score"]}), "of their standard deviation"),
        (lambda: garbage(rows(2000, 7)), "4.0 % of the rows have values that the reference never had"),
        (lambda: newcomer(rows(2000, 7)), "5.0 % of the rows have values that the reference never had"),
        (lambda: shift(rows(2000, 7)).drop(columns="prediction.score"), "is not known"),
    ],
)  # fmt: skip
def test_drift_that_matters_or_may_matter_is_an_alert(live: Callable[[], pd.DataFrame], why: str) -> None:
    result = verdict(live())

    assert result.outcome is Outcome.DRIFTED
    assert why in result.sentence


def test_without_predictions_in_the_reference_all_drift_is_an_alert() -> None:
    bare = make_profile(
        rows(8000, 1).drop(columns="prediction.score"), SIGNATURE, DriftPolicy(), model="paint"
    )
    result = check(bare, shift(rows(2000, 7)), DriftPolicy())
    assert (result.outcome, drifted(result)) == (Outcome.DRIFTED, {"x4"})
    assert "is not known" in result.sentence


def test_drift_with_lower_performance_is_an_alert_before_performance_alone_is() -> None:
    def judged(count: int, seed: int, skill: float) -> pd.DataFrame:
        frame = rows(count, seed)
        score = frame["prediction.score"]
        chance = np.random.default_rng(seed).random(count)
        return frame.assign(**{"@outcome": (chance < 0.5 + skill * (score - 0.5)).astype(float)})

    made = make_profile(judged(8000, 1, 1.0), SIGNATURE, POLICY, model="paint")
    live = judged(2000, 3, 0.945)
    alone, both = (check(made, frame, DriftPolicy()) for frame in (live, shift(live)))

    assert alone.outcome is Outcome.STABLE
    assert both.outcome is Outcome.DRIFTED
    assert "performance is lower, too" in both.sentence


def test_drifted_columns_are_ranked_by_what_they_do_to_the_prediction() -> None:
    live = rows(2000, 12)
    live["x2"] += 0.4
    live["x3"] += 1.5

    first, second = check(profile(), live, POLICY).columns[:2]

    assert (first.column, second.column) == ("x2", "x3")
    assert first.effect is not None
    assert second.effect is not None
    assert second.score > first.score, "the shift of x3 is the larger one; that of x2 matters more"
    # The truth by changing one column at a time in the reference.
    base = rows(50_000, 13)
    moved = 1 / (1 + np.exp(-(2 * (base["x2"] + 0.4) + 0.2 * base["x3"])))
    assert first.effect == pytest.approx((moved - base["prediction.score"]).mean(), rel=0.2)


def test_a_profile_is_text_and_needs_no_training_rows() -> None:
    text = profile().to_json()
    live = shift(rows(1000, 14))

    again = parse_profile(text, "reference.json")

    assert check(again, live, POLICY) == check(profile(), live, POLICY)
    trained = rows(8000, 1)
    bounded = [column for column in again.columns if column.bounds]
    kept = {column.name: set(column.bounds) & set(trained[column.name]) for column in bounded}
    ends = {name: {trained[name].min(), trained[name].max()} for name in kept}
    assert kept == ends, "of the training set's own values only the two ends of a range are kept"


def test_chunks_say_the_same_as_the_whole() -> None:
    live = shift(rows(4000, 15))
    whole = check(profile(), live, POLICY, window_rows=1000)
    chunks = [live.iloc[start : start + 170] for start in range(0, 4000, 170)]

    parts = check(profile(), chunks, POLICY, window_rows=1000)

    assert [replace(column, mean=None) for column in parts.columns] == [
        replace(column, mean=None) for column in whole.columns
    ]
    assert parts.multivariate == whole.multivariate


def timed(frame: pd.DataFrame, days: float, start: float = 1_700_006_400.0) -> pd.DataFrame:
    return frame.assign(**{"@time": start + np.arange(len(frame)) * days * DAY / len(frame)})


def test_partial_windows_are_left_out_and_said() -> None:
    weekly = DriftPolicy(window="7d")
    reference = make_profile(timed(rows(8000, 1), 59), SIGNATURE, weekly, model="paint")
    live = timed(rows(2000, 16), 17, start=reference.starts[0] + 70 * DAY)
    broken = live.assign(x4=live["x4"].where(np.arange(2000) < 1700, 50.0))  # only in the unfinished window

    result = check(reference, broken, weekly)

    assert len(reference.sizes) == 8
    assert reference.dropped == 8000 - sum(reference.sizes)
    assert [window.rows for window in result.windows] == [824, 824]
    assert result.outcome is Outcome.STABLE
    assert FindingKind.PARTIAL_WINDOW in {finding.kind for finding in result.findings}


def test_a_stray_row_of_the_future_does_not_complete_the_newest_window() -> None:
    weekly = DriftPolicy(window="7d")
    reference = make_profile(timed(rows(8000, 1), 59), SIGNATURE, weekly, model="paint")
    live = timed(rows(2000, 16), 17, start=reference.starts[0] + 70 * DAY)
    live["x4"] = live["x4"].where(np.arange(2000) < 1700, 50.0)  # only in the unfinished window
    stray = live.iloc[-1:].assign(**{"@time": live["@time"].max() + 400 * DAY})

    result = check(reference, pd.concat([live, stray]), weekly)

    assert [window.rows for window in result.windows] == [824, 824]
    assert result.outcome is Outcome.STABLE


def test_times_that_cannot_be_are_not_judged_and_cost_no_memory() -> None:
    """Milliseconds where seconds are meant, in the reference and live; and a clock in the year 2150."""
    policy = DriftPolicy(window="15m", time_column="t")

    def clocked(count: int, seed: int, start: float) -> pd.DataFrame:
        frame = timed(rows(count, seed), 2, start).rename(columns={"@time": "t"})
        frame.loc[:9, "t"] *= 1000
        frame.loc[10, "t"] = 5.7e9
        return frame

    reference = make_profile(clocked(20_000, 1, 1_700_006_400), SIGNATURE, policy, model="paint")
    live = clocked(20_000, 2, 1_700_006_400 + 3 * DAY).rename(columns={"t": "@time"})

    result = check(reference, live, policy)

    assert len(reference.sizes) == 192
    assert reference.dropped == 11
    assert result.outcome is Outcome.STABLE, result.sentence
    found = {finding.kind: finding.count for finding in result.findings}
    assert found[FindingKind.NO_TIME] == 10
    assert found[FindingKind.TOO_FEW_ROWS] == 1


def test_windows_beyond_counting_are_forgotten_from_the_oldest_on() -> None:
    policy = DriftPolicy(window="1m", min_rows=20)
    reference = make_profile(timed(rows(8000, 1), 0.1), SIGNATURE, policy, model="paint")
    wild = rows(8000, 2)
    wild["@time"] = reference.starts[0] + 60.0 * np.arange(8000)
    calm = timed(rows(2000, 3), 10 / 1440, start=wild["@time"].max() + 60)
    chunks = [wild[:4000], wild[4000:], calm]

    tally = Tally(reference, policy)
    for chunk in chunks:
        tally.add(chunk)
    result = conclude(tally, until=float(calm["@time"].max()) + 0.3)

    assert len(tally.windows) == MOST_WINDOWS
    assert [window.rows for window in result.windows] == [200] * 10
    found = {finding.kind: finding.count for finding in result.findings}
    assert found[FindingKind.OLD_WINDOWS] == 8000 - (MOST_WINDOWS - 10)


def test_what_tells_the_rows_apart_is_named_in_the_words_of_the_data() -> None:
    """Not as the number of a category."""
    signature = SIGNATURE.model_copy(update={"outputs": (Column(name="label", type="string"),)})
    made = make_profile(rows(8000, 1), signature, POLICY, model="paint")
    live = rows(2000, 24)
    live["colour"] = np.where(np.arange(2000) % 8 == 0, "grey", live["colour"])

    found = check(made, live, POLICY).multivariate

    assert found is not None
    assert "colour 'grey'" in found.told_by


def test_too_short_a_reference_says_that_it_cannot_alert() -> None:
    weekly = DriftPolicy(window="7d")
    reference = make_profile(timed(rows(4000, 1), 21), SIGNATURE, weekly, model="paint")
    live = timed(rows(2000, 17), 14, start=reference.starts[0] + 28 * DAY)
    live["x4"] += 3

    result = check(reference, live, weekly)

    assert result.outcome is Outcome.CANNOT_TELL
    finding = next(f for f in result.findings if f.kind is FindingKind.CANNOT_ALERT)
    assert "the reference has 3 whole windows, 4 are needed" in finding.sentence
    assert all(column.detectable is None for column in result.columns)


def daily_rhythm(count: int, days: float, seed: int, start: float = 1_700_006_400.0) -> pd.DataFrame:
    frame = timed(rows(count, seed), days, start)
    hour = (frame["@time"] // 3600) % 24
    return frame.assign(x4=frame["x4"] + 2 * np.sin(2 * np.pi * hour / 24))


@pytest.mark.parametrize("season", ["none", "hour"])
def test_with_a_season_the_same_hours_are_compared(season: str) -> None:
    policy = DriftPolicy(window="1d", season=season, time_column="t")
    reference = make_profile(
        daily_rhythm(20_000, 20, 1).assign(t=lambda f: f["@time"]), SIGNATURE, policy, model="paint"
    )
    live = daily_rhythm(20_000, 10, 18, reference.starts[0] + 30 * DAY)
    mornings = live[(live["@time"] // 3600) % 24 < 11]

    result = check(reference, mornings, policy)

    assert ("x4" in drifted(result)) == (season == "none")
    live["x4"] += 0.5
    assert "x4" in drifted(check(reference, live[(live["@time"] // 3600) % 24 < 11], policy))


def without(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame.drop(columns=name)


BAD_INPUT: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], Outcome, FindingKind | None, str]] = {
    "no rows": (lambda f: f.iloc[:0], Outcome.NO_SAMPLES, None, "no samples"),
    "few rows": (lambda f: f.iloc[:30], Outcome.CANNOT_TELL, FindingKind.TOO_FEW_ROWS, "50 rows or more"),
    "a missing column": (lambda f: without(f, "x3"), Outcome.DAMAGED, FindingKind.MISSING_COLUMN, "'x3'"),
    "a new column": (lambda f: f.assign(x99=1), Outcome.STABLE, FindingKind.NEW_COLUMN, "nothing"),
    "numbers as text": (
        lambda f: f.assign(x3=f["x3"].map(str)),
        Outcome.DAMAGED,
        FindingKind.CHANGED_TYPE,
        "2000 values",
    ),
    "all null": (lambda f: f.assign(x3=np.nan), Outcome.DAMAGED, FindingKind.ALL_NULL, "null in every row"),
    "all null text": (
        lambda f: f.assign(colour=None),
        Outcome.DAMAGED,
        FindingKind.ALL_NULL,
        "null in every",
    ),
    "unseen categories": (newcomer, Outcome.DRIFTED, FindingKind.UNSEEN_CATEGORY, "colour"),
    "infinite values": (
        lambda f: f.assign(x3=f["x3"].where(f.index != 1990, np.inf)),
        Outcome.STABLE,
        FindingKind.INFINITE,
        "nothing",
    ),
    "times that are none": (
        lambda f: timed(f, 4).assign(**{"@time": np.nan}),
        Outcome.CANNOT_TELL,
        FindingKind.NO_TIME,
        "0 whole windows",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_has_a_typed_outcome(case: str) -> None:
    change, outcome, kind, sentence = BAD_INPUT[case]

    result = check(profile(), change(rows(2000, 19)), POLICY)

    assert result.outcome is outcome
    assert sentence in result.sentence
    if kind is not None:
        assert kind in {finding.kind for finding in result.findings}
    assert result.to_dict()["outcome"] == outcome.value


def test_a_reference_of_another_model_is_refused() -> None:
    result = check(profile(), rows(1000, 20), POLICY, model="flights")
    assert result.outcome is Outcome.WRONG_REFERENCE
    assert "'paint'" in result.sentence


@pytest.mark.parametrize("text", ["", "{}", '{"format": 9}', "[1]", "\x00"])
def test_a_damaged_reference_is_one_line(text: str) -> None:
    with pytest.raises(ArtifactCorrupt, match="is no drift reference") as caught:
        parse_profile(text, "reference.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (pd.DataFrame(), "no rows"),
        (pd.DataFrame({"other": [1.0]}), "none of the signature's inputs"),
    ],
)
def test_a_training_frame_without_use_is_refused(frame: pd.DataFrame, reason: str) -> None:
    with pytest.raises(SpecInvalid, match=reason):
        make_profile(frame, SIGNATURE, POLICY, model="paint")


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"x0": [np.nan] * 300, "colour": [None] * 300}),
        pd.DataFrame({"x0": [1.0] * 300, "colour": ["red"] * 300}),
        pd.DataFrame({"x0": [1.0, np.inf, -np.inf] * 100, "colour": [f"c{i}" for i in range(300)]}),
        pd.DataFrame({"x0": [1.0], "colour": ["red"]}),
        pd.DataFrame(
            {"x0": pd.array([1, None, 3] * 100, dtype="Int64"), "colour": [["a"], None, {"b": 1}] * 100}
        ),
    ],
)
def test_strange_references_are_profiled_and_checked(frame: pd.DataFrame) -> None:
    strange = make_profile(frame, SIGNATURE, POLICY, model="paint")
    parse_profile(strange.to_json(), "reference.json")
    result = check(strange, rows(500, 21), POLICY)
    assert result.outcome in set(Outcome)
    same = check(strange, frame, POLICY)
    assert same.outcome in (Outcome.STABLE, Outcome.CANNOT_TELL)


def test_tensors_are_compared_by_mean_and_spread() -> None:
    signature = Signature(
        inputs=(Column(name="pixels", type="number", shape=(4, 4)),),
        outputs=(Column(name="digit", type="integer"),),
    )
    random = np.random.default_rng(22)
    images = pd.DataFrame({"pixels": list(random.random((3000, 4, 4)))})
    made = make_profile(images, signature, POLICY, model="digits")
    dark = pd.DataFrame({"pixels": [(cell * 0.8).tolist() for cell in random.random((1000, 4, 4))]})

    assert drifted(check(made, dark, POLICY)) == {"pixels.mean", "pixels.sd"}
