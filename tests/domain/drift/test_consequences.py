"""What follows from a drift check, for every policy and every outcome."""

from __future__ import annotations

from typing import get_args

import pytest

from flows.domain.drift.consequences import consequence
from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.drift.policy import Consequence, DriftPolicy

EVERY: tuple[Consequence, ...] = get_args(Consequence)
QUIET = [one for one in Outcome if one not in (Outcome.DRIFTED, Outcome.HARMED, Outcome.DAMAGED)]


def follows(outcome: Outcome, **policy: str | None) -> Consequence | None:
    chosen = DriftPolicy.model_validate({"training": "train/paint", **policy})
    return consequence(DriftResult("paint", "paint-v1", outcome, "said"), chosen)


@pytest.mark.parametrize("chosen", EVERY)
def test_drift_leads_to_what_the_policy_says(chosen: Consequence) -> None:
    assert follows(Outcome.DRIFTED, consequence=chosen) == chosen
    assert follows(Outcome.HARMED, consequence=chosen) == chosen
    assert follows(Outcome.HARMED, consequence="record", harm=chosen) == chosen
    assert follows(Outcome.DRIFTED, consequence="record", harm=chosen) == "record"


@pytest.mark.parametrize("chosen", EVERY)
@pytest.mark.parametrize("outcome", QUIET)
def test_without_an_alert_nothing_follows(outcome: Outcome, chosen: Consequence) -> None:
    assert follows(outcome, consequence=chosen, harm=chosen) is None


@pytest.mark.parametrize(
    ("chosen", "then"),
    [
        ("record", "record"),
        ("alert", "alert"),
        ("freeze", "freeze"),
        ("retrain", "freeze"),
        ("rollback", "freeze"),
    ],
)
def test_damaged_data_neither_trains_nor_rolls_back(chosen: Consequence, then: Consequence) -> None:
    assert follows(Outcome.DAMAGED, consequence=chosen, harm="rollback") == then
