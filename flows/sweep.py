"""`sweep`: once a minute, bring home every promotion and experiment that nobody drives any more.

The last net. It runs as a Prefect flow and, with the same code, as a plain command from a CronJob, which
needs the registry and the platform but no Prefect server.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from prefect import flow

from flows.domain.errors import ModelServeError
from flows.domain.promotion import Promotion
from flows.domain.release import parse_release_name
from flows.domain.spec import parse_spec
from flows.steps.experimenting import give_back_abandoned
from flows.steps.restore import Restored, bring_home, reconcile
from flows.steps.telling import tell
from flows.wiring import ControlPlane, control_plane

log = logging.getLogger(__name__)

SWEEP = "sweep"
"""Name of the sweep's heartbeat in the registry; an alert watches it."""


@dataclass(frozen=True)
class Swept:
    restored: tuple[Restored, ...]
    stopped: tuple[str, ...]
    """Releases whose servers were left over."""
    problems: tuple[str, ...]
    given_back: tuple[str, ...] = ()
    """Experiments that nobody drove any more, a sentence each."""
    untold: tuple[str, ...] = ()
    """What people could not be told. The sweep has done its work all the same."""

    @property
    def sentences(self) -> list[str]:
        lines = [restored.sentence for restored in self.restored]
        lines += self.given_back
        lines += [f"{name}: left-over servers stopped" for name in self.stopped]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += self.untold
        return lines or ["nothing to do: every promotion is driven, every rollback settled"]


def sweep_once(plane: ControlPlane) -> Swept:
    """Restore abandoned promotions, finish interrupted rollbacks, stop left-over servers, tell people.

    One model's trouble never keeps another from being swept.
    """
    restored: list[Restored] = []
    problems: list[str] = []
    # Interrupted rollbacks first: they say how the promotion beside them ends.
    for model in plane.registry.retreating():
        try:
            reconcile(plane, model)
        except ModelServeError as error:
            problems.append(f"{model}: {error}")
    for promotion, late in plane.registry.abandoned(plane.settings.lease_seconds):
        try:
            if late and _watches_blind(plane, promotion):
                continue
            reason = "its deadline is over" if late else "its flow run is gone"
            restored.append(bring_home(plane, promotion, reason, late=late))
        except ModelServeError as error:
            problems.append(f"{promotion.model}: {error}")
    given_back = give_back_abandoned(plane, problems)
    stopped = _stop_left_over(plane, problems)
    if not problems:
        plane.registry.beat(SWEEP)
    # Last: a mail server that does not answer keeps no traffic waiting.
    untold = tell(plane)
    return Swept(tuple(restored), tuple(stopped), tuple(problems), tuple(given_back), tuple(untold))


def _watches_blind(plane: ControlPlane, promotion: Promotion) -> bool:
    """Its flow lives and stores windows in which nothing can be seen: the judge waits, and so does the sweep.

    A flow that hangs stores none.
    """
    silent = plane.registry.seconds_since_window(promotion)
    if silent is None or plane.registry.windows(promotion)[-1].verdict["kind"] != "unobserved":
        return False
    text = plane.registry.spec(promotion.model, promotion.version)
    window = parse_spec(text, "model.yaml").promotion.window_seconds
    return silent < 3 * window + plane.settings.lease_seconds


def _stop_left_over(plane: ControlPlane, problems: list[str]) -> list[str]:
    """Stop servers of releases that are in no phase that serves, or may have to."""
    stopped = []
    for name in sorted(plane.platform.running() - plane.registry.in_service()):
        try:
            model, version = parse_release_name(name)
            with plane.registry.turn(model) as turn:
                standing = turn.standing()
                release = turn.release(version)
                # Looked at again under the turn: a promotion of it may have begun since.
                if not release.in_service and standing.retreat is None:
                    plane.platform.stop(release)
                    stopped.append(name)
        except (ModelServeError, ValueError) as error:
            problems.append(f"{name}: {error}")
    return stopped


@flow(name="sweep", flow_run_name="sweep", timeout_seconds=300)
def sweep() -> list[str]:
    """Restore canaries past their deadline or without a live run; finish interrupted rollbacks."""
    swept = sweep_once(control_plane())
    for sentence in swept.sentences:
        log.info(sentence)
    if swept.problems:
        raise ModelServeError("; ".join(swept.problems))
    return swept.sentences
