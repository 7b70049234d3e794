"""Moves stream entries into Parquet, each entry id exactly once, whatever crashes in between.

A consumer of the group `archive` reads a batch, writes it, then acknowledges it, and only then reads the
next. So what a crashed archiver leaves pending is exactly one batch, and the next one takes it over whole. A
part is named after its first and last entry, so a batch that was written but not acknowledged is written
again under the same name with the same content: it replaces itself.
"""

from __future__ import annotations

import json
import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import redis

from flows.adapters.samples.store import SampleStore, day_of
from flows.domain.drift.frames import EARLIEST, LATEST, PERSONAL, PREDICTION, RELEASE, TIME, to_seconds
from flows.domain.drift.policy import DriftPolicy
from flows.domain.errors import DependencyDown
from flows.domain.signature import Column, Signature

GROUP = "archive"
BATCH = 20_000
ABANDONED_SECONDS = 120.0
"""A batch that its archiver has not acknowledged for this long is taken over."""
COUNTER = "archived:{stream}"

ACKNOWLEDGE = """
local done = 0
for place = 2, #ARGV do done = done + redis.call('XACK', KEYS[1], ARGV[1], ARGV[place]) end
return redis.call('INCRBY', KEYS[2], done)
"""
"""One step, and an entry counts once even when a slow archiver and the one that took over both finish it."""

Row = dict[str, Any]
Entry = tuple[str, Mapping[bytes, bytes]]


@dataclass(frozen=True)
class Archived:
    """What one run moved."""

    samples: int = 0
    outcomes: int = 0
    parts: int = 0
    unreadable: int = 0
    """Entries that were no samples; they are not kept."""
    lost: int = 0
    """Entries that the stream's length limit pushed out before any archiver came, ever."""


def archive(
    redis_url: str,
    store: SampleStore,
    model: str,
    signature: Signature,
    policy: DriftPolicy,
    *,
    batch: int = BATCH,
    most: int = 5_000_000,
    abandoned_seconds: float = ABANDONED_SECONDS,
    after_write: Callable[[], None] = lambda: None,
) -> Archived:
    """Archive everything that waits in the model's two streams, at most `most` entries each.

    `after_write` is called between writing a batch and acknowledging it. Raises DependencyDown when Redis or
    the store does not answer; what was not acknowledged is archived by the next run.
    """
    client = redis.Redis.from_url(redis_url, socket_timeout=30, socket_connect_timeout=5)
    totals = [Archived(), Archived()]
    try:
        for place, kind in enumerate(("samples", "outcomes")):
            stream = f"{kind}:{model}"

            def write(entries: Sequence[Entry], kind: str = kind) -> tuple[int, int]:
                written = _write(store, kind, model, entries, signature, policy)
                after_write()
                return written

            totals[place] = _drain(client, stream, write, batch, most, abandoned_seconds)
    except redis.RedisError as error:
        raise DependencyDown(f"Redis does not answer ({error}); samples wait there until it does") from error
    finally:
        client.close()
    samples, outcomes = totals
    return Archived(
        samples.samples,
        outcomes.samples,
        samples.parts + outcomes.parts,
        samples.unreadable + outcomes.unreadable,
        samples.lost + outcomes.lost,
    )


def _drain(
    client: redis.Redis,
    stream: str,
    write: Callable[[Sequence[Entry]], tuple[int, int]],
    batch: int,
    most: int,
    abandoned_seconds: float,
) -> Archived:
    if not client.exists(stream):
        return Archived()
    try:
        client.xgroup_create(stream, GROUP, id="0")
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise
    me = uuid.uuid4().hex
    moved = parts = unreadable = 0
    left_over = _abandoned(client, stream, abandoned_seconds)
    while moved < most:
        entries = (
            _claim(client, stream, me, *left_over.pop()) if left_over else _next(client, stream, me, batch)
        )
        if entries is None:
            break
        if not entries:  # a left-over batch whose entries the stream has dropped meanwhile
            continue
        written, bad = write(entries)
        client.eval(
            ACKNOWLEDGE, 2, stream, COUNTER.format(stream=stream), GROUP, *[entry for entry, _ in entries]
        )
        moved, parts, unreadable = moved + len(entries), parts + written, unreadable + bad
    client.xgroup_delconsumer(stream, GROUP, me)
    return Archived(moved - unreadable, 0, parts, unreadable, _lost(client, stream))


