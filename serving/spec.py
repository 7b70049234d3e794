"""The server's half of `model.yaml`: the signature and the section `serving`.

The other sections belong to the control plane, which checks them itself; they are ignored here.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serving.errors import SpecProblem

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]


MOST_SEGMENTS = 50
"""Values of one column that requests are counted by: each is a series of every server."""

TABLES = frozenset({"sklearn", "xgboost", "lightgbm", "mlflow"})
"""Kinds that take columns as one table, in double precision as they were trained."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Section):
    """One named input or output. A `shape` makes it a tensor per row; without one it is a scalar."""

    name: str = Field(min_length=1, max_length=200)
    type: Literal["number", "integer", "boolean", "string"]
    shape: tuple[int, ...] = ()
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    batch_axis: int = Field(default=0, ge=0, le=8)
    """The axis of the model's own tensor that is the rows, where it is not the first one: 1 for the states
    of a recurrent layer. Clients always have rows first."""
    description: str = ""
    categories: tuple[str, ...] = ()
    """The values of a string that the model knows. Others are taken as ever; `promotion.segments` counts them
    as `other`."""
    personal: Literal["hash", "drop"] | None = None
    """Personal data: rows leave the server without it, or with a keyed hash in its place; see personal.py."""

    @field_validator("shape")
    @classmethod
    def _dimensions_are_positive(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if any(dimension < 1 for dimension in shape):
            raise ValueError("every dimension must be 1 or more: rows of one model have one shape")
        return shape

    @model_validator(mode="after")
    def _range_makes_sense(self) -> Column:
        if self.type not in ("number", "integer") and (self.minimum is not None or self.maximum is not None):
            raise ValueError(f"{self.name}: minimum and maximum are for numbers and integers")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"{self.name}: minimum is above maximum")
        if self.batch_axis > len(self.shape):
            raise ValueError(f"{self.name}: batch_axis {self.batch_axis} is beyond the axes of its shape")
        return self

    @property
    def elements(self) -> int:
        """Values in one row."""
        return math.prod(self.shape)


