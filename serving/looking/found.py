"""What is found in a file, and the arithmetic that all kinds share: columns, free sizes, made-up rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.errors import StartupError
from serving.inference.codec import NUMPY
from serving.inference.examples import different_rows
from serving.spec import Column

ROWS = 3
"""Rows that a model is asked while it is looked at: more than one, so that the axis of rows shows."""
SIZES = (16, 224, 32, 64, 28, 128)
"""Tried in this order where a file leaves a size free."""
IMAGE = (224, 32, 28, 64, 16)
_BATCH = frozenset({"batch", "batch_size", "batchsize", "rows", "n"})
_TYPES = {"f": "number", "i": "integer", "u": "integer", "b": "boolean"}
_DEFAULTS = {"number": "FP32", "integer": "INT64", "boolean": "BOOL", "string": "BYTES"}


@dataclass(frozen=True)
class Asked:
    """What a person says about the file."""

    trust_pickle: bool = False
    inputs: tuple[Column, ...] = ()
    """The model's inputs, for files that do not tell."""


@dataclass
class Found:
    """The parts of a `model.yaml`, as it writes them, and where they come from."""

    what: str
    """A few words for a person: what the file holds."""
    runtime: dict[str, Any]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    serving: dict[str, Any] = field(default_factory=dict)
    """Other keys of the section `serving`."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Instances that the model answers; made up ones when empty."""
    guessed: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Files beside it that belong to it, relative to its folder."""

    handler: str = ""
    """A draft of handler.py, where nothing else can be said before a person has completed it."""

    def told(self) -> dict[str, Any]:
        """As JSON can say it, with rows to ask."""
        content = asdict(self)
        columns = tuple(Column.model_validate(column) for column in self.inputs)
        content["rows"] = self.rows or different_rows(columns, ROWS) if self.inputs else []
        return content


def column(name: str, dtype: Any, shape: Sequence[int] = (), **more: Any) -> dict[str, Any]:
    """A column of the signature for a tensor of that dtype; `shape` is a row's."""
    kind = _TYPES.get(np.dtype(dtype).kind, "string")
    return {"name": name, "type": kind, **({"shape": list(shape)} if shape else {}), **more}


def datatypes(columns: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """`serving.datatypes`, for tensors whose dtype is not what their type is by default."""
    names = {np.dtype(dtype): name for name, dtype in NUMPY.items()}
    chosen = {}
    for name, dtype in columns:
        kind = _TYPES.get(np.dtype(dtype).kind)
        if kind is not None and names.get(np.dtype(dtype), _DEFAULTS[kind]) != _DEFAULTS[kind]:
            chosen[name] = names[np.dtype(dtype)]
    return {"datatypes": chosen} if chosen else {}


Size = int | str | None
"""An axis: its length, or the name of a free one, or nothing known."""


@dataclass
class TensorInput:
    """An input of a file, its axis of rows and the sizes that are not known yet."""

    name: str
    dtype: Any
    sizes: list[Size]
    axis: int = 0

    def __post_init__(self) -> None:
        if self.sizes and isinstance(self.sizes[0], int):
            named = [place for place, size in enumerate(self.sizes) if str(size).lower() in _BATCH]
            self.axis = named[0] if named else 0

    @property
    def fixed(self) -> int | None:
        """The only number of rows that the file takes."""
        size = self.sizes[self.axis] if self.sizes else None
        return size if isinstance(size, int) and size > 0 else None

    def row(self, free: Mapping[str, int]) -> tuple[int, ...]:
        """A row's shape with those lengths for what is free."""
        others = [(place, size) for place, size in enumerate(self.sizes) if place != self.axis]
        return tuple(
            size if isinstance(size, int) and size > 0 else free[self.label(place)] for place, size in others
        )

    def free(self) -> list[str]:
        return [
            self.label(place)
            for place, size in enumerate(self.sizes)
            if place != self.axis and not (isinstance(size, int) and size > 0)
        ]

    def label(self, place: int) -> str:
        """What an axis is called: inputs whose axes have one name have one length."""
        size = self.sizes[place]
        return size if isinstance(size, str) and size else f"axis {place} of {self.name}"


def answered(
    path: object,
    inputs: Sequence[TensorInput],
    run: Callable[[Sequence[Array]], Mapping[str, Any]],
    found: Found,
) -> Found:
    """Fill `found` with columns for the inputs and for what `run` gives for made-up rows of them.

    Sizes that the file leaves free are those that it takes first. StartupError when it takes none.
    """
    rows = _rows(path, inputs, found)
    free = list(dict.fromkeys(name for one in inputs for name in one.free()))
    images = [name for name in free if any(part in name.lower() for part in ("height", "width"))]
    reason = ""
    for attempt in range(len(SIZES) if free else 1):
        lengths = {name: IMAGE[attempt % len(IMAGE)] if name in images else SIZES[attempt] for name in free}
        columns = [
            column(one.name, one.dtype, one.row(lengths), **({"batch_axis": one.axis} if one.axis else {}))
            for one in inputs
        ]
        try:
            answers = run(_arrays(columns, inputs, rows))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            continue
        for name, length in lengths.items():
            found.guessed.append(
                f"{name}: the file leaves its size free, {length} is one that the model takes; write the one "
                "that your rows have"
            )
        found.inputs = columns
        found.outputs, given = _outputs(path, answers, rows, found)
        found.serving |= datatypes([*((one.name, one.dtype) for one in inputs), *given])
        return found
    raise StartupError(
        f"{path}: does not answer rows made up for what it takes ({reason}); say what its rows are with "
        "--input NAME:TYPE:SHAPE, such as --input image:number:3x224x224"
    )


def _rows(path: object, inputs: Sequence[TensorInput], found: Found) -> int:
    fixed = {one.fixed for one in inputs} - {None}
    if not fixed:
        return ROWS
    if fixed != {1}:
        raise StartupError(
            f"{path}: takes exactly {' or '.join(map(str, sorted(fixed)))} rows at once, which no single "  # type: ignore[type-var]
            "request has; export it again with a first axis that is free"
        )
    found.serving["batching"] = {"max_rows": 1}
    found.guessed.append(
        "the file takes one row at a time: batching.max_rows is 1; a free first axis is faster"
    )
    return 1


def _arrays(columns: list[dict[str, Any]], inputs: Sequence[TensorInput], rows: int) -> list[Array]:
    made = different_rows(tuple(Column.model_validate(one) for one in columns), rows)
    arrays = []
    for one in inputs:
        text = np.dtype(one.dtype).kind in "OUS"
        array = np.array([row[one.name] for row in made], dtype=object if text else one.dtype)
        arrays.append(np.ascontiguousarray(np.moveaxis(array, 0, one.axis)) if one.axis else array)
    return arrays


def _outputs(
    path: object, answers: Mapping[str, Any], rows: int, found: Found
) -> tuple[list[dict[str, Any]], list[tuple[str, Any]]]:
    columns, given = [], []
    for name, answer in answers.items():
        if not isinstance(answer, np.ndarray):
            found.guessed.append(f"{name}: left out, it is a {type(answer).__name__} and no tensor")
        elif answer.ndim == 0 or answer.shape[0] != rows:
            found.guessed.append(f"{name}: left out, its shape {answer.shape} has no row for each of {rows}")
        else:
            shape = answer.shape[1:]
            columns.append(column(name, answer.dtype, () if shape == (1,) else shape))
            given.append((name, answer.dtype))
    if not columns:
        raise StartupError(
            f"{path}: gives nothing that has a value for each row ({'; '.join(found.guessed)[:300]}); "
            "export it "
            "with a tensor whose first axis is the rows"
        )
    return columns, given
