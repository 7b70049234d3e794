"""Runs one batch on the model and checks what comes back. Called from the batcher, often in its thread.

What the model answers is trusted as little as what the client sends: missing rows, wrong shapes and values
that the signature forbids become a ModelFault, never an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from serving.arrays import Array
from serving.errors import WrongForm
from serving.inference.codec import NUMPY, flattened
from serving.inference.outputs import OutputColumn
from serving.inference.records import RecordInputs, RecordOutputs
from serving.inference.rows import (
    Payload,
    RecordPayload,
    RecordResult,
    Result,
    TensorPayload,
    TensorResult,
    noted,
)
from serving.runtimes import RowRuntime, TensorRuntime
from serving.spec import ModelFile


class Engine(Protocol):
    def infer(self, payloads: Sequence[Payload]) -> Sequence[Result]:
        """One result for each payload, in order. Whatever the model raises comes out as it is."""


class TensorEngine:
    def __init__(self, runtime: TensorRuntime, model: ModelFile) -> None:
        self._run = runtime.run
        self._dtypes = [NUMPY[model.datatype(column)] for column in model.signature.inputs]
        self._axes = [column.batch_axis for column in model.signature.inputs]
        self._moved = any(self._axes)
        self._outputs = [OutputColumn(column, model.datatype(column)) for column in model.signature.outputs]
        self._stacked = model.serving.runtime.inputs == "stack"
        self.observed: Callable[[Sequence[Array]], None] | None = None
        """Told of every batch the checked outputs that are noted."""

    def infer(self, payloads: Sequence[Payload]) -> list[Result]:
        counts = [payload.count for payload in payloads]
        total = sum(counts)
        parts = [payload.columns for payload in payloads if isinstance(payload, TensorPayload)]
        arrays = [
            flattened([part[index] for part in parts], dtype) for index, dtype in enumerate(self._dtypes)
        ]
        if self._stacked:
            arrays = [np.stack([array.astype(np.float32, copy=False) for array in arrays], axis=1)]
        elif self._moved:
            arrays = [
                np.ascontiguousarray(np.moveaxis(array, 0, axis)) if axis else array
                for array, axis in zip(arrays, self._axes, strict=True)
            ]
        outputs = self._checked(self._run(arrays), total)
        if self.observed is not None and (places := noted(payloads)):
            self.observed(outputs if len(places) == total else [output[places] for output in outputs])
        if len(payloads) == 1:
            return [TensorResult(total, outputs)]
        results: list[Result] = []
        start = 0
        for count in counts:
            stop = start + count
            results.append(TensorResult(count, [output[start:stop] for output in outputs]))
            start = stop
        return results

    def _checked(self, outputs: Sequence[Array], rows: int) -> list[Array]:
        if len(outputs) != len(self._outputs):
            raise WrongForm(f"the model gave {len(outputs)} outputs, its signature has {len(self._outputs)}")
        return [output.checked(array, rows) for array, output in zip(outputs, self._outputs, strict=True)]


class RecordEngine:
    def __init__(self, runtime: RowRuntime, model: ModelFile) -> None:
        self._predict = runtime.predict
        self._inputs = RecordInputs(model)
        self._outputs = RecordOutputs(model)
        self.observed: Callable[[Sequence[dict[str, Any]]], None] | None = None

    def infer(self, payloads: Sequence[Payload]) -> list[Result]:
        records = [payload for payload in payloads if isinstance(payload, RecordPayload)]
        rows = self._inputs.copied(records)
        outputs = self._outputs.checked(self._predict(rows), sum(record.count for record in records))
        if self.observed is not None and (places := noted(payloads)):
            self.observed([outputs[place] for place in places])
        results: list[Result] = []
        start = 0
        for record in records:
            results.append(RecordResult(outputs[start : start + record.count]))
            start += record.count
        return results