class Signature(Section):
    inputs: tuple[Column, ...] = Field(min_length=1)
    outputs: tuple[Column, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Signature:
        for side, columns in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [column.name for column in columns]
            if len(set(names)) != len(names):
                raise ValueError(f"{side}: a name stands twice")
        return self


class RuntimeSpec(Section):
    """What executes the model.

    `handler` runs `load` and `predict` of handler.py; the others take and give one tensor a column.
    """

    kind: Literal[
        "handler",
        "pytorch",
        "onnx",
        "tensorflow",
        "sklearn",
        "xgboost",
        "lightgbm",
        "mlflow",
        "huggingface",
    ]
    file: str | None = None
    """The model file (or the folder of a SavedModel, of MLflow or Hugging Face) inside the bundle."""
    task: Literal["text-classification", "feature-extraction", "fill-mask", "text-generation"] | None = None
    """Hugging Face only: what the model is asked for."""
    format: Literal["auto", "pt2", "torchscript", "state_dict", "safetensors"] = "auto"
    """PyTorch only; `auto` reads it off the file's content. `state_dict` and `safetensors` are weights and
    need `build()` in handler.py."""
    handler: str = "handler.py"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    threads: int | None = Field(default=None, ge=1, le=256)
    """Threads inside one model call; default: one, or the CPU quota where that is measured to pay."""
    inputs: Literal["columns", "stack"] = "columns"
    """`columns`: one tensor for each input; `stack`: scalar inputs become one tensor (rows, inputs)."""
    trust_pickle: bool = False
    """Allow formats that can run code while they are read. Only for files you made yourself."""

    @field_validator("file", "handler")
    @classmethod
    def _path_stays_in_the_bundle(cls, path: str | None) -> str | None:
        parts = PurePosixPath(path or "").parts
        if path is not None and (not parts or parts[0] == "/" or ".." in parts or "\\" in path):
            raise ValueError("leaves the model's folder; put the file into it and give its path from there")
        return path

    @model_validator(mode="after")
    def _file_is_named(self) -> RuntimeSpec:
        if self.kind != "handler" and self.file is None:
            raise ValueError(f"file: the runtime {self.kind} needs the name of the model file in the bundle")
        return self


class BatchingSpec(Section):
    """Rows are counted, not requests. There is no waiting time: a batch starts when the model is free."""

    max_rows: int = Field(default=64, ge=1, le=65536)
    max_bytes: int = Field(default=64 << 20, ge=1)
    max_pending_rows: int = Field(default=4096, ge=1)
    max_pending_bytes: int = Field(default=256 << 20, ge=1)
    mode: Literal["auto", "inline", "thread"] = "auto"
    """`auto`: in the event loop while the largest batch takes under 2 ms, else in one thread."""


class LimitsSpec(Section):
    max_rows: int = Field(default=1024, ge=1)
    """Rows of one request."""
    max_body_bytes: int = Field(default=16 << 20, ge=1)
    timeout_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Deadline of a request that brings no X-Request-Timeout, and the most that one may ask for."""
    body_seconds: float = Field(default=10.0, gt=0)
    """Time in which a body has to arrive."""


class CacheSpec(Section):
    enabled: bool = False
    ttl_seconds: int = Field(default=300, ge=1)
    max_value_bytes: int = Field(default=65536, ge=1)
    """Larger answers to a row are not cached."""
    timeout_seconds: float = Field(default=0.005, gt=0, le=1)
    """A slower Redis is treated as absent."""
    redis: Literal["always", "when_cheaper"] = "always"
    """`when_cheaper`: where the model is faster than a lookup in Redis, only the requests of the last second
    are remembered, by the process itself."""


class SamplesSpec(Section):
    """Which answered rows go to the drift samples in Redis."""

    share: float = Field(default=1.0, ge=0, le=1)
    per_second: float = Field(default=200.0, ge=0)
    """Most requests a second that are sampled, in one process; above it samples are dropped and counted."""
    max_length: int = Field(default=100_000, ge=1)
    outcome_seconds: float = Field(default=7 * 86400.0, ge=60)
    """How long after an answer its outcomes are taken. What was told is remembered for that long, a few bytes
    a row, so that it is told once."""
    max_row_bytes: int = Field(default=16384, ge=1)
    """Rows with larger features are not sampled: images do not belong into Redis."""


class ShadowSpec(Section):
    """How answers of a shadow are compared: numbers within tolerance, everything else by equality."""

    absolute_tolerance: float = Field(default=1e-4, ge=0)
    relative_tolerance: float = Field(default=1e-4, ge=0)
    classes: bool = False
    """Compare only the position of the largest score of tensor outputs."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    max_pending: int = Field(default=256, ge=1)
    per_second: float = Field(default=100.0, gt=0)
    """Most copies a second, in one process; more are dropped and counted."""


class JobsSpec(Section):
    """Jobs of /batch-predict."""

    max_body_bytes: int = Field(default=64 << 20, ge=1)
    """Larger inputs are uploaded to the store and named by their URI."""
    max_decoded_bytes: int = Field(default=8 << 30, ge=1)
    """Of all rows of a job as JSON Lines, whatever the file was; those of a body may take four times
    `max_body_bytes`."""
    max_rows: int = Field(default=10_000_000, ge=1)
    chunk_rows: int = Field(default=1000, ge=1, le=100_000)
    """Rows that are run again when a replica is lost, and rows of a page of results."""
    personal: Literal["refuse", "keep"] = "refuse"
    """Of models with personal columns: the rows of a job stand in the store as they are, inputs and results,
    for as long as `keep_seconds`. `keep` says that the store is fit for that."""
    max_queued: int = Field(default=1000, ge=1)
    keep_seconds: float = Field(default=7 * 86400.0, gt=0)
    """What ended that long ago is removed, results included."""


class MonitorSpec(Section):
    """What `modelserve_outputs_total{bin}` counts."""

    output: str | None = None
    """Default: the first output."""
    bins: tuple[float, ...] = ()
    """Rising edges of score bins; default: tenths between the output's minimum and maximum."""
    max_classes: int = Field(default=64, ge=1, le=1000)

    @field_validator("bins")
    @classmethod
    def _edges_rise(cls, bins: tuple[float, ...]) -> tuple[float, ...]:
        if list(bins) != sorted(set(bins)):
            raise ValueError("the edges must rise")
        return bins


class ServingSpec(Section):
    runtime: RuntimeSpec
    batching: BatchingSpec = BatchingSpec()
    limits: LimitsSpec = LimitsSpec()
    cache: CacheSpec = CacheSpec()
    samples: SamplesSpec = SamplesSpec()
    shadow: ShadowSpec = ShadowSpec()
    jobs: JobsSpec = JobsSpec()
    monitor: MonitorSpec = MonitorSpec()
    datatypes: dict[str, Datatype] = Field(default_factory=dict)
    """Where the default (FP32, INT64, BOOL, BYTES; FP64 for a handler's scalars) is not a column's."""
    deterministic: bool = True
    """False where equal rows may get different answers (sampling, dropout that is meant): the self-check at
    start compares no answers then. Shapes and types are checked all the same."""
    tolerance: float = Field(default=1e-3, ge=0, le=1)
    """How far a row's numbers may be from each other alone and in a batch, as a share of the largest one."""
    processing_version: str = "1"
    """Part of every cache key; raise it when the handler's arithmetic changes without a new version."""


class PromotionPart(BaseModel):
    """What the server must know of the section that is the control plane's."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    segments: tuple[str, ...] = ()
    """Inputs by whose values requests are counted."""


class ModelFile(BaseModel):
    """The parts of model.yaml that the server reads."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
    description: str = ""
    signature: Signature
    serving: ServingSpec
    promotion: PromotionPart = PromotionPart()

    @model_validator(mode="after")
    def _sections_agree(self) -> ModelFile:
        columns = {column.name: column for column in (*self.signature.inputs, *self.signature.outputs)}
        for name, datatype in self.serving.datatypes.items():
            if name not in columns:
                raise ValueError(f"serving.datatypes.{name}: no such column; there are {', '.join(columns)}")
            allowed = _DATATYPES[columns[name].type]
            if datatype not in allowed:
                raise ValueError(f"serving.datatypes.{name}: {datatype} cannot hold a {columns[name].type}")
        monitored = self.serving.monitor.output
        outputs = [column.name for column in self.signature.outputs]
        if monitored is not None and monitored not in outputs:
            raise ValueError(
                f"serving.monitor.output: {monitored} is no output; there are {', '.join(outputs)}"
            )
        if monitored is not None and columns[monitored].personal is not None:
            raise ValueError(
                f"serving.monitor.output: {monitored} is personal, and its values would stand in metrics"
            )
        runtime = self.serving.runtime
        if runtime.inputs == "stack" and runtime.kind in TABLES:
            raise ValueError(
                f"serving.runtime.inputs: {runtime.kind} takes columns as they are; leave it out"
            )
        if runtime.inputs == "stack" and any(column.shape for column in self.signature.inputs):
            raise ValueError("serving.runtime.inputs: 'stack' is for scalar inputs only")
        if runtime.inputs == "stack" and any(column.type == "string" for column in self.signature.inputs):
            raise ValueError("serving.runtime.inputs: strings cannot be stacked into a tensor")
        if runtime.kind == "handler" or runtime.inputs == "stack":
            moved = [column.name for column in self.signature.inputs if column.batch_axis]
            if runtime.kind == "handler":
                moved += [column.name for column in self.signature.outputs if column.batch_axis]
            if moved:
                raise ValueError(f"{moved[0]}: batch_axis is for models that take and give a tensor a column")
        if runtime.kind != "handler":
            for column in self.signature.inputs:
                if column.nullable and column.type != "number":
                    raise ValueError(f"signature.inputs.{column.name}: a tensor has no null, but in a number")
        inputs = {column.name: column for column in self.signature.inputs}
        for name in self.promotion.segments:
            if name not in inputs or not segment_values(inputs[name]):
                raise ValueError(f"promotion.segments: {name} is no input whose values the signature knows")
        return self

    def datatype(self, column: Column) -> Datatype:
        """The Open Inference Protocol datatype in which the column travels as a tensor."""
        chosen = self.serving.datatypes.get(column.name)
        if chosen is not None:
            return chosen
        if column.type == "number":
            if self.serving.runtime.kind in TABLES:
                return "FP64"
            return "FP64" if self.serving.runtime.kind == "handler" and not column.shape else "FP32"
        return {"integer": "INT64", "boolean": "BOOL", "string": "BYTES"}[column.type]  # type: ignore[return-value]


def segment_values(column: Column) -> tuple[str, ...]:
    """The values that the signature knows of a column; empty where it does not say, or must not be told."""
    if column.shape or column.personal is not None:
        return ()
    if column.type == "string":
        return column.categories
    if column.type == "boolean":
        return ("false", "true")
    if column.type == "integer" and column.minimum is not None and column.maximum is not None:
        low, high = math.ceil(column.minimum), math.floor(column.maximum)
        return tuple(str(value) for value in range(low, min(high, low + MOST_SEGMENTS) + 1))
    return ()


_INTEGERS = frozenset({"UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"})
_DATATYPES: dict[str, frozenset[str]] = {
    "number": frozenset({"FP16", "FP32", "FP64"}),
    "integer": _INTEGERS,
    "boolean": frozenset({"BOOL"}),
    "string": frozenset({"BYTES"}),
}


MOST_NODES = 100_000
"""Of a model.yaml, each key and each value."""


class BoundedLoader(yaml.SafeLoader):
    """Aliases count as copies: hundreds of bytes of them can stand for more than is checked in a life."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _copies(node, {}) > MOST_NODES:
            problem = f"its aliases stand for more than {MOST_NODES} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node


def _copies(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that `node` stands for, with every alias written out."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # until it is counted: what holds itself has no end
        parts: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_copies(part, known) for part in parts)
    return known[id(node)]


def read_model_file(path: Path) -> ModelFile:
    """Parse and check a model.yaml; SpecProblem with one line a problem, each naming file and key."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), BoundedLoader)
    except FileNotFoundError:
        raise SpecProblem([f"{path}: not there; a model's folder needs a model.yaml"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecProblem([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from error
    except RecursionError:
        raise SpecProblem([f"{path}: nested too deeply"]) from None
    if not isinstance(content, dict):
        raise SpecProblem([f"{path}: expected keys such as 'name', 'signature' and 'serving'"])
    try:
        return ModelFile.model_validate(content)
    except ValidationError as error:
        raise SpecProblem([f"{path}: {line}" for line in _lines(error)]) from error


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; remove it or see the reference of model.yaml")
        elif detail["type"] == "missing":
            lines.append(f"{key}: missing; add it")
        else:
            found = _shown(detail["input"])
            message = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{key}: {message}{found}" if key else message)
    return lines


def _shown(value: Any) -> str:
    return "" if isinstance(value, dict) else f" (found {value!r})"
