"""Counts of the live rows, window by window: all that a drift check keeps of them.

`add` takes any number of chunks, so ten million rows cost the memory of one chunk. Counts are exact; only the
multivariate check and the online alarm work on a sample of at most `SAMPLE_ROWS` rows a window and
`MOST_ERRORS` newest errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from flows.domain.drift.binning import Codes, Floats, Ints
from flows.domain.drift.frames import OUTCOME, TIME, expand, to_seconds
from flows.domain.drift.performance import PerformanceTally, task_of
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import CELLS, Profile, day_start, season_cells

SAMPLE_ROWS = 2000
MOST_ERRORS = 50_000
MOST_WINDOWS = 3000
"""A month of quarter hours; more come from times that are none, and no verdict looks back so far."""
WHOLE_WINDOW = 0.8


@dataclass
class WindowTally:
    """One window's counts."""

    number: int
    rows: int = 0
    first: float = np.inf
    last: float = -np.inf
    counts: dict[str, Ints] = field(default_factory=dict)
    cells: Floats | None = None
    mistyped: dict[str, int] = field(default_factory=dict)
    infinite: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    sample: Codes | None = None
    priorities: Floats | None = None
    performance: PerformanceTally | None = None


class Tally:
    """Collects rows (see `flows.domain.drift.frames`) into windows.

    Without any times `window_rows` says how many consecutive rows make a window.
    """

    def __init__(self, profile: Profile, policy: DriftPolicy, window_rows: int | None = None) -> None:
        self.profile = profile
        self.policy = policy
        self.rows = 0
        self.untimed = 0
        self.old = 0
        self.missing: set[str] = set()
        self.new: set[str] = set()
        self.errors: list[tuple[Floats, Floats]] = []
        self.windows: dict[int, WindowTally] = {}
        self.anchor = profile.anchor
        self._window_rows = window_rows
        self._bins = {column.name: column.bins for column in profile.columns}
        self._random = np.random.default_rng(3)

    @property
    def in_time(self) -> bool:
        """Whether windows are stretches of time rather than runs of rows."""
        return self._window_rows is None

    def add(self, frame: pd.DataFrame) -> None:
        """Count one chunk."""
        if frame.empty:
            return
        compared = [column.compared for column in self.profile.columns]
        frame = expand(frame, compared)
        times = to_seconds(frame[TIME]) if TIME in frame else None
        number = self._numbers(times, len(frame))
        self.untimed += int((number < 0).sum())
        self.rows += len(frame)
        number = self._newest(number)
        shown, place = np.unique(number, return_inverse=True)
        tallies = [self.windows.setdefault(int(n), WindowTally(int(n))) if n >= 0 else None for n in shown]
        self._span(tallies, place, times)
        if self.profile.season != "none" and times is not None:
            self._seasons(tallies, place, times)
        codes = self._columns(tallies, place, frame)
        self._keep_sample(tallies, place, codes)
        self._performance(tallies, place, frame, times)
        expected = {column.source for column in compared} | {column.name for column in compared}
        expected |= {self.policy.time_column or "", *self.policy.ignore, *self.profile.missing}
        self.new |= {
            str(name) for name in frame.columns if name not in expected and not str(name).startswith("@")
        }

    def _numbers(self, times: Floats | None, rows: int) -> Ints:
        if self._window_rows is not None:
            return (self.rows + np.arange(rows)) // self._window_rows
        if times is None:
            return np.zeros(rows, dtype=np.int64)
        if self.anchor is None:
            known = times[np.isfinite(times)]
            self.anchor = day_start(float(known.min()), self.policy.timezone) if len(known) else 0.0
        with np.errstate(invalid="ignore"):
            raw = np.floor((times - self.anchor) / self.profile.window_seconds)
        # Live rows may be older than the reference; window numbers then are negative, which -1 must not be.
        return np.where(np.isfinite(raw), raw + self._offset, -1).astype(np.int64)

    _offset = 10**10

    def _newest(self, number: Ints) -> Ints:
        """Forget the oldest windows beyond `MOST_WINDOWS`; their rows get the number -1."""
        every = np.union1d(number[number >= 0], np.fromiter(self.windows, dtype=np.int64))
        if len(every) <= MOST_WINDOWS:
            return number
        oldest = every[-MOST_WINDOWS]
        for old in [window for window in self.windows if window < oldest]:
            self.old += self.windows.pop(old).rows
        late = (number >= 0) & (number < oldest)
        self.old += int(late.sum())
        return np.where(late, -1, number)

    def start(self, window: WindowTally) -> float | None:
        """Unix seconds at which the window starts; None for windows of rows."""
        if self._window_rows is not None or self.anchor is None:
            return None
        return self.anchor + (window.number - self._offset) * self.profile.window_seconds

    def _span(self, tallies: Sequence[WindowTally | None], place: Ints, times: Floats | None) -> None:
        sizes = np.bincount(place, minlength=len(tallies))
        for at, tally in enumerate(tallies):
            if tally is not None:
                tally.rows += int(sizes[at])
                if times is not None:
                    inside = times[place == at]
                    tally.first = min(tally.first, float(inside.min()))
                    tally.last = max(tally.last, float(inside.max()))

    def _seasons(self, tallies: Sequence[WindowTally | None], place: Ints, times: Floats) -> None:
        cells = CELLS[self.profile.season]
        season = season_cells(times, self.profile.season, self.profile.timezone)
        counts = np.bincount(place * cells + season, minlength=len(tallies) * cells).reshape(-1, cells)
        for at, tally in enumerate(tallies):
            if tally is not None:
                tally.cells = counts[at] + (tally.cells if tally.cells is not None else 0)

    def _columns(
        self, tallies: Sequence[WindowTally | None], place: Ints, frame: pd.DataFrame
    ) -> dict[str, Codes]:
        kept: dict[str, Codes] = {}
        for column in self.profile.columns:
            name, bins = column.name, self._bins[column.name]
            if name not in frame:
                self.missing.add(name)
                continue
            coded = bins.code(frame[name])
            kept[name] = coded.codes
            table = np.bincount(place * bins.size + coded.codes, minlength=len(tallies) * bins.size)
            sums = None
            if coded.values is not None:
                finite = np.where(np.isfinite(coded.values), coded.values, 0.0)
                sums = np.bincount(place, weights=finite, minlength=len(tallies))
            for at, tally in enumerate(tallies):
                if tally is None:
                    continue
                part = table[at * bins.size : (at + 1) * bins.size]
                tally.counts[name] = part + tally.counts.get(name, 0)
                if sums is not None:
                    tally.sums[name] = tally.sums.get(name, 0.0) + float(sums[at])
            # Which window a mistyped value is in does not matter; that the newest data has some does.
            newest = max(
                (tally for tally in tallies if tally is not None), key=lambda t: t.number, default=None
            )
            if newest is not None and coded.mistyped:
                newest.mistyped[name] = newest.mistyped.get(name, 0) + coded.mistyped
            if newest is not None and coded.infinite:
                newest.infinite[name] = newest.infinite.get(name, 0) + coded.infinite
        return kept

    def _keep_sample(
        self, tallies: Sequence[WindowTally | None], place: Ints, codes: dict[str, Codes]
    ) -> None:
        reference = self.profile.sample
        if reference is None or not all(name in codes for name in reference.columns):
            return
        for at, tally in enumerate(tallies):
            if tally is None:
                continue
            members = np.flatnonzero(place == at)
            if self.profile.in_time:
                lot = self._random.random(len(members))
            else:  # neighbours stay neighbours: the reference's groups are runs of rows, too
                before = tally.rows - len(members)
                lot = (before + np.arange(len(members))).astype(np.float64)
            if len(members) > SAMPLE_ROWS:
                best = np.sort(np.argpartition(lot, SAMPLE_ROWS)[:SAMPLE_ROWS])
                members, lot = members[best], lot[best]
            rows = np.column_stack([codes[name][members] for name in reference.columns])
            if tally.sample is not None and tally.priorities is not None:
                rows, lot = np.concatenate([tally.sample, rows]), np.concatenate([tally.priorities, lot])
            if len(rows) > SAMPLE_ROWS:
                best = np.sort(np.argpartition(lot, SAMPLE_ROWS)[:SAMPLE_ROWS])
                rows, lot = rows[best], lot[best]
            tally.sample, tally.priorities = rows, lot

    def _performance(
        self, tallies: Sequence[WindowTally | None], place: Ints, frame: pd.DataFrame, times: Floats | None
    ) -> None:
        score = self.profile.prediction
        if score is None or score not in frame:
            return
        outcome: pd.Series[Any] | None = frame.get(OUTCOME)
        if self.profile.performance is None and (outcome is None or outcome.notna().sum() == 0):
            return
        task = task_of(
            self.profile.performance, frame[score], outcome if outcome is not None else frame[score]
        )
        for at, tally in enumerate(tallies):
            if tally is None:
                continue
            members = place == at
            if tally.performance is None:
                tally.performance = PerformanceTally(task)
            errors = tally.performance.add(
                frame[score][members], outcome[members] if outcome is not None else None
            )
            known = np.isfinite(errors)
            if known.any():
                moments = times[members][known] if times is not None else self.rows + np.flatnonzero(known)
                self.errors.append((np.asarray(moments, dtype=np.float64), errors[known]))
        while sum(len(part[0]) for part in self.errors[1:]) > MOST_ERRORS:
            self.errors.pop(0)

    def whole_windows(
        self, since: float | None, until: float | None
    ) -> tuple[list[WindowTally], list[WindowTally]]:
        """Windows that can be judged, in order, and those that cannot: too few rows, or cut by an end."""
        ordered = [self.windows[number] for number in sorted(self.windows)]
        partial = [window for window in ordered if window.rows < self.policy.min_rows]
        whole = [window for window in ordered if window.rows >= self.policy.min_rows]
        # The ends are those of the rows at large: a stray row of next month does not complete today.
        for window in {id(window): window for window in (*whole[:1], *whole[-1:])}.values():
            if not self._covered(window, since, until):
                partial.append(window)
                whole.remove(window)
        return whole, sorted(partial, key=lambda window: window.number)

    def _covered(self, window: WindowTally, since: float | None, until: float | None) -> bool:
        if self._window_rows is not None:
            return window.rows >= WHOLE_WINDOW * self._window_rows
        start = self.start(window)
        if start is None:
            return True
        length = self.profile.window_seconds
        begin = max(start, since if since is not None else min(window.first, start + length))
        end = min(start + length, until if until is not None else window.last)
        return (end - begin) / length >= WHOLE_WINDOW
