"""Has the world moved away from what the model learned? Counts of the live windows in, a verdict out.

The accepted false alarms of one check (`drift.false_alarms`) are divided: columns 70 %, the multivariate
check 15 %, performance 15 %. Columns share theirs by Holm's method. A column has drifted when

1. the newest `persistence` windows together (or the newest `memory` windows) lie outside of what the
   reference's own windows explain, for all columns and questions at once,
2. every one of the newest `persistence` windows shows the change in the same direction, and
3. it moves more than `min_effect` of the rows.

Drifted inputs are an alert when they matter: they move the predictions (`min_influence`, from the effect of
each column that the reference knows), the predictions drift themselves, performance has fallen, or rows hold
what the reference never had. Inputs that shift without any of this are noticed: in the report and on record,
and nobody is woken. Where the reference cannot say what a column does, its drift is an alert.

The probability is per check. A check every day at 1 % still means an alert in a hundred quiet days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from flows.domain.drift.binning import NULL, UNSEEN
from flows.domain.drift.calibration import LEAST_WINDOWS
from flows.domain.drift.column_drift import describe, examine
from flows.domain.drift.findings import ColumnDrift, DriftResult, Finding, FindingKind, Outcome, WindowSummary
from flows.domain.drift.frames import TIME
from flows.domain.drift.multivariate import DomainCheck, domain_check
from flows.domain.drift.online import ErrorChange, error_changes
from flows.domain.drift.performance import Performance, judge_performance, worsened
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import ColumnProfile, Profile
from flows.domain.drift.tally import MOST_WINDOWS, Tally, WindowTally

COLUMNS_PART, MULTIVARIATE_PART, PERFORMANCE_PART = 0.70, 0.15, 0.15
MISTYPED_SHARE = 0.01
LEARNED = (
    "performance is compared with that on the training rows: too good, if the model has learned them; "
    "register it with a holdout"
)


def check(
    profile: Profile,
    frames: pd.DataFrame | Iterable[pd.DataFrame],
    policy: DriftPolicy,
    *,
    model: str | None = None,
    release: str | None = None,
    since: float | None = None,
    until: float | None = None,
    window_rows: int | None = None,
    late: Callable[[], tuple[int, Sequence[Finding]]] = lambda: (0, ()),
) -> DriftResult:
    """Check live rows, given at once or in chunks (see `flows.domain.drift.frames` for their columns).

    `since`, `until` (Unix seconds): what the rows were meant to cover; windows cut by them are not judged.
    `window_rows`: rows a window when rows have no times; default: the rows given, in `persistence` windows.
    `late` is called when all rows have been read: outcomes that belong to no row, and what reading met.
    Never raises for what the data holds: that is in the result.
    """
    name = model or profile.model
    if profile.model != name:
        other = f"the reference was made for model {profile.model!r}; register {name!r} again"
        return DriftResult(name, release, Outcome.WRONG_REFERENCE, other)
    if isinstance(frames, pd.DataFrame):
        if TIME not in frames and window_rows is None:
            window_rows = max(len(frames) // policy.persistence, 1)
        frames = [frames]
    tally = Tally(profile, policy, window_rows)
    for frame in frames:
        tally.add(frame)
    unknown, findings = late()
    return conclude(tally, release, since, until, unknown, findings)


def conclude(
    tally: Tally,
    release: str | None = None,
    since: float | None = None,
    until: float | None = None,
    unknown_outcomes: int = 0,
    findings: Sequence[Finding] = (),
) -> DriftResult:
    """The verdict on everything counted so far."""
    profile, policy = tally.profile, tally.policy
    said = list(findings)
    base = DriftResult(profile.model, release, Outcome.NO_SAMPLES, "no samples in this stretch of time")
    if tally.rows == 0:
        return replace(base, findings=tuple(said))
    windows, partial = tally.whole_windows(since, until)
    said += _input_findings(tally, windows, partial, unknown_outcomes)
    summaries = tuple(
        WindowSummary(tally.start(window), window.rows, _performance(profile, [window], policy, 0.01))
        for window in windows
    )
    base = replace(base, rows=tally.rows, windows=summaries)
    breach = next((finding for finding in said if finding.breach), None)
    if len(windows) < policy.persistence:
        if breach is not None:
            return replace(base, outcome=Outcome.DAMAGED, sentence=breach.sentence, findings=tuple(said))
        few = (
            f"{len(windows)} whole windows of {policy.min_rows} rows or more; {policy.persistence} are needed"
        )
        return replace(base, outcome=Outcome.CANNOT_TELL, sentence=few, findings=tuple(said))
    columns, mute = _columns(profile, windows, policy)
    said += _mute_findings(mute)
    multivariate = _multivariate(profile, windows, policy)
    judged = windows[-max(policy.persistence, min(policy.memory, len(windows))) :]
    level = policy.false_alarms * PERFORMANCE_PART
    performance = _performance(profile, judged, policy, level, unknown_outcomes)
    changes: tuple[ErrorChange, ...] = ()
    if performance is not None and profile.performance is not None and not profile.performance.held_out:
        said.append(Finding(FindingKind.REFERENCE, LEARNED))
    if tally.errors:
        largest = profile.performance.largest_error if profile.performance else 1.0
        times = np.concatenate([times for times, _ in tally.errors])
        changes = error_changes(times, np.concatenate([errors for _, errors in tally.errors]), largest)
    result = replace(
        base,
        columns=columns,
        multivariate=multivariate,
        performance=performance,
        error_changes=changes,
        findings=tuple(said),
    )
    return _verdict(result, breach, all(c.detectable is None for c in columns), policy)


def _verdict(result: DriftResult, breach: Finding | None, all_mute: bool, policy: DriftPolicy) -> DriftResult:
    drifted = [column for column in result.columns if column.drifted]
    performance, multivariate = result.performance, result.multivariate
    if breach is not None:
        return replace(result, outcome=Outcome.DAMAGED, sentence=breach.sentence)
    if performance is not None and performance.state in ("degraded", "harmful"):
        return replace(result, outcome=Outcome.HARMED, sentence=performance.sentence)
    if drifted:
        names = ", ".join(column.column for column in drifted[:3]) + (", …" if len(drifted) > 3 else "")
        text = f"{len(drifted)} of {len(result.columns)} columns drifted: {names}"
        return _weighed(result, text, policy)
    if multivariate is not None and multivariate.drifted:
        return _weighed(result, f"columns changed together, none alone: {multivariate.sentence}", policy)
    if all_mute:
        return replace(
            result, outcome=Outcome.CANNOT_TELL, sentence="no column could have alerted, whatever it did"
        )
    return replace(
        result, outcome=Outcome.STABLE, sentence="nothing beyond the reference's own ups and downs"
    )


def _weighed(result: DriftResult, text: str, policy: DriftPolicy) -> DriftResult:
    """Drift that matters is an alert; drift that the model's answers are known not to follow is noticed."""
    why = _matters(result, policy)
    if why is not None:
        return replace(result, outcome=Outcome.DRIFTED, sentence=f"{text}; {why}" if why else text)
    return replace(result, outcome=Outcome.NOTICED, sentence=f"{text}; the predictions do not follow")


