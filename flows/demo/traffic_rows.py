"""Real rows from a Parquet file as ready requests, in time order and a little at a time.

The file has a column `at` (when the row happened), a column `outcome` (what turned out to be true, or null)
and one column for each input of the model. It is read in small pieces, so that a year of rows costs no
memory and reading never holds up the requests for long.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import orjson
import pyarrow.parquet as pq

from flows.domain.errors import ModelServeError

TIME, OUTCOME = "at", "outcome"
ROWS_AT_ONCE = 256
"""About two milliseconds of decoding; a whole row group would be fifty."""


@dataclass(frozen=True)
class Row:
    at: datetime
    body: bytes
    """The request: `{"instances": [row]}`."""
    outcome: object


@dataclass(frozen=True)
class Selection:
    """Which rows of the file: `since` <= at < `until`, and of those a random share."""

    since: date | None = None
    until: date | None = None
    sample: float = 1.0

    def rows(self, path: Path) -> Iterator[Row]:
        """The selected rows in the order of the file. ModelServeError when it is not such a file.

        The same share is the same rows each time.
        """
        try:
            source = pq.ParquetFile(path)
        except (OSError, ValueError) as error:
            strerror = error.strerror if isinstance(error, OSError) else None
            raise ModelServeError(
                f"{path}: {strerror or 'not a Parquet file'}; give a Parquet file with the rows to replay"
            ) from None
        with source:
            missing = {TIME, OUTCOME} - set(source.schema_arrow.names)
            if missing:
                raise ModelServeError(
                    f"{path}: no column {' and '.join(sorted(missing))}; "
                    f"rows to replay need {TIME!r}, {OUTCOME!r} and the inputs of the model"
                )
            chance = random.Random(0)
            groups = self._groups(source)
            for batch in source.iter_batches(ROWS_AT_ONCE, row_groups=groups, use_threads=False):
                for values in batch.to_pylist():
                    at, outcome = values.pop(TIME), values.pop(OUTCOME)
                    if self._includes(at) and (self.sample >= 1 or chance.random() < self.sample):
                        yield Row(at, orjson.dumps({"instances": [values]}), outcome)

    def _includes(self, at: datetime) -> bool:
        day = at.date()
        return (self.since is None or day >= self.since) and (self.until is None or day < self.until)

    def _groups(self, source: pq.ParquetFile) -> list[int]:
        """Row groups that can hold selected rows: a replay of July must not decode half a year first."""
        place = source.schema_arrow.names.index(TIME)
        chosen = []
        for group in range(source.metadata.num_row_groups):
            bounds = source.metadata.row_group(group).column(place).statistics
            if bounds is not None and bounds.has_min_max:
                too_early = self.since is not None and bounds.max.date() < self.since
                too_late = self.until is not None and bounds.min.date() >= self.until
                if too_early or too_late:
                    continue
            chosen.append(group)
        return chosen
