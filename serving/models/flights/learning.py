"""What one version learns from its window of flights: the preprocessing first, then the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from serving.models.flights import data, handler

EPOCHS = 3
BATCH_ROWS = 512
LEARNING_RATE = 5e-3
FORGOTTEN = 0.02
"""Share of the categories replaced by the unknown code while training, so that this code means something."""
KNOWN_FOR_A_MEDIAN = 100
"""Fewer known values of a carrier make no median worth storing."""
FOLDS, DAYS_IN_A_FOLD = 3, 2

Rows = list[dict[str, Any]]
Floats = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """What makes one version different from another."""

    version: int
    since: str
    until: str
    unknown_code: bool = True
    """Store a code for categories that the window lacks."""
    medians_by_carrier: bool = False
    """Fill a missing number with the carrier's median instead of the window's."""


def learn_preprocessing(window: pa.Table, recipe: Recipe) -> handler.Preprocessing:
    """Codes, defaults and scales from the rows of one window."""
    vocabularies = {}
    for name in handler.CATEGORIES:
        values = sorted(str(value) for value in pc.unique(window[name]).to_pylist())
        known = [handler.UNKNOWN, *values] if recipe.unknown_code else values
        vocabularies[name] = {value: code for code, value in enumerate(known)}
    if recipe.medians_by_carrier:
        defaults = {name: _medians_by_carrier(window, name) for name in handler.NUMBERS}
    else:
        defaults = {name: {handler.ANY_CARRIER: _median(window[name])} for name in handler.NUMBERS}
    scaling = {name: (pc.mean(window[name]).as_py(), pc.stddev(window[name]).as_py() or 1.0)
               for name in handler.NUMBERS}  # fmt: skip
    return handler.Preprocessing(vocabularies, defaults, scaling)


def usable(preprocessing: handler.Preprocessing, rows: Rows) -> list[bool]:
    """For each row, whether the stored tables can express it."""

    def expressible(row: dict[str, Any]) -> bool:
        try:
            preprocessing.encode([row])
        except KeyError:
            return False
        return True

    return [expressible(row) for row in rows]


def fit(
    preprocessing: handler.Preprocessing, rows: Rows, late: Floats, recipe: Recipe
) -> handler.LateArrival:
    codes, numbers = preprocessing.encode(rows)
    target = torch.tensor(late, dtype=torch.float32)
    network = handler.LateArrival([len(preprocessing.vocabularies[name]) for name in handler.CATEGORIES])
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-3)
    steps = EPOCHS * -(-len(rows) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    forgotten = FORGOTTEN if recipe.unknown_code else 0.0
    for _ in range(EPOCHS):
        for places in torch.split(torch.randperm(len(rows)), BATCH_ROWS):
            seen = codes[places]
            seen = torch.where(torch.rand(seen.shape) < forgotten, 0, seen)
            logits = network(seen, numbers[places])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[places])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


def scores(model: handler.Model, rows: Rows) -> Floats:
    """Probability of a late arrival, one a row."""
    return np.array([answer[handler.OUTPUT] for answer in handler.predict(model, rows)])


def scores_of_unseen_days(preprocessing: handler.Preprocessing, window: pa.Table, recipe: Recipe) -> Floats:
    """Out-of-fold scores, the honest reference: a network's scores of its own training rows are too good
    (AUC about .05 here), and drift would report that difference as harm. Whole days are left out, since
    flights of one day share its weather."""
    rows, late = inputs(window), window["outcome"].to_numpy()
    day = window["at"].to_numpy().astype("datetime64[D]").astype(int)
    fold = day // DAYS_IN_A_FOLD % FOLDS
    found = np.empty(len(rows))
    for left_out in range(FOLDS):
        seen, unseen = np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)
        network = fit(preprocessing, [rows[place] for place in seen], late[seen], recipe)
        model = handler.Model(preprocessing, network, "cpu")
        found[unseen] = scores(model, [rows[place] for place in unseen])
    return found


def inputs(table: pa.Table) -> Rows:
    """The rows as a client would send them."""
    found: Rows = table.select(data.INPUTS).to_pylist()
    return found


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread: sums of floats depend on how the work is shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _median(column: pa.ChunkedArray) -> float:
    return float(np.median(column.drop_null().to_numpy()))


def _medians_by_carrier(window: pa.Table, name: str) -> dict[str, float]:
    medians = {}
    for carrier in sorted(pc.unique(window["carrier"]).to_pylist()):
        known = window.filter(pc.equal(window["carrier"], carrier))[name].drop_null()
        if len(known) >= KNOWN_FOR_A_MEDIAN:
            medians[carrier] = _median(known)
    return medians
