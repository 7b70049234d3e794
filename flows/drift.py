"""`drift`: has the world moved away from what a model learned, and what follows.

The same functions run as Prefect flows and, without a Prefect server, as `python -m flows.drift [MODEL ...]`
from a CronJob. One frequent job (`drift_due`) checks the models whose schedule has struck.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.domain.drift.findings import DriftResult, Outcome
from flows.domain.drift.frames import to_seconds
from flows.domain.drift.policy import DriftPolicy, seconds
from flows.domain.drift.report import markdown
from flows.domain.drift.schedule import is_due
from flows.domain.errors import ModelServeError, SpecInvalid
from flows.domain.pages import plain_markdown
from flows.domain.spec import parse_spec
from flows.steps.drift_check import Drawing, check_model
from flows.wiring import ControlPlane, control_plane

log = logging.getLogger(__name__)

DRIFT = "drift_job"
"""Name of the drift job's heartbeat in the registry; an alert watches it."""
LIMIT = 4
"""Models checked at the same time."""


class DriftFailed(ModelServeError):
    """At least one check could not be finished; the message says which and why."""


def check_models(
    plane: ControlPlane,
    models: Sequence[str],
    limit: int = LIMIT,
    draw: Drawing = "found",
    since: float | None = None,
    until: float | None = None,
) -> list[DriftResult]:
    """Check many models, at most `limit` at a time; one model's trouble never keeps another waiting."""

    def one(model: str) -> DriftResult:
        try:
            return check_model(plane, model, since, until, draw=draw)
        except ModelServeError as error:  # unknown by now, or the registry is gone
            return DriftResult(model, None, Outcome.FAILED, str(error))

    with ThreadPoolExecutor(max_workers=limit, thread_name_prefix="drift") as pool:
        results = list(pool.map(one, models))
    if not any(result.outcome is Outcome.FAILED for result in results):
        plane.registry.beat(DRIFT)
    return results


def check_by_hand(
    plane: ControlPlane, models: Sequence[str] | None, since: str | None, until: str | None
) -> list[DriftResult]:
    """`modelserve drift`: the models named, or those that are due. Raises SpecInvalid for a bad time.

    Also what the CronJob runs: a model whose check cannot even begin is a failed result beside the others'.
    """
    now = datetime.now(UTC)
    begin, end = stretch(since, until, now)
    wanted = models or due_models(plane, now)
    draw: Drawing = "always" if len(wanted) == 1 else "found"
    return check_models(plane, wanted, draw=draw, since=begin, until=end)


def due_models(plane: ControlPlane, now: datetime) -> list[str]:
    """Models whose schedule has struck since their last check."""
    due = []
    for model in plane.registry.models():
        standing = plane.registry.standing(model)
        release = standing.stable or standing.canary
        if release is None:
            continue
        checks = plane.registry.drift_checks(model, limit=1)
        try:
            spec = parse_spec(plane.registry.spec(model, release.version), f"{release.name}/model.yaml")
            policy = spec.drift
        except SpecInvalid:  # the check itself says so; it must not keep the other models waiting
            policy = DriftPolicy()
        if is_due(policy, checks[0][0] if checks else None, now):
            due.append(model)
    return due


def stretch(since: str | None, until: str | None, now: datetime) -> tuple[float | None, float | None]:
    """Both ends as Unix seconds. SpecInvalid when one is no time, or they are the wrong way round."""
    begin, end = moment(since, now), moment(until, now)
    if begin is not None and end is not None and begin >= end:
        raise SpecInvalid(f"nothing lies between since {since} and until {until}; is it the other way round?")
    return begin, end


def moment(text: str | None, now: datetime) -> float | None:
    """Unix seconds of `2013-07-01`, `2013-07-01T12:00`, or an age such as `7d`. SpecInvalid otherwise."""
    if text is None:
        return None
    try:
        return now.timestamp() - seconds(text)
    except ValueError:
        at = float(to_seconds(pd.Series([text]))[0])
    if np.isnan(at):
        raise SpecInvalid(f"{text!r} is no time; write a date such as 2013-07-01, or an age such as 7d")
    return at


@flow(name="drift", flow_run_name="drift {model}", timeout_seconds=3600)
def drift(model: str, since: str | None = None, until: str | None = None) -> str:
    """Check one model's traffic for drift and act by its policy."""
    plane = control_plane()
    begin, end = stretch(since, until, datetime.now(UTC))
    result = check_model(plane, model, begin, end)
    _publish(result)
    if result.outcome is Outcome.FAILED:
        raise DriftFailed(f"{model}: {result.sentence}")
    return f"{result.outcome}: {result.sentence}"


@flow(name="drift-due", flow_run_name="drift of all models", timeout_seconds=3600)
def drift_due(limit: int = LIMIT) -> list[str]:
    """Check every model whose schedule has struck, at most `limit` at the same time."""
    plane = control_plane()
    results = check_models(plane, due_models(plane, datetime.now(UTC)), limit)
    for result in results:
        if result.shows:
            _publish(result)
    if results:
        rows = [
            {"model": r.model, "outcome": r.outcome.value, "rows": r.rows, "what": r.sentence}
            for r in results
        ]
        create_table_artifact(rows, key="drift", description="Drift checks of this run")
    _raise_failed(results)
    return [f"{result.model}: {result.outcome}: {result.sentence}" for result in results]


def _publish(result: DriftResult) -> None:
    text = plain_markdown(markdown(result))
    create_markdown_artifact(text, key=f"drift-{result.model}", description=result.sentence)
    if result.report:
        create_link_artifact(result.report, link_text="drift report", key=f"drift-report-{result.model}")


def _raise_failed(results: Sequence[DriftResult]) -> None:
    failed = [f"{result.model}: {result.sentence}" for result in results if result.outcome is Outcome.FAILED]
    if failed:
        raise DriftFailed("; ".join(failed))


def main(arguments: Sequence[str]) -> int:
    """Without Prefect: check the models named, or all that are due. 1 when a check could not be finished."""
    plane = control_plane()
    try:
        results = check_models(plane, list(arguments) or due_models(plane, datetime.now(UTC)))
    except ModelServeError as error:
        print(error, file=sys.stderr)
        return 1
    for result in results:
        print(f"{result.model}: {result.outcome}: {result.sentence}")
    return int(any(result.outcome is Outcome.FAILED for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
