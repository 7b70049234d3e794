"""Plausible rows out of a profile, for pictures only.

The profile holds no values, so the report's reference side is drawn back from bins: a number anywhere inside
its bin, categories by name. Dependence between columns is kept as far as the profile has rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from flows.domain.drift.binning import BELOW, FIRST_BIN, FIRST_CATEGORY, NULL, RARE, Codes, Floats
from flows.domain.drift.profile import ColumnProfile, Profile


def reference_sample(profile: Profile, rows: int, seed: int = 5) -> pd.DataFrame:
    """About `rows` rows with the profile's columns: inputs together, outputs each by itself."""
    generator = np.random.default_rng(seed)
    joint = profile.sample.rows() if profile.sample is not None else None
    if joint is not None and len(joint) > rows:
        joint = joint[generator.choice(len(joint), rows, replace=False)]
    count = len(joint) if joint is not None else rows
    drawn: dict[str, Any] = {}
    for column in profile.columns:
        if joint is not None and profile.sample is not None and column.name in profile.sample.columns:
            codes = joint[:, profile.sample.columns.index(column.name)]
        else:
            shares = column.total if column.total.any() else np.ones_like(column.total)
            codes = generator.choice(len(shares), count, p=shares / shares.sum()).astype(np.uint8)
        drawn[column.name] = _values(column, codes, generator)
    return pd.DataFrame(drawn)


def as_sampled(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Live rows with the categories that `reference_sample` has: without a name, `(rare)` or `(other)`."""
    shown: dict[str, Any] = {}
    for column in profile.columns:
        if column.kind == "categorical" and column.name in rows:
            codes = column.bins.code(rows[column.name]).codes
            shown[column.name] = _values(column, codes, np.random.default_rng(0))
    return rows.assign(**shown)


def _values(column: ColumnProfile, codes: Codes, generator: np.random.Generator) -> Floats | list[str | None]:
    if column.kind == "categorical":
        names: dict[int, str | None] = {NULL: None, RARE: "(rare)"}
        names.update({FIRST_CATEGORY + place: name for place, name in enumerate(column.categories)})
        return [names.get(int(code), "(other)") for code in codes]
    if not column.bounds:
        return np.full(len(codes), np.nan)
    bounds = np.asarray(column.bounds)
    if len(bounds) - 1 <= 0:
        return np.where(codes == NULL, np.nan, bounds[0])
    place = np.clip(codes.astype(np.int64) - FIRST_BIN, 0, len(bounds) - 2)
    inside = bounds[place] + generator.random(len(codes)) * (bounds[place + 1] - bounds[place])
    inside = np.where(codes <= BELOW, bounds[0], inside)
    return np.where(codes == NULL, np.nan, inside)
