"""A promotion that a person has asked to hurry: who, why, and what is skipped, in the registry.

The event decides, not the flow's parameters: whoever takes the promotion up again, or replays it, goes by
what was agreed when it began.
"""

from __future__ import annotations

from collections.abc import Sequence

from flows.adapters.registry import Event
from flows.domain.judge.plan import duration
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.promotion import Promotion
from flows.domain.spec import ModelSpec
from flows.wiring import ControlPlane

EVENT = "hotfix"
DWELL = 5.0
"""A hotfix stays at a step for this part of the usual time."""


def dwell_of(policy: PromotionPolicy) -> float:
    """Seconds at each step of a hotfix: the usual time's fifth, a window at least."""
    return min(policy.dwell_seconds, max(policy.dwell_seconds / DWELL, policy.window_seconds))


def skipped(policy: PromotionPolicy) -> str:
    """What a hotfix under this policy does without, and what not."""
    short = dwell_of(policy)
    watched = sum(step < 100 for step in policy.steps)
    less = duration(watched * (policy.dwell_seconds - short))
    return (
        f"{duration(short)} at each step rather than {duration(policy.dwell_seconds)}: {less} of watching "
        "before 100 % are skipped, and harm that takes longer to show is left to the watch after it; "
        f"min_requests ({policy.min_requests}), proof and approvals stay"
    )


def ask(plane: ControlPlane, promotion: Promotion, policy: PromotionPolicy, who: str, reason: str) -> None:
    """Record that this promotion is to hurry. One that was begun keeps to what it was begun with."""
    if plane.registry.windows(promotion) or agreed(plane.registry.events(promotion.model, promotion)):
        return
    detail = {"who": who, "reason": reason, "skips": skipped(policy), "dwell_seconds": dwell_of(policy)}
    plane.registry.note(promotion.model, EVENT, detail, promotion)


def agreed(events: Sequence[Event]) -> Event | None:
    """The event of a promotion that is a hotfix; None for any other."""
    return next((event for event in events if event.kind == EVENT), None)


def policy_of(events: Sequence[Event], policy: PromotionPolicy) -> PromotionPolicy:
    """The policy that a promotion with these events goes by."""
    event = agreed(events)
    if event is None:
        return policy
    return policy.model_copy(update={"dwell_seconds": float(event.detail["dwell_seconds"])})


def hurried(plane: ControlPlane, promotion: Promotion, spec: ModelSpec) -> ModelSpec:
    """The release's spec with the policy that the promotion goes by."""
    events = plane.registry.events(promotion.model, promotion)
    return spec.model_copy(update={"promotion": policy_of(events, spec.promotion)})


def sentence(event: Event) -> str:
    """For the plan and the report."""
    detail = event.detail
    return f"hotfix, by {detail['who']}: {detail['reason']}; {detail['skips']}"
