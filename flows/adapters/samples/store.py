"""The folder or bucket that holds archived samples: whole files in, whole files out."""

from __future__ import annotations

import io
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from flows.adapters.stores import reached
from flows.domain.drift.frames import EARLIEST, LATEST, TIME

PART = re.compile(r"(\d+)-(\d+)_(\d+)-(\d+)\.parquet")
DAY = re.compile(r"day=(\d{4}-\d\d-\d\d)")


@dataclass(frozen=True)
class Part:
    """One file and the stream entries it holds."""

    path: str
    day: str
    first: tuple[int, int]
    last: tuple[int, int]


class SampleStore:
    """Samples and outcomes under one fsspec URI. DependencyDown when it cannot be used."""

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        self.uri = uri.rstrip("/")
        self._options = {"use_listings_cache": False, **(options or {})}

    def write(self, kind: str, model: str, day: str, name: str, table: pa.Table) -> None:
        """Put one part in place in one step; the same name again replaces it."""
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        with self._reached() as (filesystem, root):
            path = f"{root}/{kind}/{model}/day={day}/{name}.parquet"
            if not isinstance(filesystem, LocalFileSystem):
                filesystem.pipe_file(path, content.getvalue())
                return
            filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            partial = f"{path}.{os.getpid()}.partial"
            filesystem.pipe_file(partial, content.getvalue())
            os.replace(partial, path)

    def parts(self, kind: str, model: str, since: float | None, until: float | None) -> list[Part]:
        """Parts of the days that [since, until) touches, in the order of their first entries within a day."""
        first = _day(since) if since is not None else ""
        last = _day(until) if until is not None else "9999-99-99"
        found = []
        with self._reached() as (filesystem, root):
            try:
                folders = filesystem.ls(f"{root}/{kind}/{model}", detail=False)
            except FileNotFoundError:
                return []
            for folder in folders:
                day = DAY.fullmatch(str(folder).rstrip("/").rsplit("/", 1)[1])
                if day is None or not first <= day[1] <= last:
                    continue
                for path in filesystem.ls(folder, detail=False):
                    part = PART.fullmatch(str(path).rsplit("/", 1)[1])
                    if part is not None:
                        ids = [int(number) for number in part.groups()]
                        found.append(Part(str(path), day[1], (ids[0], ids[1]), (ids[2], ids[3])))
        return sorted(found, key=lambda part: (part.day, part.first, part.last))

    def newest_day(self, model: str, rows: int = 1) -> str | None:
        """The day on which the `rows` samples that arrived last happened; None when there are none.

        Their median decides: clients with a wrong clock do not move it.
        """
        times: list[float] = []
        parts = self.parts("samples", model, None, None)
        for part in sorted(parts, key=lambda part: part.last, reverse=True):
            try:
                times += self.read(part)[TIME].to_pylist()
            except (OSError, pa.ArrowException, KeyError):  # the check names it when it reads it
                continue
            if len(times) >= rows:
                break
        return day_of(statistics.median_high(times)) if times else None

    def read(self, part: Part) -> pa.Table:
        """One part. Raises OSError or pyarrow.ArrowException when it is damaged, DependencyDown when the
        store does not answer."""
        with self._reached() as (filesystem, _):
            content = filesystem.cat_file(part.path)
        return pq.read_table(pa.BufferReader(content), partitioning=None)

    @contextmanager
    def _reached(self) -> Iterator[tuple[Any, str]]:
        with reached("sample archive", self.uri):
            filesystem, root = fsspec.url_to_fs(self.uri, **self._options)
            yield filesystem, str(root)


def _day(moment: float) -> str:
    return day_of(min(max(moment, EARLIEST), LATEST))


def day_of(moment: float) -> str:
    """The UTC day of a Unix time."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
