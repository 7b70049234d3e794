"""One drift check from end to end: samples in, verdict, report, consequence, record.

A check that cannot come to a verdict says why and is recorded as such; it never ends half-way in silence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pandas as pd

from flows.adapters.samples import SampleStore, archive, open_samples, parquet_frames
from flows.domain.drift.binning import Floats
from flows.domain.drift.check import check
from flows.domain.drift.consequences import consequence
from flows.domain.drift.findings import DriftResult, Finding, FindingKind, Outcome
from flows.domain.drift.page import page
from flows.domain.drift.policy import DriftPolicy
from flows.domain.drift.profile import Profile, parse_profile
from flows.domain.drift.reference_sample import reference_sample
from flows.domain.errors import ArtifactCorrupt, DependencyDown
from flows.domain.release import Release
from flows.domain.spec import ModelSpec, parse_spec
from flows.steps.consequence import carry_out
from flows.wiring import ControlPlane

log = logging.getLogger(__name__)

REFERENCE = "reference.json"
Drawing = Literal["always", "found", "never"]
"""When Evidently's report is drawn: it costs seconds. `found`: when there is something to look at."""
_EASEL = threading.Lock()
"""One drawing at a time: it keeps a core busy anyway, and the memory of several would add up."""


@dataclass(frozen=True)
class Subject:
    """The release whose traffic is checked."""

    release: Release
    spec: ModelSpec


def check_model(
    plane: ControlPlane,
    model: str,
    since: float | None = None,
    until: float | None = None,
    *,
    data: str | None = None,
    draw: Drawing = "always",
    act: bool = True,
) -> DriftResult:
    """Check one model and record the result. `since`, `until`: Unix seconds of the rows' own time; default:
    the policy's `lookback` up to the newest archived day.

    `data`: a Parquet file or folder to check instead of the archived samples; it has no consequences.
    Raises ReleaseUnknown for a model that the registry does not know; whatever else goes wrong is in the
    result, which is recorded as far as the registry answers.
    """
    standing = plane.registry.standing(model)
    try:
        release = standing.stable or standing.canary
        if release is None:
            text = "no release serves this model; promote one"
            result = DriftResult(model, None, Outcome.NO_SAMPLES, text)
        else:
            spec = parse_spec(plane.registry.spec(model, release.version), f"{release.name}/model.yaml")
            result = _check(plane, Subject(release, spec), since, until, data, draw)
            followed = consequence(result, spec.drift) if act and data is None else None
            if followed is not None:
                done = carry_out(plane, result, followed, spec.drift)
                result = replace(result, consequence=done, quiet=followed == "record")
    except Exception as error:  # the one place that turns any fault into a recorded outcome
        log.exception("the drift check of %s failed", model)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        result = DriftResult(model, None, Outcome.FAILED, reason)
    if data is None:
        if result.alerts and not result.quiet and not _alerted_before(plane, model, result.outcome):
            said = {"outcome": result.outcome.value, "sentence": result.sentence}
            more = {"consequence": result.consequence, "report": result.report}
            plane.registry.note(model, "drift", {**said, **more})
        plane.registry.record_drift(model, result.outcome.value, result.to_dict())
    return result


def _alerted_before(plane: ControlPlane, model: str, outcome: Outcome) -> bool:
    """Whether the last check found the same: it is told once, not every hour."""
    last = plane.registry.drift_checks(model, limit=1)
    return bool(last) and last[0][1] == outcome.value


def _check(
    plane: ControlPlane,
    subject: Subject,
    since: float | None,
    until: float | None,
    data: str | None,
    draw: Drawing,
) -> DriftResult:
    release, policy = subject.release, subject.spec.drift
    try:
        profile = read_reference(plane, release)
    except ArtifactCorrupt as error:
        return DriftResult(release.model, release.name, Outcome.NO_REFERENCE, str(error))
    kept = RowSample(policy.report_rows)
    if data is not None:
        extra = [column.name for column in profile.columns if column.role == "output"] + ["@outcome"]
        frames = kept.passing(parquet_frames(data, subject.spec.signature, policy, extra))
        result = check(
            profile, frames, policy, model=release.model, release=release.name, since=since, until=until
        )
    else:
        result = _check_samples(plane, subject, profile, kept, since, until)
    if draw == "always" or (draw == "found" and result.shows):
        result = _draw(plane, result, profile, kept, policy)
    return result


