"""How a model wants its releases promoted: steps, patience, and what counts as harm.

The defaults are meant to be kept. What they find, and how fast, is in the acceptance table that
`make bench-judge` prints.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from flows.domain.judge.asked import Metric, Outcomes


class Weights(BaseModel):
    """How the right to reject a healthy canary (`alpha`) is shared among the gates.

    The gates' evidences are averaged with these weights, so a gate with half of the weight needs twice the
    evidence. Only proportions matter; 0 switches a gate off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    errors: float = Field(default=6, ge=0)
    latency: float = Field(default=2, ge=0)
    outputs: float = Field(default=1, ge=0)
    client_errors: float = Field(default=1, ge=0)
    """Requests answered 400, 415 or 422: a release that no longer takes what clients send."""
    missing: float = Field(default=1, ge=0)
    """Requests that clients gave up on: a release that hangs has no errors and is never slow."""
    segments: float = Field(default=1, ge=0)
    """Errors by a column's value, where `segments` names one; all values share this."""
    agreement: float = Field(default=1, ge=0)

    @field_validator("agreement")
    @classmethod
    def _one_gate_at_least(cls, agreement: float, info: ValidationInfo) -> float:
        if agreement + sum(value for name, value in info.data.items() if name != "segments") <= 0:
            raise ValueError(f"{', '.join(info.data)} and agreement are all 0: nothing would be judged")
        return agreement


RESERVED = frozenset({"approval", "incident", "metrics", "outcomes", "proof", "time", "traffic", "weight"})
"""What verdicts are named after beside the gates."""


PACES: dict[str, dict[str, Any]] = {
    "quick": {"steps": (10, 50, 100), "dwell_seconds": 60.0, "min_requests": 20},
    "standard": {"steps": (5, 25, 50, 100), "dwell_seconds": 300.0, "min_requests": 50},
    "careful": {"steps": (1, 5, 25, 50, 100), "dwell_seconds": 900.0, "min_requests": 200},
}
"""What each `pace` stands for. How much harm is accepted and what counts as proof is the same in all."""


