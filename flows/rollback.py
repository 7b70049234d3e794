"""`rollback`: the flow that takes a release out of the traffic, for people, alerts and automations."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.domain.errors import ModelServeError
from flows.domain.pages import plain_markdown
from flows.domain.promotion import State
from flows.steps.restore import roll_back, roll_back_run
from flows.wiring import control_plane


@flow(name="rollback", flow_run_name="rollback {model}", timeout_seconds=600)
def rollback(
    model: str = "",
    reason: str = "asked for by a person",
    to: int | None = None,
    run: str | None = None,
    leaving: int | None = None,
    against_the_release: bool = False,
    unproven: bool = False,
) -> str:
    """Take the model's canary out, or go back from its stable release to the previous one (or to `to`).

    Automations know the flow run that died and not its model: they give `run` alone. `leaving` names the
    version that is meant. With `against_the_release` it is recorded as rejected: evidence spoke, not a
    person's wish. `unproven`: `to` may be a release that has never been stable; it is scanned and asked its
    samples first.
    """
    plane = control_plane()
    if run:
        run = run.removeprefix("prefect.flow-run.")  # as automations name it
        restored = roll_back_run(plane, run, reason)
        if restored is None:
            return f"flow run {run} has left no promotion open: nothing to roll back"
    elif model:
        state = State.REJECTED if against_the_release else State.ABORTED
        restored = roll_back(plane, model, reason, to, state, leaving, unproven=unproven)
    else:
        raise ModelServeError("name the model to roll back, or the flow run that has left it")
    log = get_run_logger()
    log.info(restored.sentence)
    try:
        create_markdown_artifact(
            plain_markdown(f"**{restored.sentence}**"), key=f"rollback-{restored.model}", description=reason
        )
    except Exception as error:  # users are safe already; a report must not make this look undone
        log.warning("the rollback was not reported: %s", error)
    return restored.sentence
