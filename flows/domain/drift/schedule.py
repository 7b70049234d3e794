"""When a model's next drift check is due: the cron expression of `model.yaml`, in its time zone.

One frequent job asks this for every model, so Prefect's scheduler and a plain CronJob run the same code, a
changed model.yaml counts at once, and a check that an outage swallowed is made up for afterwards.
"""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim

from flows.domain.drift.policy import DriftPolicy


def is_due(policy: DriftPolicy, last: datetime | None, now: datetime) -> bool:
    """Whether the schedule has struck since the last check (aware datetimes; None: never checked)."""
    if last is None:
        return True
    return next_check(policy, last) <= now


def next_check(policy: DriftPolicy, after: datetime) -> datetime:
    """The first time after `after` at which the schedule strikes."""
    return next(CronSim(policy.schedule, after.astimezone(ZoneInfo(policy.timezone))))
