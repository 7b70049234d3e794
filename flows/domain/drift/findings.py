"""What a drift check can say, as types: nothing it met goes unsaid, and every bad input has a name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

from flows.domain.drift.multivariate import DomainCheck
from flows.domain.drift.online import ErrorChange
from flows.domain.drift.performance import Performance


class Outcome(StrEnum):
    """How a check ended. Its order of precedence is that of this list, from the bottom."""

    STABLE = "stable"
    NOTICED = "noticed"
    """Data changed, but what the model answers did not: on record and in the report, no alert."""
    DRIFTED = "drifted"
    """Data changed more than the reference's own windows differ, in several windows running, and it moves the
    predictions, or whether it does is not known."""
    HARMED = "harmed"
    """Realised performance is worse than the reference explains, or worse than no model."""
    DAMAGED = "damaged"
    """The data breaks the signature: columns missing, all null, of another type."""
    CANNOT_TELL = "cannot_tell"
    """Rows are there, but not enough whole windows, or the reference cannot calibrate anything."""
    NO_SAMPLES = "no_samples"
    NO_REFERENCE = "no_reference"
    WRONG_REFERENCE = "wrong_reference"
    FAILED = "failed"

    @property
    def checked(self) -> bool:
        """Whether the check came to a verdict."""
        return self in (
            Outcome.STABLE,
            Outcome.NOTICED,
            Outcome.DRIFTED,
            Outcome.HARMED,
            Outcome.DAMAGED,
        )


class FindingKind(StrEnum):
    MISSING_COLUMN = "missing_column"
    NEW_COLUMN = "new_column"
    CHANGED_TYPE = "changed_type"
    ALL_NULL = "all_null"
    INFINITE = "infinite"
    UNSEEN_CATEGORY = "unseen_category"
    OUT_OF_RANGE = "out_of_range"
    NO_TIME = "no_time"
    PARTIAL_WINDOW = "partial_window"
    OLD_WINDOWS = "old_windows"
    TOO_FEW_ROWS = "too_few_rows"
    CANNOT_ALERT = "cannot_alert"
    UNKNOWN_OUTCOME = "unknown_outcome"
    CORRUPT_PART = "corrupt_part"
    LOST_SAMPLES = "lost_samples"
    REFERENCE = "reference"
    REPORT = "report"


@dataclass(frozen=True)
class Finding:
    kind: FindingKind
    sentence: str
    column: str | None = None
    count: int = 1
    breach: bool = False
    """The signature is broken: an alert at once, without waiting for a second window."""


@dataclass(frozen=True)
class ColumnDrift:
    """One column, newest windows together against the reference."""

    column: str
    role: Literal["input", "output"]
    kind: Literal["numeric", "categorical"]
    rows: int
    drifted: bool
    score: float
    """1 is the calibrated threshold."""
    p: float
    """Adjusted for all columns and tests."""
    test: str
    """What moved most: location, spread, …, or the share of one category."""
    change: float
    """By how much, in standard deviations (location) or as a share."""
    detectable: float | None
    """The smallest change of this kind that would be an alert; None when none would be."""
    distance: float
    """Kolmogorov-Smirnov (numeric) or total variation (categorical): share of rows that moved, 0 to 1."""
    windows: int
    """How many of the newest windows were judged together."""
    persistent: bool
    """It is certain enough, and every one of the newest `persistence` windows shows it."""
    effect: float | None
    """Expected change of the mean prediction by this column's change alone; None when not known."""
    influence: float | None
    """`effect` in standard deviations of the prediction; of the prediction itself: how far its mean moved."""
    unknown: float
    """Share of the rows with values that the reference never had, beyond those that are usual in its own
    windows: nobody knows what they do."""
    nulls: float
    mean: float | None
    reference_mean: float | None
    trend: tuple[float, ...]
    """The distance in each of the newest windows, oldest first."""
    usual: float | None = None
    """The distance that 95 % of the reference's own windows keep from the others; None with fewer than 4."""
    seen: tuple[float, ...] = ()
    expected: tuple[float, ...] = ()
    """Shares by bin, for plots."""
    labels: tuple[str, ...] = ()
    """What each bin holds."""


@dataclass(frozen=True)
class WindowSummary:
    start: float | None
    """Unix seconds."""
    rows: int
    performance: Performance | None = None


@dataclass(frozen=True)
class DriftResult:
    model: str
    release: str | None
    outcome: Outcome
    sentence: str
    rows: int = 0
    windows: tuple[WindowSummary, ...] = ()
    columns: tuple[ColumnDrift, ...] = ()
    """Worst first: by effect on the predictions where it is known, drifted ones before all others."""
    multivariate: DomainCheck | None = None
    performance: Performance | None = None
    error_changes: tuple[ErrorChange, ...] = ()
    findings: tuple[Finding, ...] = field(default=())
    report: str | None = None
    """Where the report is."""
    consequence: str | None = None
    """What followed."""
    quiet: bool = False
    """The policy only records: no alert rule may fire."""

    @property
    def alerts(self) -> bool:
        return self.outcome in (Outcome.DRIFTED, Outcome.HARMED, Outcome.DAMAGED)

    @property
    def shows(self) -> bool:
        """Whether there is something to look at: an alert, or drift that is only noticed."""
        return self.alerts or self.outcome is Outcome.NOTICED

    def scores(self) -> dict[str, float]:
        """Score by column, for metrics; the multivariate check is the column `*`."""
        found = {column.column: round(column.score, 4) for column in self.columns}
        check = self.multivariate
        if check is not None and check.auc is not None and check.limit is not None:
            found["*"] = round(max(check.auc - 0.5, 0) / (check.limit - 0.5), 4)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what the registry keeps of a check. Bin shares are left to the report."""
        content = asdict(self)
        for column in content["columns"]:
            del column["seen"], column["expected"], column["labels"]
        return {**content, "scores": self.scores(), "alerts": self.alerts and not self.quiet}
