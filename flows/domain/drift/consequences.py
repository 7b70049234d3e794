"""What a drift check leads to, by the model's policy."""

from __future__ import annotations

from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.drift.policy import Consequence, DriftPolicy


def consequence(result: DriftResult, policy: DriftPolicy) -> Consequence | None:
    """What follows from a check; None when it raised no alert.

    Damaged data neither retrains nor rolls back: a model learnt from broken rows is worse than none, and the
    release before would be sent the same rows. Promotions are frozen instead, until somebody has looked.
    """
    if not result.alerts:
        return None
    if result.outcome is Outcome.DAMAGED:
        return "freeze" if policy.consequence in ("retrain", "rollback") else policy.consequence
    if result.outcome is Outcome.HARMED:
        return policy.harm or policy.consequence
    return policy.consequence
