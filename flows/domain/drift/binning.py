"""Turns a column into small bin numbers, so that everything later works on counts instead of values.

Counts add up: over chunks of a file, over windows, over servers. So a check reads any amount of data once,
in bounded memory, and a profile can leave the house without a single row of the training set.

Codes of a numeric column: 0 null, 1 below the reference, 2 … K+1 the reference's quantile bins, K+2 above it.
Codes of a categorical column: 0 null, 1 never seen in the reference, 2 seen but rare, 3 … the categories.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]

NULL = 0
BELOW, UNSEEN = 1, 1
RARE = 2
FIRST_BIN, FIRST_CATEGORY = 2, 3
MOST_BINS = 32
MOST_CATEGORIES = 50
MOST_KNOWN = 2000


@dataclass(frozen=True)
class Coded:
    """A column as bin numbers, with what could not be read as the column's type."""

    codes: Codes
    mistyped: int = 0
    """Values present that are not of the column's type."""
    infinite: int = 0
    values: Floats | None = None
    """The numbers themselves; None for categories."""


@dataclass(frozen=True)
class NumericBins:
    bounds: tuple[float, ...]
    """Lowest value, inner edges, highest value of the reference: rising. Empty when all were null."""

    @property
    def size(self) -> int:
        return max(len(self.bounds) - 1, 0) + 3

    def code(self, column: pd.Series[Any]) -> Coded:
        values, mistyped = numbers(column)
        infinite = int(np.isinf(values).sum())
        if not self.bounds:
            codes = np.where(np.isnan(values), NULL, self.size - 1).astype(np.uint8)
            return Coded(codes, mistyped, infinite, values)
        edges = np.asarray(self.bounds)
        edges[-1] = np.nextafter(edges[-1], np.inf)
        codes = (np.searchsorted(edges, values, side="right") + 1).astype(np.uint8)
        codes[np.isnan(values)] = NULL
        return Coded(codes, mistyped, infinite, values)

    def label(self, code: int) -> str:
        if code == NULL:
            return "null"
        if code == BELOW:
            return "below the reference"
        if code >= self.size - 1:
            return "above the reference"
        return f"{self.bounds[code - FIRST_BIN]:.4g} to {self.bounds[code - FIRST_BIN + 1]:.4g}"


@dataclass(frozen=True)
class CategoryBins:
    categories: tuple[str, ...]
    rare: tuple[str, ...] = ()
    complete: bool = True
    """False when the reference had too many values to remember all: then nothing counts as unseen."""

    @property
    def size(self) -> int:
        return FIRST_CATEGORY + len(self.categories)

    def code(self, column: pd.Series[Any]) -> Coded:
        positions, uniques = distinct(column)
        known = {text: FIRST_CATEGORY + place for place, text in enumerate(self.categories)}
        known.update(dict.fromkeys(self.rare, RARE))
        other = UNSEEN if self.complete else RARE
        table = np.array([known.get(text, other) for text in uniques] + [NULL], dtype=np.uint8)
        return Coded(table[positions])

    def label(self, code: int) -> str:
        fixed = {NULL: "null", UNSEEN: "never seen in the reference", RARE: "rare values"}
        return fixed.get(code) or repr(self.categories[code - FIRST_CATEGORY])


Bins = NumericBins | CategoryBins


def numeric_bins(column: pd.Series[Any]) -> NumericBins:
    """Quantile bins; a column with few distinct values gets one bin a value."""
    values, _ = numbers(column)
    values = np.sort(values[np.isfinite(values)])
    if not len(values):
        return NumericBins(())
    starts = np.flatnonzero(np.r_[True, np.diff(values) > 0])
    if len(starts) <= MOST_BINS:
        distinct = values[starts]
        inner = (distinct[1:] + distinct[:-1]) / 2
    else:
        inner = np.quantile(values, np.arange(1, MOST_BINS) / MOST_BINS)
    inner = np.unique(inner)
    inner = inner[(inner > values[0]) & (inner <= values[-1])]
    return NumericBins((float(values[0]), *map(float, inner), float(values[-1])))


def numbers(column: pd.Series[Any]) -> tuple[Floats, int]:
    """The column as floats with NaN for null, and how many values were present but no numbers."""
    if column.dtype.kind in "fiu":
        return column.to_numpy(dtype=np.float64, na_value=np.nan), 0
    if column.dtype.kind == "b":
        return column.to_numpy(dtype=np.float64, na_value=np.nan), 0
    if column.dtype.kind == "M":
        return np.full(len(column), np.nan), int(column.notna().sum())
    read = pd.to_numeric(column.map(_plain), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return read, int((np.isnan(read) & column.notna().to_numpy()).sum())


def distinct(column: pd.Series[Any]) -> tuple[Ints, list[str]]:
    """Position of each value among the distinct ones (-1 for null), and those as text."""
    try:
        positions, uniques = pd.factorize(column, use_na_sentinel=True)
    except TypeError:  # lists and objects cannot be hashed
        positions, uniques = pd.factorize(column.map(str, na_action="ignore"), use_na_sentinel=True)
    return positions.astype(np.int64), [spelling(value) for value in uniques]


def spelling(value: Hashable) -> str:
    """One spelling a value: 1 and 1.0 are the same category, as JSON and Parquet may return either."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def _plain(value: object) -> object:
    """Text is no number here, even when it looks like one: the type changed, and that is worth saying."""
    return None if isinstance(value, str | bytes | list | dict) else value
