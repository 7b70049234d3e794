"""Learns the bins of a reference, and codes each of its rows as if the row's own window had not been there.

What a reference holds it has seen. So "never seen" and "beyond the highest value" would be 0 in each of its
windows by construction, the most frequent categories would be those that luck has favoured, and live rows, to
whom nothing of this applies, would look like drift at every check. With its own window left out a row of the
reference is in the place of a live one: its value is new when no other window has it (Good and Turing's
estimate, for windows), and its number lies beyond when it exceeds those of all the others. Which categories
have a name is not chosen by the rows that are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from flows.domain.drift.binning import (
    BELOW,
    FIRST_CATEGORY,
    MOST_CATEGORIES,
    MOST_KNOWN,
    NULL,
    RARE,
    UNSEEN,
    CategoryBins,
    Coded,
    Flags,
    Floats,
    Ints,
    NumericBins,
    distinct,
    numeric_bins,
)

LEAST_NAMED = 10
"""Rows that a category needs to have a name: a share of fewer is luck."""
LEAST_GROUPS = 4
RISING = 0.9


def learn_numbers(column: pd.Series[Any], group: Ints) -> tuple[NumericBins, Coded, Flags]:
    """Quantile bins; the rows' codes with their own group left out; and which of the rows count: all.

    `group`: of each row, from 0 on.
    """
    bins = numeric_bins(column)
    coded = bins.code(column)
    every = np.ones(len(column), dtype=np.bool_)
    values = coded.values
    if values is None or not bins.bounds:
        return bins, coded, every
    finite = np.isfinite(values)
    groups = int(group.max(initial=-1)) + 1
    lowest, highest = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(lowest, group[finite], values[finite])
    np.maximum.at(highest, group[finite], values[finite])
    if np.isfinite(lowest).sum() < 2:
        return bins, coded, every
    codes = coded.codes.copy()
    codes[finite & (values < _others(lowest)[group])] = BELOW
    codes[finite & (values > -_others(-highest)[group])] = bins.size - 1
    return bins, Coded(codes, coded.mistyped, coded.infinite, values), every


def learn_categories(column: pd.Series[Any], group: Ints) -> tuple[CategoryBins, Coded, Flags]:
    """The most frequent values by name, the rest as `rare`; the rows' codes; and which of the rows count.

    Where values compete for a name, a random half of the rows chooses them and only the other half counts:
    rows that have chosen a value are no measure of how frequent it is.
    """
    spelled, texts = distinct(column)
    known = sorted(set(texts))
    place = {text: number for number, text in enumerate(known)}
    merged = np.array([*(place[text] for text in texts), -1], dtype=np.int64)  # 1 and 1.0 are one value
    value = merged[spelled]
    present = value >= 0
    groups = int(group.max(initial=-1)) + 1
    pairs = np.unique(value[present] * groups + group[present])
    holders = np.bincount(pairs // max(groups, 1), minlength=len(known))
    apart = len(np.unique(group)) > 1
    total = np.bincount(value[present], minlength=len(known))
    fit = holders >= (2 if apart else 1)
    compete = len(known) > MOST_CATEGORIES or bool((total[fit] < LEAST_NAMED).any())
    choose = (
        np.random.default_rng(len(column)).random(len(column)) < 0.5 if compete else np.ones_like(present)
    )
    votes = np.bincount(value[present & choose], minlength=len(known))
    fit &= votes >= (LEAST_NAMED / 2 if compete else LEAST_NAMED)
    ranked = np.argsort(-votes, kind="stable")
    named = ranked[fit[ranked]][:MOST_CATEGORIES]
    complete = len(known) <= MOST_KNOWN
    rare = np.setdiff1d(np.arange(len(known)), named)
    bins = CategoryBins(
        tuple(known[number] for number in named),
        tuple(known[number] for number in rare) if complete else (),
        complete,
    )
    code_of = np.full(len(known) + 1, RARE, dtype=np.uint8)
    code_of[named] = FIRST_CATEGORY + np.arange(len(named))
    code_of[-1] = NULL
    if apart and complete:
        code_of[:-1][holders == 1] = UNSEEN
    return bins, Coded(code_of[value]), ~choose if compete else choose


def _others(lowest: Floats) -> Floats:
    """Of each group the lowest value of all the others."""
    first = int(np.argmin(lowest))
    second = float(np.min(np.delete(lowest, first)))
    found = np.full(len(lowest), lowest[first])
    found[first] = second
    return found


def rises(values: Floats | None, group: Ints) -> bool:
    """Whether numbers rise (or fall) from group to group without coming back, as clocks and counters do."""
    if values is None:
        return False
    known = pd.Series(values[np.isfinite(values)]).groupby(group[np.isfinite(values)])
    low, middle, high = (known.quantile(share).to_numpy() for share in (0.1, 0.5, 0.9))
    if len(middle) < LEAST_GROUPS:
        return False
    upwards = bool((np.diff(middle) > 0).all()) and np.mean(middle[1:] > high[:-1]) >= RISING
    downwards = bool((np.diff(middle) < 0).all()) and np.mean(middle[1:] < low[:-1]) >= RISING
    return bool(upwards or downwards)