def _matters(result: DriftResult, policy: DriftPolicy) -> str | None:
    """Why the drift is an alert (empty when that needs no words); None when it is known not to matter."""
    inputs = [column for column in result.columns if column.role == "input" and column.drifted]
    outputs = [column for column in result.columns if column.role == "output"]
    influences = [column.influence for column in inputs]
    watched = [column.influence for column in outputs if column.influence is not None]
    if policy.min_influence == 0 or any(column.drifted for column in outputs):
        return ""
    if not watched or any(column.detectable is None for column in outputs) or None in influences:
        return "what that does to the predictions is not known"
    moved = max(sum(influence for influence in influences if influence is not None), *watched)
    if moved >= policy.min_influence:
        return f"the predictions move by {moved:.2f} of their standard deviation"
    unknown = max((column.unknown for column in inputs), default=0.0)
    if unknown >= policy.min_effect:
        return f"{100 * unknown:.1f} % of the rows have values that the reference never had"
    if result.performance is not None and worsened(result.performance, policy):
        return "performance is lower, too"
    return None


def _columns(
    profile: Profile, windows: list[WindowTally], policy: DriftPolicy
) -> tuple[tuple[ColumnDrift, ...], dict[str, str]]:
    """Every column's verdict, worst first, and of those that cannot alert the names and why."""
    present = [
        column for column in profile.columns if all(column.name in window.counts for window in windows)
    ]
    lacking = [column.name for column in profile.columns if column not in present]
    mute = dict.fromkeys(lacking, "some of the windows that are judged lack the column")
    mute |= dict.fromkeys(profile.missing, "the training rows lacked the column")
    if not present:
        return (), mute
    looks = sorted({policy.persistence, max(policy.persistence, min(policy.memory, len(windows)))})
    level = policy.false_alarms * COLUMNS_PART / len(looks)
    examined = [examine(profile, column, windows, looks, level / len(present)) for column in present]
    # Holm: the smallest p is compared with level / columns, the next with level / (columns - 1), …
    adjusted: dict[str, float] = {}
    running = 0.0
    for place, one in enumerate(sorted(examined, key=lambda one: one.p)):
        running = max(running, min(1.0, one.p * (len(present) - place)))
        adjusted[one.column.name] = running
    found = [describe(profile, one, windows, policy, adjusted[one.column.name], level) for one in examined]
    by_effect = sorted(
        found, key=lambda c: (not c.drifted, -abs(c.effect or 0.0) if c.drifted else -c.score, -c.score)
    )
    mute |= {one.column.name: _why_mute(one.column, profile) for one in examined if not one.can_alert}
    return tuple(by_effect), mute


