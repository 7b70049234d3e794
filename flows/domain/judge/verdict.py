"""What the judge says about a canary, in numbers and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["advance", "hold", "reject", "unobserved"]
Outcome = Literal["wait", "advance", "rollback", "keep"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`advance`: this step is passed. `hold`: not enough evidence yet. `reject`: the canary is worse.
    `unobserved`: the counters could not be read; weights stay. JSON round trip, equal after it.
    """

    kind: Kind
    metric: str
    """The gate that decided, such as `errors` or `latency`; `time`, `traffic`, `incident` … for a hold."""
    sentence: str
    """Why, in one sentence for people."""
    evidence: float = 1.0
    """E against the canary over all gates: rejected at 1 / alpha; finite."""
    canary_bad: int = 0
    """Bad requests (outputs, disagreements …) of the canary, in the metric that decided."""
    canary_total: int = 0
    stable_bad: int = 0
    stable_total: int = 0
    interval: tuple[float, float] = (-1.0, 1.0)
    """Canary's error rate minus the stable's: a time-uniform interval at confidence 1 - beta."""
    requests_needed: int | None = None
    """Canary requests still needed before the canary can be certified; None when not known or none."""
    minutes_needed: float | None = None
    unproven: bool = False
    """Advanced because the policy says so at the deadline, not because of evidence."""
    expired: bool = False
    """The policy's deadline has passed."""
    outcome: Outcome = "wait"
    """What the flow does now: wait for the next window, take the next step, take the traffic back, or
    leave the traffic as it is and end (`keep`)."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"interval": list(self.interval)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Verdict:
        low, high = content["interval"]
        return cls(**{**content, "interval": (low, high)})
