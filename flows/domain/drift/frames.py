"""The one shape in which rows reach the drift check, whatever they were read from.

One row a prediction. Inputs stand under their own names, outputs under `prediction.<name>`, and what the
system adds under names with an `@`, which no signature can hold. An input that is a tensor becomes two
columns, `<name>.mean` and `<name>.sd`: drift of pixels is looked for in brightness and contrast. Text of
which hardly a value comes twice becomes its length, alphabet and words (`<name>.length`, …; see `text`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from flows.domain.drift.binning import Floats
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.text import PARTS, TextPart, read_text
from flows.domain.signature import Column, Signature

PREDICTION = "prediction."
OUTCOME = "@outcome"
TIME = "@time"
"""Unix seconds at which the row happened."""
RELEASE = "@release"
PERSONAL = "@personal."
"""Before the name of a hashed personal column: kept for joining rows, never compared."""
EARLIEST, LATEST = -2_208_988_800.0, 7_258_118_400.0
"""1900 and 2200 in Unix seconds. Numbers outside, such as milliseconds, are no times."""

Role = Literal["input", "output"]
Kind = Literal["numeric", "categorical"]
Part = Literal["", "mean", "sd"] | TextPart


@dataclass(frozen=True)
class Compared:
    """A column that is compared: where it comes from and how it is read."""

    name: str
    source: str
    role: Role
    kind: Kind
    part: Part = ""

    def texts(self) -> tuple[Compared, ...]:
        """The numbers that this column is read as when it is text."""
        return tuple(
            Compared(f"{self.name}.{part}", self.source, self.role, "numeric", part) for part in PARTS
        )


def compared_columns(signature: Signature, policy: DriftPolicy) -> tuple[Compared, ...]:
    """The columns of a model that can drift: inputs that are not ignored, then outputs; none is personal."""
    found: list[Compared] = []
    left_out = {*policy.ignore, policy.time_column}
    for column in signature.inputs:
        if column.name not in left_out and column.personal is None:
            found += _parts(column, column.name, "input", policy)
    for column in signature.outputs:
        if column.personal is None:
            found += _parts(column, PREDICTION + column.name, "output", policy)
    return tuple(found)


def _parts(column: Column, name: str, role: Role, policy: DriftPolicy) -> list[Compared]:
    whole = Compared(name, name, role, "categorical")
    if column.shape and column.type == "string":
        return list(whole.texts())
    if column.shape:
        return [
            Compared(f"{name}.mean", name, role, "numeric", "mean"),
            Compared(f"{name}.sd", name, role, "numeric", "sd"),
        ]
    numeric = column.type in ("number", "integer") and column.name not in policy.categorical
    return [replace(whole, kind="numeric") if numeric else whole]


def expand(frame: pd.DataFrame, columns: Sequence[Compared]) -> pd.DataFrame:
    """Add the columns of tensors' and texts' parts; the frame itself when there are none.

    A tensor is dropped then; a text stays, since it may be compared or judged as a whole, too.
    """
    parts = {column.source: column.part for column in columns if column.part and column.source in frame}
    if not parts:
        return frame
    added: dict[str, Floats] = {}
    tensors = []
    for source, part in parts.items():
        if part in PARTS:
            added |= {f"{source}.{name}": values for name, values in read_text(frame[source]).items()}
            continue
        tensors.append(source)
        cells = [_tensor(cell) for cell in frame[source]]
        added[f"{source}.mean"] = np.array([cell.mean() if cell.size else np.nan for cell in cells])
        added[f"{source}.sd"] = np.array([cell.std() if cell.size else np.nan for cell in cells])
    return frame.drop(columns=tensors).assign(**added)


def _tensor(cell: object) -> Floats:
    try:
        return np.asarray(cell, dtype=np.float64).ravel() if cell is not None else np.empty(0)
    except (TypeError, ValueError):
        return np.empty(0)


def training_frame(
    frame: pd.DataFrame, signature: Signature, policy: DriftPolicy, outcome: str
) -> pd.DataFrame:
    """Bring a training frame into this shape: outputs may stand under their bare names, the outcome and the
    time under those that the caller and the policy name. What has this shape already stays."""
    inputs = {column.name for column in signature.inputs}
    names = {
        column.name: PREDICTION + column.name
        for column in signature.outputs
        if column.name in frame and column.name not in inputs and column.name != outcome
    }
    renamed = frame.rename(columns=names)
    if outcome in frame:
        renamed = renamed.assign(**{OUTCOME: frame[outcome]})
    named = TIME if TIME in frame else policy.time_column
    if named is not None and named in frame:
        renamed = renamed.assign(**{TIME: to_seconds(frame[named])})
    return renamed


def to_seconds(column: pd.Series[Any]) -> Floats:
    """Unix seconds of times given as datetimes, ISO 8601 text (UTC unless it says otherwise) or seconds.

    NaN where a value is no time, or none between 1900 and 2200.
    """
    numeric = column.dtype.kind in "fiu" or (
        column.dtype.kind == "O"
        and len(column) > 0
        and bool(column.map(lambda cell: isinstance(cell, int | float)).all())
    )
    if numeric:
        moments = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        times = pd.to_datetime(
            column, utc=True, errors="coerce", format=None if column.dtype.kind == "M" else "ISO8601"
        )
        since = (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
        moments = np.asarray(since, dtype=np.float64)
    return np.where((moments >= EARLIEST) & (moments < LATEST), moments, np.nan)


def prediction_column(signature: Signature, policy: DriftPolicy) -> str | None:
    """The output that outcomes are compared with; None when no scalar output is there."""
    scalars = [column for column in signature.outputs if not column.shape and column.personal is None]
    for column in scalars:
        if column.name == policy.prediction:
            return PREDICTION + column.name
    if policy.prediction is not None or not scalars:
        return None
    chosen = next((column for column in scalars if column.type == "number"), scalars[0])
    return PREDICTION + chosen.name
