"""Sorts the model's outputs into classes or score bins for `modelserve_outputs_total{bin}`.

The control plane and the dashboards see from it when a new release starts to answer something else, long
before anyone knows the true outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.arrays import Array
from serving.spec import ModelFile
from serving.telemetry import bin_edges

_OTHER = "other"


class OutputMonitor:
    """`observed` is called for each batch and keeps one number a request; `bins` is called by the metrics."""

    def __init__(self, model: ModelFile, sink: Callable[[Array], None]) -> None:
        spec = model.serving.monitor
        # The values of a personal column must not stand in metrics.
        shown = [place for place, one in enumerate(model.signature.outputs) if one.personal is None]
        names = [column.name for column in model.signature.outputs]
        self._index = names.index(spec.output) if spec.output is not None else (shown or [0])[0]
        column = model.signature.outputs[self._index]
        self.shows = column.personal is None
        self._name = column.name
        self._scores = bool(column.shape) and column.type in ("number", "integer")
        self._edges = bin_edges(column.minimum, column.maximum, spec.bins)
        self._numeric = column.type == "number" and not column.shape
        self._max_classes = spec.max_classes
        self._seen: set[str] = set()
        self._sink = sink

    def tensors(self, outputs: Sequence[Array]) -> None:
        """Note one batch of arrays. A tensor of scores counts as the class with the largest one."""
        array = outputs[self._index]
        if self._scores:
            self._sink(array.reshape(len(array), -1).argmax(axis=1))
        else:
            self._sink(array if array.ndim == 1 else array.reshape(len(array), -1)[:, 0])

    def records(self, outputs: Sequence[dict[str, Any]]) -> None:
        """Note one batch of a handler's rows."""
        values = [row[self._name] for row in outputs]
        if self._scores:
            self._sink(np.array([int(np.argmax(value)) for value in values if value is not None]))
        elif self._numeric:
            self._sink(np.array([value for value in values if value is not None], dtype=np.float64))
        else:
            self._sink(
                np.array([str(value) for value in values if not isinstance(value, list)], dtype=object)
            )

    def bins(self, batches: Sequence[Array]) -> dict[str, int]:
        """Requests a bin. Score bins are named by their upper edge, classes by their value."""
        values = np.concatenate([np.asarray(batch) for batch in batches])
        if self._numeric:
            counts = np.bincount(
                np.searchsorted(self._edges, values[np.isfinite(values)]), minlength=len(self._edges) + 1
            )
            labels = [f"le_{edge:g}" for edge in self._edges] + [f"gt_{self._edges[-1]:g}"]
            return {label: int(count) for label, count in zip(labels, counts, strict=True) if count}
        found: dict[str, int] = {}
        classes, amounts = np.unique(values.astype(str), return_counts=True)
        for value, amount in zip(classes.tolist(), amounts.tolist(), strict=True):
            label = self._class(value)
            found[label] = found.get(label, 0) + amount
        return found

    def _class(self, value: str) -> str:
        """The first classes keep their names; a model that invents more must not make endless series."""
        label = value[:64]
        if label not in self._seen:
            if len(self._seen) >= self._max_classes:
                return _OTHER
            self._seen.add(label)
        return label
