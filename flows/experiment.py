"""`experiment`: an A/B test between two releases in service, until outcomes decide or somebody stops it."""

from __future__ import annotations

import logging
from typing import Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.domain.experiment import Plan
from flows.domain.pages import plain_markdown
from flows.domain.release import release_name
from flows.steps.experimenting import Ended, report_markdown, run
from flows.wiring import control_plane

log = logging.getLogger(__name__)


@flow(name="experiment", flow_run_name="experiment {model} v{a} against v{b}")
def experiment(
    model: str,
    a: int,
    b: int,
    share: int = 50,
    sticky: Literal["cookie", "header", "none"] = "cookie",
    measure: str = "outcome",
    alpha: float = 0.05,
    minimum: int = 100,
    hours: float = 336,
    look_seconds: float = 15,
) -> str:
    """Compare two releases in service on the outcomes of live traffic.

    Args:
        model: its name in the registry.
        a, b: the versions; `b` gets `share` % of the traffic.
        sticky: how a visitor stays on his release.
        measure: `outcome` (reported values, boolean or 0 to 1; more is better), or the name of an output
            that is right when it equals the reported outcome.
        alpha: the chance of calling equal releases different, at however many looks.
        minimum: outcomes that each arm must have before a decision.
        hours: when to give up.
        look_seconds: time between two looks.

    Returns the finding in one sentence. Cancelling the run ends the experiment and gives the traffic back.
    """
    plan = Plan(model, release_name(model, a), release_name(model, b), share, sticky, measure, alpha)
    plane = control_plane()
    ended = run(plane, plan, minimum, hours * 3600, look_seconds, print)
    _publish(plan, ended)
    return ended.sentence


def _publish(plan: Plan, ended: Ended) -> None:
    """The report in the Prefect UI; an experiment does not fail because of it."""
    try:
        create_markdown_artifact(
            plain_markdown(report_markdown(plan, ended)),
            key=f"experiment-{plan.model}",
            description=ended.sentence,
        )
    except Exception as error:  # the server may be away; the finding is in the log and in the return value
        log.warning("the report of the experiment could not be published: %s", error)
