"""How often a model's traffic is checked for drift, and what follows when there is some."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class DriftPolicy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: str = "0 6 * * *"
    timezone: str = "UTC"
    consequence: Literal["record", "alert", "freeze", "retrain", "rollback"] = "alert"
