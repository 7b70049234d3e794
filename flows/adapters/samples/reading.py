"""Reads archived rows back, chunk by chunk, with their outcomes joined on.

A damaged file costs its own rows and becomes a finding. Outcomes are held as 24 bytes each (a 64-bit hash of
request id and row, the value, the time), so those of ten million rows fit beside the chunk in work.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from flows.adapters.samples.store import Part, SampleStore
from flows.domain.drift.binning import Flags, Ints
from flows.domain.drift.findings import Finding, FindingKind
from flows.domain.drift.frames import OUTCOME, RELEASE, TIME, to_seconds
from flows.domain.drift.policy import DriftPolicy
from flows.domain.errors import ArtifactCorrupt
from flows.domain.signature import Signature

CHUNK_ROWS = 100_000
AHEAD_MILLISECONDS = 3_600_000
"""A sample waits a moment in its server before it enters the stream: its outcome may be there first."""
NEEDED = {
    "samples": ["@request_id", "@row", "@at", TIME, RELEASE, "@unfit"],
    "outcomes": ["@request_id", "@row", TIME, "number", "text"],
}
MISTYPED_SHARE = 0.01
Keys = npt.NDArray[np.uint64]


@dataclass
class Reading:
    """A stretch of a model's samples. Iterate it once; findings and counts are complete afterwards."""

    store: SampleStore
    model: str
    release: str | None
    since: float | None
    until: float | None
    rows: int = 0
    other_releases: Counter[str] = field(default_factory=Counter)
    unknown_outcomes: int = 0
    _damaged: list[Finding] = field(default_factory=list)
    _unfit: dict[str, Counter[str]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[pd.DataFrame]:
        outcomes = _Outcomes(self)
        waiting: list[pd.DataFrame] = []
        for frame in self._frames(outcomes):
            waiting.append(frame)
            if sum(len(part) for part in waiting) >= CHUNK_ROWS:
                yield outcomes.join(pd.concat(waiting, ignore_index=True))
                waiting = []
        if waiting:
            yield outcomes.join(pd.concat(waiting, ignore_index=True))
        self.unknown_outcomes = outcomes.unknown()

    def findings(self) -> list[Finding]:
        """What was wrong with the rows that have been read."""
        found = list(self._damaged)
        kinds = {
            "missing": FindingKind.MISSING_COLUMN,
            "mistyped": FindingKind.CHANGED_TYPE,
            "new": FindingKind.NEW_COLUMN,
            "untimed": FindingKind.NO_TIME,
        }
        texts = {
            "missing": "column {!r} is missing in {} of {} rows",
            "mistyped": "column {!r}: {} of {} values are not of the signature's type",
            "new": "column {!r}, in {} of {} rows, is not in the signature and is not compared",
            "untimed": "column {!r} is no time in {} of {} rows; the time of their arrival counts instead",
        }
        for kind, names in self._unfit.items():
            for name, count in sorted(names.items()):
                breach = kind == "missing" and count == self.rows
                breach |= kind == "mistyped" and count >= MISTYPED_SHARE * self.rows
                text = texts[kind].format(name, count, self.rows)
                found.append(Finding(kinds[kind], text, name, count, breach))
        return found

    def tables(self, kind: str, parts: Iterable[Part]) -> Iterator[pa.Table]:
        """The readable parts, every entry once; a damaged one becomes a finding."""
        previous: list[Part] = []
        seen: set[str] = set()
        for part in parts:
            try:
                table = self.store.read(part)
                entries = table["@entry"]
                table.select(NEEDED[kind])
            except (OSError, pa.ArrowException, KeyError) as error:
                reason = " ".join(str(error).split())[:120]
                text = f"{part.path} is damaged and was left out ({reason})"
                self._damaged.append(Finding(FindingKind.CORRUPT_PART, text))
                continue
            # Ranges overlap only after a take-over that found entries missing; then ids decide.
            if any(other.day == part.day and other.last >= part.first for other in previous):
                ids = entries.to_pylist()
                keep = [entry not in seen for entry in ids]
                table = table.filter(pa.array(keep))
                seen.update(ids)
            else:
                seen = set(entries.to_pylist())
            previous = [other for other in previous if other.day == part.day] + [part]
            yield table

    def _frames(self, outcomes: _Outcomes) -> Iterator[pd.DataFrame]:
        parts = self.store.parts("samples", self.model, self.since, self.until)
        for table in self.tables("samples", parts):
            times = table[TIME].to_numpy()
            inside = np.ones(len(times), dtype=bool)
            if self.since is not None:
                inside &= times >= self.since
            if self.until is not None:
                inside &= times < self.until
            table = table.filter(pa.array(inside))
            if self.release is not None:
                mine = pa.compute.equal(table[RELEASE], self.release)
                others = table.filter(pa.compute.invert(mine))
                if others.num_rows:
                    self.other_releases.update(others[RELEASE].to_pylist())
                    outcomes.match(others.select(["@request_id", "@row", "@at"]).to_pandas())
                table = table.filter(mine)
            if table.num_rows:
                self._note_unfit(table)
                self.rows += table.num_rows
                yield table.drop_columns(["@entry", "@unfit"]).to_pandas()

    def _note_unfit(self, table: pa.Table) -> None:
        for text in table["@unfit"].drop_null().to_pylist():
            for kind, names in json.loads(text).items():
                self._unfit.setdefault(kind, Counter()).update(names)


class _Outcomes:
    """Delayed outcomes by key, the newest of each."""

    def __init__(self, reading: Reading) -> None:
        keys: list[Keys] = []
        times: list[Any] = []
        values: list[Any] = []
        for table in reading.tables("outcomes", self._parts(reading)):
            frame = table.to_pandas()
            keys.append(_keys(frame))
            times.append(frame[TIME].to_numpy())
            texts = frame["text"].notna()
            values.append(
                frame["text"].where(texts, frame["number"].astype(object)) if texts.any() else frame["number"]
            )
        self.keys: Keys = np.concatenate(keys) if keys else np.empty(0, dtype=np.uint64)
        times_all = np.concatenate(times) if times else np.empty(0)
        numeric = all(part.dtype.kind == "f" for part in values)
        self.values = (
            np.concatenate([part.to_numpy(dtype=np.float64 if numeric else object) for part in values])
            if values
            else np.empty(0)
        )
        order = np.lexsort((times_all, self.keys))
        last = np.r_[self.keys[order][1:] != self.keys[order][:-1], True][: len(order)]
        self.keys, self.values = self.keys[order][last], self.values[order][last]
        self.times = times_all[order][last]
        self.matched = np.zeros(len(self.keys), dtype=bool)
        self.first = np.inf

    def _parts(self, reading: Reading) -> list[Part]:
        """Parts with outcomes that can belong to the rows read.

        How long after its prediction an outcome arrives nobody knows, but never before; and the rows may be
        replayed history, so that their days say nothing. Both streams number their entries by Redis' clock.
        """
        samples = reading.store.parts("samples", reading.model, reading.since, reading.until)
        if not samples:
            return []
        earliest = min(part.first[0] for part in samples) - AHEAD_MILLISECONDS
        every = reading.store.parts("outcomes", reading.model, None, None)
        return [part for part in every if part.last[0] >= earliest]

    def match(self, frame: pd.DataFrame) -> tuple[Ints, Flags]:
        """Place of each row's outcome, and whether it has one; those outcomes are known from now on."""
        if not len(self.keys):
            return np.zeros(len(frame), dtype=np.int64), np.zeros(len(frame), dtype=bool)
        wanted = _keys(frame)
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found = self.keys[place] == wanted
        self.matched[place[found]] = True
        self.first = min(self.first, float(frame["@at"].min()))
        return place, found

    def join(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with the column `@outcome` where there are outcomes."""
        if not len(self.keys):
            return frame
        place, found = self.match(frame)
        column = np.full(len(frame), np.nan, dtype=self.values.dtype)
        column[found] = self.values[place[found]]
        return frame.assign(**{OUTCOME: column})

    def unknown(self) -> int:
        """Outcomes that arrived since the first row read and belong to no row read."""
        return int((~self.matched & (self.times >= self.first)).sum())


def _keys(frame: pd.DataFrame) -> Keys:
    text = frame["@request_id"].astype(str) + "\x00" + frame["@row"].astype(str)
    return np.asarray(pd.util.hash_array(text.to_numpy(dtype=object), categorize=False), dtype=np.uint64)


def open_samples(
    store: SampleStore,
    model: str,
    *,
    release: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Reading:
    """The model's archived samples with since <= time < until (Unix seconds), of one release or of all."""
    return Reading(store, model, release, since, until)


def parquet_frames(
    uri: str, signature: Signature, policy: DriftPolicy, columns: Sequence[str] = ()
) -> Iterator[pd.DataFrame]:
    """Any Parquet file or folder (path or URI that Arrow knows) with the inputs as columns, in chunks.

    `columns`: further columns to read, such as `prediction.<name>` and `@outcome`. ArtifactCorrupt when it is
    not Parquet.
    """
    try:
        source = pyarrow.dataset.dataset(uri, format="parquet")
        names = set(source.schema.names)
        wanted = [
            column.name for column in signature.inputs if column.name in names and column.personal is None
        ]
        wanted += [name for name in (TIME, *columns) if name in names and name not in wanted]
        # File by file: a dataset's own scanner reads ahead, and its memory grows with the size of the files.
        for fragment in source.get_fragments():
            with pq.ParquetFile(fragment.open(), pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=wanted, use_threads=False):
                    frame = batch.to_pandas(use_threads=False)
                    if TIME not in frame and policy.time_column is not None and policy.time_column in frame:
                        frame[TIME] = to_seconds(frame[policy.time_column])
                    yield frame
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactCorrupt(f"{uri} cannot be read as Parquet ({reason}); write it again") from error