class PromotionPolicy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    pace: Literal["quick", "standard", "careful"] = "standard"
    """Sets `steps`, `dwell_seconds` and `min_requests` together; one that is written as well wins."""
    steps: tuple[int, ...] = (5, 25, 50, 100)
    """Canary weights in percent, rising, the last one 100."""
    dwell_seconds: float = Field(default=300, ge=0)
    """Least observed time at each step, with the weight really applied."""
    window_seconds: float = Field(default=5, gt=0)
    """How often the counters are read and the judge is asked."""
    pause_seconds: float = Field(default=20, ge=0, le=600)
    """Longest pause of a server (collection, a throttled processor, a dependency's blip) that is no fault of
    the release. 0: requests count as independent, however many come together."""
    warm_up_seconds: float = Field(default=60, ge=0)
    """For so long after each shift of the weight, and after a server has joined, slowness counts for nothing:
    caches are cold, code is compiled, replicas are added. At most half of `dwell_seconds`; errors count."""
    min_requests: int = Field(default=50, ge=1)
    """Least canary requests at each step: no step is passed on silence."""
    deadline_seconds: float = Field(default=10800, gt=0)
    """How long the whole ramp may take, from the first window on."""
    at_deadline: Literal["rollback", "keep", "promote_unproven"] = "rollback"
    """What a promotion becomes that is neither rejected nor certified by the deadline. `rollback` sends the
    traffic back to the stable and ends `unproven`; the only release stays, and unseen nothing moves."""
    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Greatest chance that a canary that is no worse is ever rejected."""
    beta: float = Field(default=0.05, gt=0, lt=1)
    """Greatest chance that a canary that is as bad as `max_ratio` and `max_absolute` say is certified."""
    max_ratio: float = Field(default=2.0, gt=1, le=100)
    """Certified when proven to fail less than this many times as often as the stable, or …"""
    max_absolute: float = Field(default=0.01, gt=0, lt=1)
    """… proven to fail at most this share of requests more often than the stable."""
    max_slowdown: float = Field(default=2.0, ge=1, le=100)
    """Rejected as slow only when slower than the stable would be if all its requests took this many times
    as long: a histogram bound that separates 4.9 from 5.1 ms must not decide."""
    latency_floor_seconds: float = Field(default=0.025, ge=0)
    """Requests quicker than this are never slow, whatever the stable's take."""
    max_shift: float = Field(default=0.25, gt=0, lt=1)
    """Tolerated difference between the releases' shares of predictions in a bin, or up to a bin."""
    min_agreement: float | None = Field(default=None, gt=0, lt=1)
    """Least share of shadow answers that agree with the stable's; None: releases may disagree."""
    require_metrics: bool = True
    """Hold a canary whose own servers show no metrics: its outputs cannot be checked."""
    weights: Weights = Weights()
    segments: tuple[str, ...] = Field(default=(), max_length=2)
    """Inputs of few values (`country`), by which errors are counted too: a canary that fails for one user in
    two hundred is found by that value's name. The signature must say which values there are."""
    metrics: tuple[Metric, ...] = Field(default=(), max_length=10)
    """Counters of one's own, compared as errors are."""
    outcomes: Outcomes | None = None
    """What turned out to be true, as far as it is known in time."""
    slo_error_rate: float = Field(default=0.05, gt=0, lt=1)
    """Tolerated share of errors when there is no stable to compare with; a stable that breaks it is an
    incident that both releases share."""
    slo_latency_seconds: float | None = Field(default=None, gt=0)
    """Without a stable: at most `slo_slow_share` of the requests may be slower than this."""
    slo_slow_share: float = Field(default=0.05, gt=0, lt=1)
    post_watch_seconds: float = Field(default=900, ge=0)
    """How long to watch on after 100 %, the previous release still warm."""
    hold_back: int = Field(default=0, ge=0, lt=50)
    """Percent of the traffic that the previous release keeps during the post-watch, as a control group."""
    approve_before: tuple[int, ...] = ()
    """Steps that wait for a person, at most until the deadline; the step before is watched on meanwhile."""

    @model_validator(mode="before")
    @classmethod
    def _what_the_pace_says(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(pace := content.get("pace"), str):
            return content
        return {**PACES.get(pace, {}), **content}

    @field_validator("steps")
    @classmethod
    def _steps_rise_to_100(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or steps[-1] != 100:
            raise ValueError("the last step must be 100")
        if steps[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError("must rise from at least 1 to 100")
        return steps

    @field_validator("window_seconds")
    @classmethod
    def _a_window_fits_the_dwell(cls, seconds: float, info: ValidationInfo) -> float:
        dwell = info.data.get("dwell_seconds", 0)
        if 0 < dwell < seconds:
            raise ValueError(f"must not exceed dwell_seconds ({dwell:g})")
        return seconds

    @field_validator("deadline_seconds")
    @classmethod
    def _the_ramp_fits_the_deadline(cls, seconds: float, info: ValidationInfo) -> float:
        ramp = info.data.get("dwell_seconds", 0) * max(1, len(info.data.get("steps", ())) - 1)
        if seconds < ramp:
            raise ValueError(f"must not be below {ramp:g}: dwell_seconds at each step before 100")
        window = info.data.get("window_seconds", 0)
        if seconds < window:
            raise ValueError(f"must not be below window_seconds ({window:g}): nothing could be judged")
        return seconds

    @field_validator("weights")
    @classmethod
    def _agreement_is_looked_at_when_it_is_asked_for(cls, weights: Weights, info: ValidationInfo) -> Weights:
        asked = info.data.get("min_agreement") is not None
        if asked and weights.agreement == 0:
            raise ValueError("agreement is 0, so that min_agreement would never be looked at")
        of_all = weights.model_dump(exclude={"agreement", "segments"})
        if not asked and not sum(of_all.values()):
            raise ValueError("only agreement counts, and without min_agreement nothing would be judged")
        return weights

    @field_validator("segments")
    @classmethod
    def _segments_are_looked_at(cls, columns: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        weights = info.data.get("weights")
        if columns and weights is not None and not weights.segments:
            raise ValueError("weights.segments is 0, so that they would never be looked at")
        if len(set(columns)) < len(columns):
            raise ValueError("a column stands twice")
        return columns

    @field_validator("metrics")
    @classmethod
    def _names_are_unique(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        names = [metric.name for metric in metrics]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name} stands twice")
            if name in RESERVED or name in Weights.model_fields:
                raise ValueError(f"{name} is the name of another gate")
        return metrics

    @field_validator("hold_back")
    @classmethod
    def _a_hold_back_has_its_time_and_its_place(cls, percent: int, info: ValidationInfo) -> int:
        if percent and info.data.get("post_watch_seconds") == 0:
            raise ValueError("is for the watch after 100 %, and post_watch_seconds is 0")
        beyond = [step for step in info.data.get("steps", ()) if 100 - percent <= step < 100]
        if beyond:
            raise ValueError(
                f"leaves the canary {100 - percent} % at most, and {beyond[0]} is one of the steps"
            )
        return percent

    @field_validator("approve_before")
    @classmethod
    def _approvals_are_steps(cls, approvals: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        for step in approvals:
            if step not in info.data.get("steps", approvals):
                raise ValueError(f"{step} is not one of the steps")
        return approvals
