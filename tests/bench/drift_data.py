"""Made-up rows of which the drift benchmark knows the truth: 19 numbers and a category."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from flows.domain.drift.policy import DriftPolicy
from flows.domain.signature import Column, Signature

NUMBERS = [f"x{place}" for place in range(19)]
COLUMNS = [*NUMBERS, "kind"]
SIGNATURE = Signature(
    inputs=(*(Column(name=name, type="number") for name in NUMBERS), Column(name="kind", type="string")),
    outputs=(Column(name="score", type="number"),),
)
POLICY = DriftPolicy()
LIKENESS = 0.9
CORRELATION = 0.7

Make = Callable[[np.random.Generator, int], pd.DataFrame]


def normal(random: np.random.Generator, count: int) -> pd.DataFrame:
    """Independent rows; x0 and x1 go together."""
    table = random.normal(size=(count, 19))
    table[:, 1] = CORRELATION * table[:, 0] + np.sqrt(1 - CORRELATION**2) * table[:, 1]
    frame = pd.DataFrame(table, columns=NUMBERS)
    frame["kind"] = random.choice(["a", "b", "c", "d"], count, p=[0.4, 0.3, 0.2, 0.1])
    return frame


def lognormal(random: np.random.Generator, count: int) -> pd.DataFrame:
    frame = normal(random, count)
    frame[NUMBERS] = np.exp(frame[NUMBERS])
    return frame


def wandering(random: np.random.Generator, count: int) -> pd.DataFrame:
    """Stationary AR(1) in every number."""
    frame = normal(random, count)
    values = random.normal(size=(count + 100, 19)) * np.sqrt(1 - LIKENESS**2)
    for place in range(1, len(values)):
        values[place] += LIKENESS * values[place - 1]
    frame[NUMBERS] = values[100:]
    return frame
