"""Counts answered and failed requests by the value of a column that `promotion.segments` names.

Which values there are is the signature's to say, and everything else is `other`: rows must not make series.
All are shown from zero on, so that whoever compares releases knows how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable

from serving.inference.rows import Payload, RecordPayload
from serving.spec import ModelFile, segment_values
from serving.telemetry import Telemetry

_OTHER = "other"


class Segments:
    """`count` is called once for each request whose rows could be read and that was answered 2xx or 5xx."""

    def __init__(self, model: ModelFile, telemetry: Telemetry) -> None:
        names = [column.name for column in model.signature.inputs]
        self._columns = [
            (name, names.index(name), frozenset(segment_values(model.signature.inputs[names.index(name)])))
            for name in model.promotion.segments
        ]
        self._telemetry = telemetry
        for name, _, values in self._columns:
            labels = [f"{name}={value}" for value in sorted(values | {_OTHER})]
            telemetry.show("segment_requests", labels)
            telemetry.show("segment_errors", labels)

    def count(self, payload: Payload, status: int) -> None:
        """A request of several rows counts once for each value in it."""
        if not (200 <= status < 300 or status >= 500):
            return
        for name, place, values in self._columns:
            for value in {self._named(value, values) for value in _column(payload, name, place)}:
                self._telemetry.count("segment_requests", 1, f"{name}={value}")
                if status >= 500:
                    self._telemetry.count("segment_errors", 1, f"{name}={value}")

    @staticmethod
    def _named(value: object, values: frozenset[str]) -> str:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        text = text.lower() if text in ("True", "False") else text
        return text if text in values else _OTHER


def _column(payload: Payload, name: str, place: int) -> Iterable[object]:
    if isinstance(payload, RecordPayload):
        return [row.get(name) for row in payload.rows]
    return [payload.columns[place][row] for row in range(payload.count)]
