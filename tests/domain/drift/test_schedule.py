"""When a model's next drift check is due, by the clock of its time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.schedule import is_due, next_check

BERLIN = ZoneInfo("Europe/Berlin")
DAILY = DriftPolicy(schedule="0 6 * * *", timezone="Europe/Berlin")


def test_a_model_that_was_never_checked_is_due() -> None:
    assert is_due(DAILY, None, datetime(2026, 7, 1, tzinfo=UTC))


def test_the_hour_is_that_of_the_time_zone() -> None:
    last = datetime(2026, 7, 1, 4, 1, tzinfo=UTC)  # 06:01 in Berlin

    assert next_check(DAILY, last) == datetime(2026, 7, 2, 6, tzinfo=BERLIN)
    assert not is_due(DAILY, last, datetime(2026, 7, 2, 3, 59, tzinfo=UTC))
    assert is_due(DAILY, last, datetime(2026, 7, 2, 4, 0, tzinfo=UTC))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_a_day_on_which_clocks_change_has_one_check(day: str, hours: int) -> None:
    change = datetime.fromisoformat(day).replace(tzinfo=BERLIN)
    before = (change - timedelta(days=1)).replace(hour=6)
    first = next_check(DAILY, before.astimezone(UTC))

    assert first.astimezone(BERLIN).hour == 6
    assert first.astimezone(UTC) - before.astimezone(UTC) == timedelta(hours=hours)


def test_checks_that_an_outage_swallowed_are_made_up_for_once() -> None:
    last, now = datetime(2026, 7, 1, 6, tzinfo=UTC), datetime(2026, 7, 9, 12, tzinfo=UTC)

    assert is_due(DAILY, last, now)
    assert not is_due(DAILY, now, now + timedelta(minutes=5))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("schedule", "every morning", "no cron expression of five fields"),
        ("schedule", "61 * * * *", "no cron expression of five fields"),
        ("timezone", "Berlin", "no such time zone"),
        ("window", "1 day", "is no duration"),
        ("season", "hour", "season needs time_column"),
        ("consequence", "retrain", "needs training"),
        ("training", "train/train", "needs trainer"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(field: str, value: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DriftPolicy.model_validate({field: value})
