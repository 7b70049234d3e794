"""Learns the bins of a reference, and codes each of its rows as if the row's own window had not been there.

What a reference holds it has seen. So "never seen" and "beyond the highest value" would be 0 in each of its
windows by construction, the most frequent categories would be those that luck has favoured, and live rows, to
whom nothing of this applies, would look like drift at every check. With its own window left out a row of the
reference is in the place of a live one: its value is new when no other window has it (Good and Turing's
estimate, for windows), its number lies beyond when it exceeds those of all the others, and its category has a
name when it is among the most frequent of the others.
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
    Codes,
    Floats,
    Ints,
    NumericBins,
    distinct,
    numeric_bins,
)

LEAST_NAMED = 10
"""Rows that a category needs to have a name: a share of fewer is luck."""
CANDIDATES = 4 * MOST_CATEGORIES
"""Leaving one window out does not bring a category of a lower rank among the most frequent."""
LEAST_GROUPS = 4
RISING = 0.9


def learn_numbers(column: pd.Series[Any], group: Ints) -> tuple[NumericBins, Coded]:
    """Quantile bins, and the rows' codes with their own group left out. `group`: of each row, from 0 on."""
    bins = numeric_bins(column)
    coded = bins.code(column)
    values = coded.values
    if values is None or not bins.bounds:
        return bins, coded
    finite = np.isfinite(values)
    groups = int(group.max(initial=-1)) + 1
    lowest, highest = np.full(groups, np.inf), np.full(groups, -np.inf)
    np.minimum.at(lowest, group[finite], values[finite])
    np.maximum.at(highest, group[finite], values[finite])
    if np.isfinite(lowest).sum() < 2:
        return bins, coded
    codes = coded.codes.copy()
    codes[finite & (values < _others(lowest)[group])] = BELOW
    codes[finite & (values > -_others(-highest)[group])] = bins.size - 1
    return bins, Coded(codes, coded.mistyped, coded.infinite, values)


def learn_categories(column: pd.Series[Any], group: Ints) -> tuple[CategoryBins, Coded]:
    """The most frequent values by name, the rest as `rare`; the rows' codes with their own group left out."""
    spelled, texts = distinct(column)
    known = sorted(set(texts))
    place = {text: number for number, text in enumerate(known)}
    merged = np.array([*(place[text] for text in texts), -1], dtype=np.int64)  # 1 and 1.0 are one value
    value = merged[spelled]
    groups = int(group.max(initial=-1)) + 1
    total = np.bincount(value[value >= 0], minlength=len(known))
    pairs = np.unique(value[value >= 0] * groups + group[value >= 0], return_counts=True)
    holders = np.bincount(pairs[0] // max(groups, 1), minlength=len(known))
    apart = len(np.unique(group)) > 1
    fit = (total >= LEAST_NAMED) & (holders >= (2 if apart else 1))
    ranked = np.lexsort((np.arange(len(known)), -total))
    ranked = ranked[fit[ranked]]
    named = ranked[:MOST_CATEGORIES]
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
    codes = code_of[value]
    if apart and len(ranked) > MOST_CATEGORIES:
        _rename(codes, value, group, ranked[:CANDIDATES], total, pairs)
    return bins, Coded(codes)


def _rename(
    codes: Codes, value: Ints, group: Ints, candidates: Ints, total: Ints, pairs: tuple[Ints, Ints]
) -> None:
    """Give the names of each group's rows to the values that are most frequent in all other groups.

    A value that takes another's place takes its code: what counts is how rows look beyond the rank by which
    their value was chosen. `candidates`: values by rank; `pairs`: value * groups + group, and its rows.
    """
    groups = int(group.max()) + 1
    own = np.zeros((len(candidates), groups), dtype=np.int64)
    row_of = np.full(len(total), -1, dtype=np.int64)
    row_of[candidates] = np.arange(len(candidates))
    rows, columns = row_of[pairs[0] // groups], pairs[0] % groups
    own[rows[rows >= 0], columns[rows >= 0]] = pairs[1][rows >= 0]
    others = total[candidates][:, None] - own
    order = np.argsort(-others, axis=0, kind="stable")[:MOST_CATEGORIES]
    for number in range(groups):
        chosen = order[:, number][others[order[:, number], number] >= LEAST_NAMED]
        entering = chosen[chosen >= MOST_CATEGORIES]
        leaving = np.setdiff1d(np.arange(MOST_CATEGORIES), chosen)
        if len(leaving) == 0:
            continue
        members = np.flatnonzero(group == number)
        at = np.where(value[members] >= 0, row_of[value[members]], -1)
        for place in leaving:
            codes[members[at == place]] = RARE
        for place, freed in zip(entering, leaving, strict=False):
            codes[members[at == place]] = FIRST_CATEGORY + freed


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
