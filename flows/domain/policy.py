"""How a model wants its releases promoted: steps, patience, and what counts as harm."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PromotionPolicy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[int, ...] = (5, 25, 50, 100)
    """Canary weights in percent, rising, the last one 100."""
    dwell_seconds: float = Field(default=300, ge=0)
    """Least time at each step."""
    window_seconds: float = Field(default=15, gt=0)
    """How often the counters are read and the judge is asked."""
    deadline_seconds: float = Field(default=7200, gt=0)
    at_deadline: Literal["rollback", "keep", "promote_unproven"] = "rollback"
    alpha: float = Field(default=0.01, gt=0, lt=1)
    beta: float = Field(default=0.05, gt=0, lt=1)
    max_ratio: float = Field(default=2.0, gt=1)
    max_absolute: float = Field(default=0.01, gt=0, lt=1)
    post_watch_seconds: float = Field(default=900, ge=0)
    hold_back: int = Field(default=0, ge=0, lt=50)
    approve_before: tuple[int, ...] = ()
    """Steps that wait for a person's approval."""
