"""Performance from delayed outcomes, its estimate without them, and the online alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from flows.domain.drift.check import check
from flows.domain.drift.findings import DriftResult, FindingKind, Outcome
from flows.domain.drift.online import error_changes
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import Profile, make_profile, parse_profile
from flows.domain.drift.report import performance_lines
from flows.domain.errors import SpecInvalid
from flows.domain.signature import Column, Signature

SIGNATURE = Signature(
    inputs=(Column(name="x", type="number"),), outputs=(Column(name="late", type="number"),)
)
POLICY = DriftPolicy()


def judged(count: int, seed: int, noise: float = 0.0, known: float = 1.0, skill: float = 1.0) -> pd.DataFrame:
    """Rows whose probability is right, unless `noise` blurs what is said or `skill` what is true."""
    random = np.random.default_rng(seed)
    x = random.normal(size=count)
    truth = 1 / (1 + np.exp(-(1.5 * skill * x - 1)))
    said = 1 / (1 + np.exp(-(1.5 * x - 1 + noise * random.normal(size=count))))
    outcome = (random.random(count) < truth).astype(float)
    outcome[random.random(count) >= known] = np.nan
    return pd.DataFrame({"x": x, "prediction.late": said, "@outcome": outcome})


@pytest.fixture(scope="module")
def profile() -> Profile:
    return make_profile(judged(8000, 1), SIGNATURE, POLICY, model="flights")


def test_a_model_is_measured_on_rows_that_it_has_not_learned() -> None:
    """It knows its training rows by heart; live it is as good as on the holdout, and nothing has changed."""
    training, holdout, live = judged(8000, 1), judged(4000, 20), judged(2000, 21)
    outcome = training["@outcome"]
    training["prediction.late"] = np.where(outcome == 1, 0.7 + 0.3 * training["prediction.late"], 0.1)

    learned = make_profile(training, SIGNATURE, POLICY, model="flights")
    apart = make_profile(training, SIGNATURE, POLICY, model="flights", holdout=holdout)

    wrong, right = look(learned, live), look(apart, live)
    assert wrong.outcome is Outcome.HARMED
    assert "register it with a holdout" in {f.kind: f.sentence for f in wrong.findings}[FindingKind.REFERENCE]
    assert right.outcome is Outcome.STABLE, right.sentence
    assert FindingKind.REFERENCE not in {finding.kind for finding in right.findings}
    assert apart.performance is not None
    assert apart.performance.held_out
    assert apart.performance.quality == pytest.approx(
        roc_auc_score(holdout["@outcome"], holdout["prediction.late"]), abs=2e-3
    )
    assert next(column for column in apart.columns if column.role == "input").effects
    assert parse_profile(apart.to_json(), "reference.json") == apart


@pytest.mark.parametrize("season", ["none", "weekday"])
def test_a_holdout_has_windows_of_its_own(season: Literal["none", "weekday"]) -> None:
    policy = DriftPolicy(time_column="t", window="1d", season=season)

    def dated(frame: pd.DataFrame, first_day: int, days: int) -> pd.DataFrame:
        seconds = np.linspace(first_day, first_day + days, len(frame), endpoint=False) * 86400
        return frame.assign(t=1_700_006_400 + seconds, **{"@time": 1_700_006_400 + seconds})

    training, holdout = dated(judged(8000, 1), 0, 28), dated(judged(4000, 20), 28, 14)
    made = make_profile(training, SIGNATURE, policy, model="flights", holdout=holdout)
    output = made.columns[-1]

    assert (len(made.sizes), len(output.counts)) == (28, 14)
    assert check(made, dated(judged(2000, 22), 42, 7), policy).outcome is Outcome.STABLE
    shifted = dated(judged(2000, 23), 42, 7)
    shifted["prediction.late"] **= 2
    found = check(made, shifted.drop(columns="@outcome"), policy)
    assert [column.column for column in found.columns if column.drifted] == ["prediction.late"]


@pytest.mark.parametrize("frame", [judged(0, 1), judged(300, 1)[["x", "@outcome"]]])
def test_a_holdout_without_predictions_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(SpecInvalid, match="holdout has no predictions"):
        make_profile(judged(8000, 1), SIGNATURE, POLICY, model="flights", holdout=frame)


def look(profile: Profile, frame: pd.DataFrame) -> DriftResult:
    return check(profile, frame, POLICY)


def test_the_quality_is_the_area_under_the_curve(profile: Profile) -> None:
    live = judged(4000, 2)

    performance = look(profile, live).performance

    assert performance is not None
    assert performance.state == "good"
    assert performance.quality == pytest.approx(
        roc_auc_score(live["@outcome"], live["prediction.late"]), abs=1e-3
    )
    assert performance.loss == pytest.approx(log_loss(live["@outcome"], live["prediction.late"]), abs=1e-9)
    assert performance.low is not None
    assert performance.high is not None
    assert performance.low < performance.quality < performance.high


def test_good_models_are_not_called_bad(profile: Profile) -> None:
    states = [look(profile, judged(1000, 100 + seed)).outcome for seed in range(30)]
    assert states.count(Outcome.HARMED) <= 1


def test_a_worse_model_is_found_by_its_outcomes_and_not_by_the_estimate(profile: Profile) -> None:
    """What inputs lead to has changed, the inputs have not: only outcomes can show it."""
    live = judged(4000, 3, skill=0.3)

    result = look(profile, live)

    assert result.outcome is Outcome.HARMED
    assert not any(column.drifted for column in result.columns)
    blind = look(profile, live.drop(columns="@outcome"))
    assert blind.outcome is Outcome.STABLE
    assert blind.performance is not None
    assert blind.performance.state == "no_outcomes"
    assert blind.performance.estimate == pytest.approx(profile.performance.quality, abs=0.02)  # type: ignore[union-attr]


def test_the_estimate_follows_blurred_inputs(profile: Profile) -> None:
    """Where a probability still means what it meant, the estimate is right without any outcome."""
    live = judged(6000, 4)
    live = live[live["x"].abs() < 0.6]
    truth = roc_auc_score(live["@outcome"], live["prediction.late"])

    performance = look(profile, live.drop(columns="@outcome")).performance

    assert performance is not None
    assert truth < 0.70 < (profile.performance.quality if profile.performance else 0)
    assert performance.estimate == pytest.approx(truth, abs=0.03)


def test_outcomes_replace_the_estimate_as_they_arrive(profile: Profile) -> None:
    truth = roc_auc_score(*[judged(6000, 5, skill=0.3)[name] for name in ("@outcome", "prediction.late")])
    estimates = []
    for known in (0.0, 0.5, 1.0):
        performance = look(profile, judged(6000, 5, skill=0.3, known=known)).performance
        assert performance is not None
        assert performance.estimate is not None
        estimates.append(performance.estimate)

    assert estimates[0] > estimates[1] > estimates[2]
    assert estimates[2] == pytest.approx(truth, abs=1e-3)


def test_worse_than_the_base_rate_is_harm(profile: Profile) -> None:
    live = judged(4000, 6, noise=4)

    performance = look(profile, live).performance

    assert performance is not None
    assert performance.state == "harmful"
    assert performance.loss is not None
    assert performance.base_loss is not None
    assert performance.loss > performance.base_loss
    assert "worse than no model" in performance.sentence


def test_too_few_outcomes_judge_nothing(profile: Profile) -> None:
    performance = look(profile, judged(1000, 7, skill=0, known=0.1)).performance
    assert performance is not None
    assert performance.state == "too_few"
    assert "200 are needed" in performance.sentence


def test_numbers_are_judged_by_their_error() -> None:
    random = np.random.default_rng(18)
    x = random.normal(size=6000)
    frame = pd.DataFrame({"x": x, "prediction.late": 10 * x, "@outcome": 10 * x + random.normal(size=6000)})
    made = make_profile(frame[:4000], SIGNATURE, POLICY, model="flights")
    good = look(made, frame[4000:]).performance
    bad = look(made, frame[4000:].assign(**{"@outcome": frame["@outcome"][4000:] + 1})).performance

    assert good is not None
    assert bad is not None
    assert (good.task, good.state, bad.state) == ("number", "good", "degraded")
    assert good.quality == pytest.approx(0.8, abs=0.05)


def test_labels_are_judged_by_the_share_that_is_right() -> None:
    signature = Signature(
        inputs=(Column(name="x", type="number"),), outputs=(Column(name="digit", type="string"),)
    )
    random = np.random.default_rng(9)
    said = random.choice(["one", "two", "three"], 6000)
    wrong = random.random(6000) < np.where(np.arange(6000) < 4000, 0.05, 0.15)
    frame = pd.DataFrame({"x": random.normal(size=6000), "prediction.digit": said})
    frame["@outcome"] = np.where(wrong, "four", said)
    made = make_profile(frame[:4000], signature, POLICY, model="digits")

    performance = look(made, frame[4000:]).performance

    assert performance is not None
    assert (performance.task, performance.state) == ("label", "degraded")
    assert performance.quality == pytest.approx(0.85, abs=0.02)


def test_the_online_alarm_names_the_moment() -> None:
    random = np.random.default_rng(10)
    errors = np.where(np.arange(6000) < 4000, random.beta(2, 8, 6000), random.beta(4, 6, 6000))

    changes = error_changes(np.arange(6000.0), errors, 1.0)

    assert len(changes) >= 1
    assert 4000 <= changes[0].at < 4200
    assert changes[0].worse
    assert error_changes(np.arange(4000.0), errors[:4000], 1.0) == ()


def barely_useful(count: int, seed: int) -> pd.DataFrame:
    """A classifier that ranks a little better than chance and is much too sure of itself."""
    random = np.random.default_rng(seed)
    x = random.normal(size=count)
    truth, said = 1 / (1 + np.exp(-0.4 * x)), 1 / (1 + np.exp(-1.2 * x))
    return pd.DataFrame({"x": x, "prediction.late": said, "@outcome": (random.random(count) < truth) * 1.0})


def constant_label(count: int, seed: int) -> pd.DataFrame:
    """Right less often than always answering the commonest label."""
    random = np.random.default_rng(seed)
    true = random.choice(["one", "two", "three"], count, p=[0.7, 0.2, 0.1])
    said = np.where(random.random(count) < 0.66, true, "four")
    return pd.DataFrame({"x": random.normal(size=count), "prediction.late": said, "@outcome": true})


def wild_number(count: int, seed: int) -> pd.DataFrame:
    """Further off than always answering the mean."""
    random = np.random.default_rng(seed)
    true = 5 + random.normal(size=count)
    said = true + 1.2 * random.normal(size=count)
    return pd.DataFrame({"x": random.normal(size=count), "prediction.late": said, "@outcome": true})


@pytest.mark.parametrize(
    ("make", "type", "base"),
    [
        (barely_useful, "number", "base rate"),
        (constant_label, "string", "commonest"),
        (wild_number, "number", "always answering the mean"),
    ],
)
def test_no_model_that_is_worse_than_none_is_called_good(
    make: Callable[[int, int], pd.DataFrame], type: Literal["number", "string"], base: str
) -> None:
    """As good as in the reference, and not proven to be harmful: that is doubtful, and said."""
    signature = Signature(
        inputs=(Column(name="x", type="number"),), outputs=(Column(name="late", type=type),)
    )
    made_of = make_profile(make(8000, 1), signature, POLICY, model="flights")

    result = look(made_of, make(600, 2))

    performance = result.performance
    assert performance is not None
    if performance.loss is not None and performance.base_loss is not None:
        assert performance.loss > performance.base_loss
    assert performance.state == "doubtful", performance.sentence
    assert base in performance.sentence
    assert result.outcome is Outcome.STABLE
    said = performance_lines(performance)[0]
    assert said.startswith("performance: doubtful. ")
