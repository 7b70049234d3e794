"""Time and memory of the drift check beside Evidently's default preset, on the same Parquet files.

Each measurement runs in a process of its own, so that its peak memory is its own. Ours reads the live rows in
chunks and needs no reference rows, only the profile made at registration (its cost is a line of its own).
Evidently needs both tables in memory; only the preset is run, no page is drawn. Ten million rows are more
than Evidently can hold here.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from flows.adapters.samples import parquet_frames
from flows.domain.drift.check import check
from flows.domain.drift.profile import make_profile, parse_profile
from tests.bench.drift_data import COLUMNS, NUMBERS, POLICY, SIGNATURE, normal

MILLION = 1_000_000
LARGE = 10
"""Parts of the large data set, a million rows each; x5 moves by 0.1 sd in the second half."""
MOST_MEMORY = 1536
"""MiB."""


@dataclass(frozen=True)
class Measured:
    cpu: float
    seconds: float
    peak: float
    """MiB, the libraries included."""
    said: str


def measured(work: Callable[[Path], str], folder: Path) -> Measured:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, work, folder).result()


def _measure(work: Callable[[Path], str], folder: Path) -> Measured:
    warnings.simplefilter("ignore")
    start, cpu = time.monotonic(), time.process_time()
    said = work(folder)
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    return Measured(cpu, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, said)


def write(folder: Path) -> str:
    random = np.random.default_rng(2)
    normal(random, MILLION).to_parquet(folder / "reference.parquet")
    (folder / "live").mkdir()
    for part in range(LARGE):
        frame = normal(random, MILLION)
        if part >= LARGE // 2:
            frame["x5"] += 0.1
        frame.to_parquet(folder / "live" / f"part-{part:02}.parquet", row_group_size=100_000)
    return ""


def profile(folder: Path) -> str:
    made = make_profile(pd.read_parquet(folder / "reference.parquet"), SIGNATURE, POLICY, model="bench")
    (folder / "reference.json").write_text(made.to_json())
    return "made once, at registration"


def ours(folder: Path, source: str = "live/part-00.parquet", window: int = MILLION // 4) -> str:
    made = parse_profile((folder / "reference.json").read_text(), "reference.json")
    frames = parquet_frames(str(folder / source), SIGNATURE, POLICY)
    result = check(made, frames, POLICY, window_rows=window)
    found = [column.column for column in result.columns if column.drifted]
    return f"{result.rows:,} rows: {result.outcome} {', '.join(found)}".rstrip()


def ours_large(folder: Path) -> str:
    return ours(folder, "live", MILLION)


def evidently(folder: Path) -> str:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=NUMBERS, categorical_columns=["kind"])
    sides = [
        Dataset.from_pandas(pd.read_parquet(folder / name), data_definition=definition)
        for name in ("live/part-00.parquet", "reference.parquet")
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        run = Report([DataDriftPreset()], include_tests=True).run(*sides)
        failed = [test for test in run.dict()["tests"] if test["status"].value == "FAIL"]
    return f"{MILLION:,} rows: {len(failed)} tests failed"


def speed(console: Console) -> None:
    table = Table(title=f"Time and memory, {len(COLUMNS)} columns, from Parquet; reference: {MILLION:,} rows")
    for heading in ("what", "CPU s", "seconds", "peak MiB", "times our CPU", "result"):
        table.add_column(heading, justify="left" if heading in ("what", "result") else "right")
    with tempfile.TemporaryDirectory(prefix="modelserve-bench-") as name:
        folder = Path(name)
        measured(write, folder)
        made, mine = measured(profile, folder), measured(ours, folder)
        theirs, large = measured(evidently, folder), measured(ours_large, folder)
    for what, one, times in (
        ("ours: profile", made, ""),
        ("ours: check", mine, "1.0"),
        ("Evidently: preset", theirs, f"{theirs.cpu / mine.cpu:.1f}"),
        ("ours: check", large, ""),
    ):
        table.add_row(what, f"{one.cpu:.1f}", f"{one.seconds:.1f}", f"{one.peak:.0f}", times, one.said)
    console.print(table)
    console.print(
        "Error: counts and the shares made of them are exact; a Kolmogorov distance is exact at the 31 inner "
        "edges of the reference's bins, which leaves at most 1/32 between them. Only the multivariate check "
        "works on a sample (2,000 rows a window) and says its interval."
    )
    assert large.peak <= MOST_MEMORY, f"{large.peak:.0f} MiB for ten million rows; {MOST_MEMORY} are allowed"
