"""Carries out what a model's policy wants after a drift check: freeze, retrain, roll back."""

from __future__ import annotations

import logging

from flows.domain.drift.findings import DriftResult
from flows.domain.drift.policy import Consequence, DriftPolicy
from flows.domain.errors import ModelServeError
from flows.domain.release import parse_release_name
from flows.steps.restore import roll_back
from flows.wiring import ControlPlane

log = logging.getLogger(__name__)


def carry_out(plane: ControlPlane, result: DriftResult, chosen: Consequence, policy: DriftPolicy) -> str:
    """Do it; return what was done as one sentence. A consequence that fails is said, not raised: the check
    itself has succeeded and must be recorded."""
    reason = f"drift check of {result.release}: {result.outcome.replace('_', ' ')}: {result.sentence}"
    try:
        return {"freeze": _freeze, "retrain": _retrain, "rollback": _roll_back}.get(chosen, _nothing)(
            plane, result, reason, policy, chosen
        )
    except ModelServeError as error:
        log.warning("%s: the consequence %r failed: %s", result.model, chosen, error)
        return f"{chosen} failed: {error}"


def _nothing(
    _plane: ControlPlane, _result: DriftResult, _reason: str, _policy: DriftPolicy, chosen: Consequence
) -> str:
    return "recorded, as the policy wants" if chosen == "record" else "alert: the drift metrics fire it"


def _freeze(
    plane: ControlPlane, result: DriftResult, reason: str, _policy: DriftPolicy, _chosen: Consequence
) -> str:
    if plane.registry.standing(result.model).frozen:
        return "promotions were frozen already"
    plane.registry.freeze(result.model, reason)
    return f"promotions are frozen until: modelserve thaw {result.model}"


def _retrain(
    _plane: ControlPlane, result: DriftResult, reason: str, policy: DriftPolicy, _chosen: Consequence
) -> str:
    """Start the training flow, once for a release however often the check repeats; again if that failed."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.deployments import run_deployment

    assert policy.training is not None  # the policy does not parse without it
    key = f"drift-{result.release}-{policy.training}"
    try:
        while True:  # along the runs that ended badly, each of which names the next one's key
            run = run_deployment(
                policy.training,
                parameters={"model": result.model, "reason": reason},
                timeout=0,
                as_subflow=False,
                idempotency_key=key,
            )
            assert isinstance(run, FlowRun)
            if run.state is None or not run.state.is_final() or run.state.is_completed():
                break
            key = str(run.id)
    except Exception as error:  # Prefect raises its own, httpx's and OS errors
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelServeError(
            f"training {policy.training!r} did not start ({text}); start it by hand"
        ) from error
    return f"training {policy.training!r} was started ({run.name})"


def _roll_back(
    plane: ControlPlane, result: DriftResult, reason: str, _policy: DriftPolicy, _chosen: Consequence
) -> str:
    assert result.release is not None  # a check that found something has checked a release
    if not plane.registry.cool_down(result.model, plane.settings.cooldown_seconds):
        return "not rolled back: that happened a moment ago; a person must look"
    try:
        # The release that was checked, and no newer one: a canary that replaces it is not to blame.
        version = parse_release_name(result.release)[1]
        restored = roll_back(plane, result.model, reason, leaving=version)
    except BaseException:
        plane.registry.end_cool_down(result.model)
        raise
    if restored.retreat is None:
        plane.registry.end_cool_down(result.model)
        return f"not rolled back: {result.release} is not the newest release in service"
    return restored.sentence