def _next(client: redis.Redis, stream: str, me: str, batch: int) -> list[Entry] | None:
    answer = cast(Any, client.xreadgroup(GROUP, me, {stream: ">"}, count=batch))
    return _entries(answer[0][1]) if answer else None


def _abandoned(client: redis.Redis, stream: str, seconds: float) -> list[tuple[str, list[bytes]]]:
    """Batches that other archivers left behind: consumer and entry ids."""
    found = []
    for consumer in cast(Any, client.xinfo_consumers(stream, GROUP)):
        if consumer["pending"] and consumer["idle"] >= seconds * 1000:
            name = consumer["name"].decode()
            pending = cast(Any, client.xpending_range(stream, GROUP, "-", "+", consumer["pending"], name))
            found.append((name, [entry["message_id"] for entry in pending]))
    return found


def _claim(client: redis.Redis, stream: str, me: str, owner: str, ids: list[bytes]) -> list[Entry]:
    claimed = cast(Any, client.xclaim(stream, GROUP, me, 0, cast(Any, ids)))
    client.xgroup_delconsumer(stream, GROUP, owner)
    return _entries(claimed)


def _entries(raw: Sequence[tuple[bytes, Mapping[bytes, bytes] | None]]) -> list[Entry]:
    return [(entry.decode(), fields) for entry, fields in raw if fields is not None]


def _lost(client: redis.Redis, stream: str) -> int:
    added = int(cast(Any, client.xinfo_stream(stream))["entries-added"])
    group = next(g for g in cast(Any, client.xinfo_groups(stream)) if g["name"] == GROUP.encode())
    archived = int(cast(Any, client.get(COUNTER.format(stream=stream))) or 0)
    return max(added - archived - int(group["pending"]) - int(group["lag"] or 0), 0)


def _write(
    store: SampleStore,
    kind: str,
    model: str,
    entries: Sequence[Entry],
    signature: Signature,
    policy: DriftPolicy,
) -> tuple[int, int]:
    """Write one batch; return how many parts it became and how many entries were unreadable."""
    days: dict[str, list[Row]] = defaultdict(list)
    unreadable = 0
    shape = sample_row if kind == "samples" else outcome_row
    for entry, fields in entries:
        try:
            row = shape(json.loads(fields[b"data"]), signature, policy)
        except (KeyError, TypeError, ValueError):
            unreadable += 1
            continue
        row["@entry"] = entry
        days[day_of(row[TIME])].append(row)
    schema = sample_schema(signature) if kind == "samples" else OUTCOMES
    name = f"{entries[0][0]}_{entries[-1][0]}"
    parts = 0
    for day, rows in days.items():
        table = _table(rows, schema)
        unreadable += len(rows) - table.num_rows
        if table.num_rows:
            store.write(kind, model, day, name, table)
            parts += 1
    return parts, unreadable


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """The rows that the schema can hold: one odd value must not keep a whole batch waiting for ever."""
    try:
        return pa.Table.from_pylist(rows, schema)
    except (ValueError, TypeError, OverflowError):  # Arrow's own errors are ValueErrors and TypeErrors
        fitting = []
        for row in rows:
            with suppress(ValueError, TypeError, OverflowError):
                fitting.append(pa.Table.from_pylist([row], schema))
        return pa.concat_tables([schema.empty_table(), *fitting])