def _check_samples(
    plane: ControlPlane,
    subject: Subject,
    profile: Profile,
    kept: RowSample,
    since: float | None,
    until: float | None,
) -> DriftResult:
    release, spec = subject.release, subject.spec
    store = SampleStore(f"{plane.settings.artifacts_uri}/samples")
    findings = _archive_now(plane, store, spec)
    if since is None:
        newest = store.newest_day(release.model, spec.drift.min_rows)
        end = until if until is not None else _end_of(newest) if newest else 0.0
        since = end - spec.drift.lookback_seconds
    reading = open_samples(store, release.model, release=release.name, since=since, until=until)
    # One pass: what the reading finds out about itself is complete only after the last chunk.
    tallied = check(
        profile,
        kept.passing(reading),
        spec.drift,
        model=release.model,
        release=release.name,
        since=since,
        until=until,
        late=lambda: (reading.unknown_outcomes, [*findings, *reading.findings()]),
    )
    if tallied.outcome is Outcome.NO_SAMPLES and reading.other_releases:
        others = ", ".join(f"{name} {count}" for name, count in reading.other_releases.most_common(3))
        return replace(tallied, sentence=f"no samples of {release.name}; rows of other releases: {others}")
    return tallied


def _archive_now(plane: ControlPlane, store: SampleStore, spec: ModelSpec) -> list[Finding]:
    """Bring the newest samples in. A check without them is better than none, if it says so."""
    try:
        moved = archive(plane.settings.redis_url, store, spec.name, spec.signature, spec.drift)
    except DependencyDown as error:
        return [Finding(FindingKind.LOST_SAMPLES, f"the newest samples are missing: {error}")]
    if moved.lost:
        text = f"{moved.lost} samples were pushed out of Redis before they were archived; archive more often"
        return [Finding(FindingKind.LOST_SAMPLES, text, count=moved.lost)]
    return []


def read_reference(plane: ControlPlane, release: Release) -> Profile:
    """The release's reference, proven by the digest that was registered. ArtifactCorrupt when it has none."""
    manifest = plane.artifacts.text(release.bundle, "manifest.json")
    if hashlib.sha256(manifest.encode()).hexdigest() != release.sha256:
        raise ArtifactCorrupt(f"{release.bundle}/manifest.json is not the registered one; restore the bundle")
    expected = json.loads(manifest)["files"].get(REFERENCE)
    if expected is None:
        raise ArtifactCorrupt(
            f"{release.name} has no {REFERENCE}; register it with its training rows (--training)"
        )
    text = plane.artifacts.text(release.bundle, REFERENCE)
    if hashlib.sha256(text.encode()).hexdigest() != expected:
        raise ArtifactCorrupt(
            f"{release.bundle}/{REFERENCE} was changed after registration; restore the bundle"
        )
    return parse_profile(text, f"{release.name}/{REFERENCE}")


class RowSample:
    """Keeps a random sample of the rows that pass, for the report's pictures."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._random = np.random.default_rng(17)
        self._frame: pd.DataFrame | None = None
        self._lots: Floats = np.empty(0)

    def passing(self, frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for frame in frames:
            self._keep(frame)
            yield frame

    def _keep(self, frame: pd.DataFrame) -> None:
        lots = self._random.random(len(frame))
        if len(self._lots) >= self._rows:  # most rows of a long run are out at once
            inside = lots < self._lots.max()
            frame, lots = frame[inside], lots[inside]
        both = frame if self._frame is None else pd.concat([self._frame, frame], ignore_index=True)
        lots = np.concatenate([self._lots, lots])
        if len(lots) > self._rows:
            best = np.sort(np.argpartition(lots, self._rows)[: self._rows])
            both, lots = both.iloc[best], lots[best]
        self._frame, self._lots = both, lots

    def frame(self) -> pd.DataFrame:
        return self._frame if self._frame is not None else pd.DataFrame()


def _draw(
    plane: ControlPlane, result: DriftResult, profile: Profile, kept: RowSample, policy: DriftPolicy
) -> DriftResult:
    """Put the report into the artifact store. A report that fails becomes a finding; the verdict stands."""
    from flows.adapters.evidently import ReportFailed
    from flows.adapters.evidently import draw as draw_evidently

    if not result.windows:
        return result
    folder = f"drift/{result.model}/{datetime.now(UTC).strftime('%Y-%m-%dT%H%M%S.%fZ')}"
    opinion = link = None
    try:
        reference = reference_sample(profile, policy.report_rows)
        kinds = {column.name: column.kind for column in profile.columns}
        with _EASEL:
            drawn = draw_evidently(
                reference,
                kept.frame(),
                [name for name, kind in kinds.items() if kind == "numeric"],
                [name for name, kind in kinds.items() if kind == "categorical"],
            )
        opinion, link = drawn.sentence, "evidently.html"
        plane.artifacts.write_bytes(f"{folder}/{link}", drawn.html)
    except ReportFailed as error:
        failed = Finding(FindingKind.REPORT, str(error))
        result = replace(result, findings=(*result.findings, failed))
    try:
        content = page(result, opinion, link).encode()
        return replace(result, report=plane.artifacts.write_bytes(f"{folder}/index.html", content))
    except DependencyDown as error:
        failed = Finding(FindingKind.REPORT, f"the report could not be stored: {error}")
        return replace(result, findings=(*result.findings, failed))


def _end_of(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + 86400
