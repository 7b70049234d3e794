"""A person's word before a step: asked for in the Prefect UI, given there or with `modelserve approve`.

The registry keeps the answer, and the form of the UI is one of two ways to give it. While the person thinks,
the step before is watched on, so a canary that turns bad meanwhile goes back without them; the policy's
deadline ends the waiting.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.input.run_input import Keyset, RunInput, keyset_from_paused_state
from prefect.runtime import flow_run
from prefect.states import Paused
from pydantic import Field

from flows.domain.errors import ModelServeError
from flows.domain.promotion import Promotion
from flows.domain.spec import parse_spec
from flows.wiring import ControlPlane

log = logging.getLogger(__name__)

GRACE_SECONDS = 60
"""Prefect's own clock for the form runs out this much later than the promotion's deadline, which restores."""


class Approval(RunInput):
    """The form in the Prefect UI."""

    approver: str = Field(min_length=1, description="Who you are; recorded.")
    comment: str = Field(min_length=1, description="Why you let it go on; recorded.")


def approve(plane: ControlPlane, model: str, step: int, approver: str, comment: str) -> None:
    """Let the model's open promotion go on to `step` percent.

    Raises ModelServeError when no promotion is open, since it was rolled back for example, or when its policy
    asks for no approval before this step.
    """
    promotion = plane.registry.standing(model).promotion
    if promotion is not None:
        source = plane.registry.spec(model, promotion.version)
        gates = parse_spec(source, f"{model} v{promotion.version}").promotion.approve_before
        if step not in gates:
            waiting = ", ".join(f"{gate} %" for gate in gates) or "no step"
            raise ModelServeError(f"{step} % waits for nobody; its policy asks for approval before {waiting}")
    plane.registry.approve(model, step, approver, comment)


class Gate:
    """The approval that one step waits for. Calling it says whether the promotion may go on."""

    def __init__(self, plane: ControlPlane, promotion: Promotion, step: int) -> None:
        self._plane, self._promotion, self._step = plane, promotion, step
        self._asked = False
        self._form: _Form | None = None

    def __call__(self) -> bool:
        registry = self._plane.registry
        if registry.approved(self._promotion, self._step):
            if self._form is not None:
                self._form.close()
            return True
        if not self._asked:
            self._ask()
        answer = self._form.answer() if self._form is not None else None
        if answer is None:
            return False
        registry.approve(self._promotion.model, self._step, answer.approver, answer.comment)
        return True

    def _ask(self) -> None:
        self._asked = True
        model = self._promotion.model
        how = f"resume the flow run in the Prefect UI, or: modelserve approve {model} {self._step}"
        print(f"waiting for a person before {self._step} %: {how}")
        self._plane.registry.note(model, "waiting", {"before": self._step, "how": how}, self._promotion)
        left = (self._promotion.deadline - datetime.now(UTC)).total_seconds()
        self._form = _show_form(f"approve-{self._step}", max(0, int(left)) + GRACE_SECONDS)


class _Form:
    """Prefect's form for a paused flow run. Every trouble with it is logged: the registry decides."""

    def __init__(self, run: UUID, keyset: Keyset) -> None:
        self._run, self._keyset = run, keyset

    def answer(self) -> Approval | None:
        """What a person has filled in; None when nobody has yet."""
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._run).state
            if state is None or not state.is_running():
                return None
            found = Approval.load(self._keyset, self._run)
            return found if isinstance(found, Approval) else None
        except Exception as error:
            log.warning("the approval form could not be read: %s", error)
            return None

    def close(self) -> None:
        """Somebody has approved elsewhere: the run goes on in the UI as well."""
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._run).state
                if state is not None and state.is_paused():
                    given = {"approver": "modelserve approve", "comment": "see the promotion's events"}
                    client.resume_flow_run(self._run, run_input=given)
        except Exception as error:
            log.warning("the flow run still looks paused: %s", error)


def _show_form(key: str, seconds: int) -> _Form | None:
    """Pause the flow run that this is called from, with a form; None when the Prefect server is away.

    Prefect's own `pause_flow_run` would block, and with it the watching and the look at who has the turn.
    """
    run = flow_run.id
    if run is None:
        return None
    try:
        paused: State[object] = Paused(timeout_seconds=seconds, pause_key=key)
        keyset = keyset_from_paused_state(paused)
        paused.state_details.run_input_keyset = {str(part): key for part, key in keyset.items()}
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(run), paused)
        Approval.save(keyset, UUID(run))
    except Exception as error:
        log.warning("no form in the Prefect UI: %s", error)
        return None
    return _Form(UUID(run), keyset)
