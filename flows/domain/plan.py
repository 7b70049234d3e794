"""What a promotion can find and when, said before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from flows.domain.policy import PromotionPolicy


@dataclass(frozen=True, slots=True)
class Plan:
    """Minutes are from the first step on; None: not before the deadline."""

    requests_per_second: float
    error_rate: float
    minutes_to_find: float | None
    """Until a canary with twice the errors is rejected."""
    minutes_to_certify: float | None
    """Until a healthy canary is through the last step before 100 %."""
    sentences: tuple[str, ...]
    """To be printed, one a line; the warnings are among them and begin with 'warning: '."""
    decides: bool
    """Whether a healthy canary can be certified before the deadline."""


def plan(policy: PromotionPolicy, requests_per_second: float, base_error_rate: float) -> Plan:
    """Walk the ramp with expected counts. Both arguments as measured over the last hour, of all arms."""
    raise NotImplementedError
