"""Made-up columns of every kind, of which nothing changes unless a test changes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import Profile, make_profile
from flows.domain.signature import Column, Signature

DAY = 86400.0
START = 1_700_006_400.0
POLICY = DriftPolicy(min_influence=0)
"""Whatever drifts is an alert."""


def zipf(random: np.random.Generator, count: int, values: int, power: float = 1.1) -> npt.NDArray[np.int64]:
    """Numbers from 0 on, the first the most frequent: zip codes, product ids."""
    weights = 1 / np.arange(1, values + 1) ** power
    return random.choice(values, count, p=weights / weights.sum())


def products(random: np.random.Generator, count: int, values: int, power: float = 1.1) -> list[str]:
    return [f"sku-{number}" for number in zipf(random, count, values, power)]


def identifiers(random: np.random.Generator, count: int) -> list[str]:
    return [random.bytes(8).hex() for _ in range(count)]


WORDS = [f"{first}{middle}{last}" for first in "bdfgklmnprst" for middle in "aeiou" for last in "lmnrst"]


def sentences(random: np.random.Generator, count: int, words: slice = slice(None)) -> list[str]:
    chosen = WORDS[words]
    lengths = random.integers(5, 15, count)
    return [" ".join(chosen[word] for word in zipf(random, size, len(chosen), 0.7)) for size in lengths]


def profile_of(
    values: Any, type: str = "string", policy: DriftPolicy = POLICY, days: float | None = None
) -> Profile:
    """The profile of a model with one input, `x`."""
    made = signature(type)
    return make_profile(framed(values, days), made, policy, model="shop")


def framed(values: Any, days: float | None = None, start: float = START) -> pd.DataFrame:
    frame = pd.DataFrame({"x": values})
    return (
        frame
        if days is None
        else frame.assign(**{"@time": start + np.arange(len(frame)) * days * DAY / len(frame)})
    )


def signature(type: str = "string") -> Signature:
    column = Column.model_validate({"name": "x", "type": type})
    return Signature(inputs=(column,), outputs=(Column(name="y", type="number"),))
