"""What a model takes and answers: the `signature` section of `model.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Section):
    """One named input or output. A `shape` makes it a tensor per row; without one it is a scalar."""

    name: str
    type: Literal["number", "integer", "boolean", "string"]
    shape: tuple[int, ...] = ()
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    batch_axis: int = 0
    description: str = ""
    personal: Literal["hash", "drop"] | None = None
    """Personal data: the server hashes or drops it before a row is sampled. Never compared, never in a
    reference."""


class Signature(Section):
    inputs: tuple[Column, ...] = Field(min_length=1)
    outputs: tuple[Column, ...] = Field(min_length=1)
