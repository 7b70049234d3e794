"""`rollback`: the flow that takes a release out of the traffic, for people, alerts and automations."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.domain.errors import ModelServeError
from flows.domain.promotion import Promotion, State
from flows.restore import Restored, restore
from flows.wiring import ControlPlane, control_plane


def roll_back(
    plane: ControlPlane,
    model: str,
    reason: str,
    to: int | None = None,
    state: State = State.ABORTED,
    run: str | None = None,
) -> Restored:
    """Roll `model` back, once. `run`: only what this Prefect flow run has left behind.

    An automation may name a run that has completed, or whose promotion somebody else has taken over: then
    nothing is taken back, and the route is put to what the registry says.
    """
    only = _left_by(plane, model, run) if run else None
    if run and only is None:
        return Restored(model, None, plane.registry.standing(model).route, 0.0)
    return restore(plane, model, reason, state, to, only=only)


def _left_by(plane: ControlPlane, model: str, run: str) -> Promotion | None:
    promotion = plane.registry.standing(model).promotion
    return promotion if promotion is not None and promotion.run == run else None


@flow(name="rollback", flow_run_name="rollback {model}", timeout_seconds=600)
def rollback(
    model: str = "",
    reason: str = "asked for by a person",
    to: int | None = None,
    run: str | None = None,
    against_the_release: bool = False,
) -> str:
    """Take the model's canary out, or go back from its stable release to the previous one (or to `to`).

    Automations know the flow run that died and not its model: they give `run` alone. With
    `against_the_release` the release is recorded as rejected: evidence spoke, not a person's wish.
    """
    plane = control_plane()
    run = run.removeprefix("prefect.flow-run.") if run else None  # as automations name it
    if run and not model:
        found = plane.registry.promotion_of_run(run)
        if found is None:
            return f"flow run {run} has left no promotion open: nothing to roll back"
        model = found.model
    if not model:
        raise ModelServeError("name the model to roll back, or the flow run that has left it")
    state = State.REJECTED if against_the_release else State.FAILED if run else State.ABORTED
    restored = roll_back(plane, model, reason, to, state, run)
    get_run_logger().info(restored.sentence)
    create_markdown_artifact(f"**{restored.sentence}**", key=f"rollback-{model}", description=reason)
    return restored.sentence
