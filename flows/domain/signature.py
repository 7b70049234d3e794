"""What a model takes and answers: the `signature` section of `model.yaml`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_VALUES = 50
"""Values of a column that errors are counted by: each is a series of every server, and shares `alpha`."""


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
    categories: tuple[str, ...] = ()
    """The values of a string that the model knows; others are taken as ever."""
    personal: Literal["hash", "drop"] | None = None
    """Personal data: the server hashes or drops it before a row is sampled. Never compared, never in a
    reference."""

    @property
    def values(self) -> tuple[str, ...]:
        """All values there are, where that is known and they are no more than `MOST_VALUES` (plus one)."""
        if self.shape:
            return ()
        if self.type == "boolean":
            return ("false", "true")
        if self.type == "integer" and self.minimum is not None and self.maximum is not None:
            low, high = math.ceil(self.minimum), math.floor(self.maximum)
            return tuple(str(value) for value in range(low, min(high, low + MOST_VALUES) + 1))
        return self.categories if self.type == "string" else ()


class Signature(Section):
    inputs: tuple[Column, ...] = Field(min_length=1)
    outputs: tuple[Column, ...] = Field(min_length=1)


def narrowed(old: Signature, new: Signature) -> list[str]:
    """What clients of `old` may find missing in `new`, one sentence each; empty when all they send is taken
    and all they read is answered."""
    before, now = ({column.name: column for column in one.inputs} for one in (old, new))
    found = [
        f"input {name} is new and required: rows without it are refused"
        for name, column in now.items()
        if name not in before and not column.nullable
    ]
    found += [f"input {name} is gone: rows that carry it are refused" for name in before if name not in now]
    for name in before.keys() & now.keys():
        found += [f"input {name}: {change}" for change in _less_taken(before[name], now[name])]
    answered = {column.name: column for column in new.outputs}
    for column in old.outputs:
        found += [f"output {column.name}: {change}" for change in _answered_otherwise(column, answered)]
    return sorted(found)


def _less_taken(old: Column, new: Column) -> list[str]:
    found = []
    if new.type != old.type and (old.type, new.type) != ("integer", "number"):
        found.append(f"{old.type} has become {new.type}")
    if new.shape != old.shape:
        found.append(f"the shape {list(old.shape)} has become {list(new.shape)}")
    if old.nullable and not new.nullable:
        found.append("null is not taken any more")
    if new.minimum is not None and (old.minimum is None or new.minimum > old.minimum):
        found.append(f"nothing below {new.minimum:g} is taken any more")
    if new.maximum is not None and (old.maximum is None or new.maximum < old.maximum):
        found.append(f"nothing above {new.maximum:g} is taken any more")
    lost = [value for value in old.categories if value not in new.categories]
    if lost and new.categories:
        found.append(f"{', '.join(lost)} {'is' if len(lost) == 1 else 'are'} no category any more")
    return found


def _answered_otherwise(old: Column, answered: dict[str, Column]) -> list[str]:
    new = answered.get(old.name)
    if new is None:
        return ["is gone"]
    found = []
    if new.type != old.type and (old.type, new.type) != ("number", "integer"):
        found.append(f"{old.type} has become {new.type}")
    if new.shape != old.shape:
        found.append(f"the shape {list(old.shape)} has become {list(new.shape)}")
    if new.nullable and not old.nullable:
        found.append("may be null now")
    return found