OUTCOMES = pa.schema(
    [
        ("@entry", pa.string()),
        ("@request_id", pa.string()),
        ("@row", pa.int32()),
        (TIME, pa.float64()),
        ("number", pa.float64()),
        ("text", pa.string()),
    ]
)
ARROW = {"number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_(), "string": pa.string()}
PYTHON = {"number": (int, float), "integer": (int,), "boolean": (bool,), "string": (str,)}


def sample_schema(signature: Signature) -> pa.Schema:
    """Columns of a part: what the system knows of the row, the inputs, the outputs."""
    fields = [
        ("@entry", pa.string()),
        (RELEASE, pa.string()),
        ("@request_id", pa.string()),
        ("@row", pa.int32()),
        ("@at", pa.float64()),
        (TIME, pa.float64()),
        ("@unfit", pa.string()),
    ]
    for prefix, columns in (("", signature.inputs), (PREDICTION, signature.outputs)):
        for column in columns:
            if column.personal is not None:
                if column.personal == "hash":
                    fields.append((PERSONAL + prefix + column.name, pa.string()))
                continue
            kind = pa.list_(pa.float64()) if column.shape else ARROW[column.type]
            fields.append((prefix + column.name, kind))
    return pa.schema(fields)


def sample_row(data: Any, signature: Signature, policy: DriftPolicy) -> Row:
    """One sample as a row. What does not fit the signature is null, and named in `@unfit`.

    Raises KeyError, TypeError or ValueError when it is no sample at all.
    """
    features, prediction = data["features"], data["prediction"]
    at = float(data["at"])
    row: Row = {
        RELEASE: str(data["release"]),
        "@request_id": str(data["request_id"]),
        "@row": int(data["row"]),
        "@at": at,
    }
    unfit: dict[str, list[str]] = defaultdict(list)
    for prefix, columns, values in (
        ("", signature.inputs, features),
        (PREDICTION, signature.outputs, prediction),
    ):
        known = {column.name for column in columns}
        for column in columns:
            name = prefix + column.name
            if column.personal is not None:
                if column.personal == "hash" and isinstance(values.get(column.name), str):
                    row[PERSONAL + name] = values[column.name]
                continue
            if column.name not in values:
                unfit["missing"].append(name)
                continue
            row[name], fits = _fit(column, values[column.name])
            if not fits:
                unfit["mistyped"].append(name)
        unfit["new"] += [prefix + str(name) for name in values if name not in known]
    row[TIME] = at
    if policy.time_column is not None and policy.time_column in features:
        moment = _event_time(features[policy.time_column])
        if math.isnan(moment):
            unfit["untimed"].append(policy.time_column)
        else:
            row[TIME] = moment
    found = {kind: names for kind, names in unfit.items() if names}
    row["@unfit"] = json.dumps(found) if found else None
    return row


def _event_time(value: Any) -> float:
    """Unix seconds; NaN for what is no time."""
    if isinstance(value, bool | list | dict):
        return math.nan
    if isinstance(value, int | float):
        return float(value) if EARLIEST <= value < LATEST else math.nan
    return float(to_seconds(pd.Series([value], dtype=object))[0])


def _fit(column: Column, value: Any) -> tuple[Any, bool]:
    """The value as the column's type, or null and False."""
    if value is None:
        return None, True
    if column.shape:
        flat = list(_flatten(value))
        return (flat, True) if all(isinstance(item, int | float) for item in flat) else (None, False)
    if isinstance(value, bool) != (column.type == "boolean"):
        return None, False
    if column.type == "integer" and isinstance(value, float) and value.is_integer():
        return int(value), True
    if not isinstance(value, PYTHON[column.type]):
        return None, False
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return None, False
    return value, True


def _flatten(value: Any) -> Any:
    if isinstance(value, list):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def outcome_row(data: Any, _signature: Signature, _policy: DriftPolicy) -> Row:
    """One delayed outcome as a row. Raises KeyError, TypeError or ValueError when it is none."""
    outcome = data["outcome"]
    if not isinstance(outcome, bool | int | float | str):
        raise TypeError("an outcome is a number, a boolean or text")
    return {
        "@request_id": str(data["request_id"]),
        "@row": int(data["row"]),
        TIME: float(data["at"]),
        "number": None if isinstance(outcome, str) else float(outcome),
        "text": outcome if isinstance(outcome, str) else None,
    }