def _multivariate(profile: Profile, windows: list[WindowTally], policy: DriftPolicy) -> DomainCheck | None:
    if profile.sample is None:
        return None
    if profile.in_time and len(profile.sizes) < LEAST_WINDOWS:
        return DomainCheck(0, sentence=f"cannot alert: {len(profile.sizes)} whole windows in the reference")
    samples = [window.sample for window in windows[-policy.persistence :]]
    kept = [sample for sample in samples if sample is not None]
    if len(kept) < len(samples):
        return DomainCheck(0, sentence="not judged: columns of the reference are missing")
    level = policy.false_alarms * MULTIVARIATE_PART
    bins = {column.name: column.bins for column in profile.columns}
    return domain_check(profile.sample, np.concatenate(kept), level, policy.min_effect, bins)


def _performance(
    profile: Profile, windows: list[WindowTally], policy: DriftPolicy, level: float, unknown: int = 0
) -> Performance | None:
    tallies = [window.performance for window in windows if window.performance is not None]
    if not tallies:
        return None
    return judge_performance(profile.performance, tallies, policy, level, unknown)


def _input_findings(
    tally: Tally, windows: list[WindowTally], partial: list[WindowTally], unknown: int
) -> list[Finding]:
    """Everything wrong with the rows themselves."""
    found: list[Finding] = []
    kinds = FindingKind
    if partial:
        rows = sum(window.rows for window in partial)
        few = all(window.rows < tally.policy.min_rows for window in partial)
        kind = kinds.TOO_FEW_ROWS if few else kinds.PARTIAL_WINDOW
        least = tally.policy.min_rows
        number = f"{len(partial)} window{'s' * (len(partial) != 1)} with {rows} rows"
        text = f"not judged, since partial or under {least} rows: {number}"
        found.append(Finding(kind, text, count=len(partial)))
    if tally.untimed:
        text = f"{tally.untimed} rows without a readable time are not judged"
        found.append(Finding(kinds.NO_TIME, text, count=tally.untimed))
    if tally.old:
        text = f"{tally.old} rows are older than the newest {MOST_WINDOWS} windows and are not judged"
        found.append(Finding(kinds.OLD_WINDOWS, text, count=tally.old))
    if unknown:
        text = f"{unknown} outcomes belong to no sampled prediction of this stretch of time"
        found.append(Finding(kinds.UNKNOWN_OUTCOME, text, count=unknown))
    for name in sorted(tally.new):
        text = f"column {name!r} is not in the reference and is not compared"
        found.append(Finding(kinds.NEW_COLUMN, text, name))
    newest = windows[-1] if windows else (partial[-1] if partial else None)
    for column in tally.profile.columns:
        found += _column_findings(column, newest, column.name in tally.missing)
    return list(dict.fromkeys(found))


