"""An online alarm on the error: ADWIN, which finds the moment at which a mean changed.

Windows answer "is this week worse than the reference?". ADWIN answers "since when?", inside and across
windows, without a reference. It comes from river; its other detectors alarmed on unchanged data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flows.domain.drift.binning import Floats

CERTAINTY = 0.002
"""ADWIN's delta: the accepted probability of a false alarm at each check."""


@dataclass(frozen=True)
class ErrorChange:
    """The mean error changed at about `at` (Unix seconds, or the row's number where times are unknown)."""

    at: float
    before: float
    after: float

    @property
    def worse(self) -> bool:
        return self.after > self.before


def error_changes(times: Floats, errors: Floats, largest: float) -> tuple[ErrorChange, ...]:
    """Changes of the mean error. `errors`: one a row; they are cut at `largest` and scaled to 0…1, the range
    that ADWIN's bound assumes. Rows without an error (NaN) are left out."""
    known = np.isfinite(errors) & np.isfinite(times)
    order = np.argsort(times[known], kind="stable")
    moments = times[known][order]
    values = np.clip(errors[known][order] / largest, 0, 1)
    if len(values) < 100:
        return ()
    from river.drift import ADWIN

    detector = ADWIN(delta=CERTAINTY)  # type: ignore[no-untyped-call]
    changes: list[ErrorChange] = []
    for place, value in enumerate(values):
        before = detector.estimation
        detector.update(float(value))  # type: ignore[no-untyped-call]
        if detector.drift_detected:
            after = detector.estimation
            changes.append(
                ErrorChange(float(moments[place]), float(before) * largest, float(after) * largest)
            )
    return tuple(changes)