def _column_findings(column: ColumnProfile, newest: WindowTally | None, missing: bool) -> list[Finding]:
    kinds, name = FindingKind, column.name if column.part in ("", "mean", "sd") else column.source
    if newest is None:
        return []
    if missing and column.name not in newest.counts:
        text = f"column {name!r} of the reference is missing"
        return [Finding(kinds.MISSING_COLUMN, text, name, newest.rows, breach=column.role == "input")]
    found: list[Finding] = []
    counts = newest.counts[column.name]
    rows = max(int(counts.sum()), 1)
    if missing:
        found.append(Finding(kinds.MISSING_COLUMN, f"column {name!r} is missing in a part of the rows", name))
    mistyped = newest.mistyped.get(column.name, 0)
    if mistyped:
        text = f"column {name!r}: {mistyped} values of the newest rows are no numbers"
        found.append(
            Finding(kinds.CHANGED_TYPE, text, name, mistyped, breach=mistyped >= MISTYPED_SHARE * rows)
        )
    elif counts[NULL] == rows and column.total[NULL] < column.total.sum():
        found.append(
            Finding(kinds.ALL_NULL, f"column {name!r} is null in every row", name, rows, breach=True)
        )
    if newest.infinite.get(column.name):
        text = f"column {name!r}: {newest.infinite[column.name]} infinite values"
        found.append(Finding(kinds.INFINITE, text, name, newest.infinite[column.name]))
    outside = int(counts[UNSEEN])
    if column.kind == "numeric":
        outside += int(counts[-1])
        if outside and not column.mute:
            text = f"column {column.name!r}: {outside} of {rows} values outside of the reference's range"
            found.append(Finding(kinds.OUT_OF_RANGE, text, column.name, outside))
    elif outside:
        usual = round(float(column.total[UNSEEN] / max(column.total.sum(), 1)) * rows)
        text = f"column {name!r}: {outside} of {rows} values never seen in the reference"
        text += f"; about {usual} are usual" if usual else ""
        found.append(Finding(kinds.UNSEEN_CATEGORY, text, name, outside))
    return found


def _why_mute(column: ColumnProfile, profile: Profile) -> str:
    windows = len(column.counts) if profile.in_time else LEAST_WINDOWS
    if windows < LEAST_WINDOWS:
        return f"the reference has {windows} whole windows, {LEAST_WINDOWS} are needed"
    return column.mute or (
        "the reference's own windows differ too much, or are too few, for any value to stand out"
    )


def _mute_findings(mute: dict[str, str]) -> list[Finding]:
    """One for each reason, with every column that it holds for: what is not judged is never left unsaid."""
    found = []
    for reason in dict.fromkeys(mute.values()):
        names = [name for name in mute if mute[name] == reason]
        text = f"cannot alert: {', '.join(names)}: {reason}"
        found.append(Finding(FindingKind.CANNOT_ALERT, text, count=len(names)))
    return found
