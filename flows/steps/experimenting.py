"""An A/B test while it runs: route, look, decide, give back; and giving back what a killed one has left.

A promotion asks "does it do harm?", an experiment "which is better?". It holds the split still, looks at the
outcomes that clients report through `POST /feedback`, and gives the traffic back at the end. Whoever else
moves the model's traffic meanwhile (a promotion, a rollback, a person) ends it: an experiment never fights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flows.adapters.outcomes import OutcomeStream, Position
from flows.domain.errors import DependencyDown, ModelServeError, PromotionRunning, ReleaseNotReady
from flows.domain.experiment import Arm, Comparison, Plan, compare, imbalance
from flows.domain.promotion import Standing, due
from flows.domain.release import parse_release_name
from flows.domain.spec import parse_spec
from flows.wiring import ControlPlane

log = logging.getLogger(__name__)

STARTED, ENDED = "experiment-started", "experiment-ended"
SILENT_SECONDS = 120.0
"""An experiment that has not been heard of for so long, or for four of its looks, is nobody's."""


@dataclass(frozen=True)
class Ended:
    """How an experiment ended, and what it had found by then."""

    comparison: Comparison
    why: Literal["decided", "out of time", "route changed"]
    warning: str | None = None

    @property
    def sentence(self) -> str:
        reason = "" if self.why == "decided" else f" (ended: {self.why})"
        caution = f". Careful: {self.warning}" if self.warning else ""
        return f"{self.comparison.sentence}{reason}{caution}"


def run(
    plane: ControlPlane,
    plan: Plan,
    minimum: int,
    seconds: float,
    look_seconds: float,
    say: Callable[[str], None],
) -> Ended:
    """Route, look, decide, give back. A run that died is taken up where its outcomes stood.

    Raises PromotionRunning, ReleaseNotReady and what the platform raises; the route is then given back.
    """
    try:
        _start_servers(plane, plan)
    except ReleaseNotReady:
        _settle(plane, plan)
        raise
    stream = OutcomeStream(plane.settings.redis_url, plan.model, _left_behind(plane, plan))
    try:
        _begin(plane, plan, stream.position, look_seconds)
        return _watch(plane, plan, stream, minimum, seconds, look_seconds, say)
    finally:
        stream.close()
        _give_back(plane, plan)


def _watch(
    plane: ControlPlane,
    plan: Plan,
    stream: OutcomeStream,
    minimum: int,
    seconds: float,
    look_seconds: float,
    say: Callable[[str], None],
) -> Ended:
    arms = {name: Arm(name) for name in (plan.a, plan.b)}
    until = plane.clock.time() + seconds
    said = ""
    while True:
        _be_heard(plane, plan)
        try:
            _count(plan, stream, arms)
        except DependencyDown as error:
            say(str(error))
        found = compare(arms[plan.a], arms[plan.b], plan.alpha)
        if found.sentence != said:
            said = found.sentence
            say(said)
        warning = None
        if plan.sticky == "none":
            warning = imbalance(plan, stream.answers.get(plan.a, 0), stream.answers.get(plan.b, 0))
        if found.better is not None and min(arm.count for arm in arms.values()) >= minimum:
            return Ended(found, "decided", warning)
        if plane.clock.time() >= until:
            return Ended(found, "out of time", warning)
        plane.clock.sleep(look_seconds)
        if not _still_ours(plane, plan):
            return Ended(found, "route changed", warning)


def _be_heard(plane: ControlPlane, plan: Plan) -> None:
    """Say that this experiment is driven; without it the sweep gives the traffic back."""
    try:
        plane.registry.hear_experiment(plan.model)
    except DependencyDown as error:
        log.warning("%s", error)


def _count(plan: Plan, stream: OutcomeStream, arms: dict[str, Arm]) -> None:
    for row in stream.read():
        score = plan.success(row.prediction, row.outcome)
        if score is not None and row.release in arms:
            arm = arms[row.release]
            arms[row.release] = Arm(arm.release, arm.count + 1, arm.total + score)


def _still_ours(plane: ControlPlane, plan: Plan) -> bool:
    try:
        return plane.platform.routes(plan.model) == plan.routes()
    except DependencyDown as error:
        log.warning("%s", error)
        return True  # no news; whoever moves traffic later will be seen then


def _start_servers(plane: ControlPlane, plan: Plan) -> None:
    """Both releases must be in service, so that the sweep keeps their servers, and must answer."""
    standing = plane.registry.standing(plan.model)
    _refuse_to_disturb(standing)
    for name in (plan.a, plan.b):
        release = plane.registry.release(*parse_release_name(name))
        if not release.in_service:
            raise ReleaseNotReady(
                f"{name} is not in service (it is {release.phase}): an experiment compares a model's stable "
                "and previous release, or a canary that was kept; promote it first"
            )
        text = plane.registry.spec(release.model, release.version)
        plane.platform.start(release, parse_spec(text, f"{name}/model.yaml"))


def _refuse_to_disturb(standing: Standing) -> None:
    if standing.promotion is not None or standing.retreat is not None:
        raise PromotionRunning(
            f"{standing.model} is being promoted or rolled back; start the experiment when that has ended"
        )


def _begin(plane: ControlPlane, plan: Plan, position: Position, look_seconds: float) -> None:
    with plane.registry.turn(plan.model) as turn:
        _refuse_to_disturb(turn.standing())
        turn.intend_route(plan.routes())
        plane.platform.route(plan.model, plan.routes())
    began = {"plan": asdict(plan), "position": asdict(position), "look_seconds": look_seconds}
    plane.registry.note(plan.model, STARTED, began)


def _give_back(plane: ControlPlane, plan: Plan) -> None:
    """The route that the registry calls for; nothing when somebody else has set another one."""
    with plane.registry.turn(plan.model) as turn:
        standing = turn.standing()
        if standing.promotion is None and plane.platform.routes(plan.model) == plan.routes():
            routes = due(standing)
            turn.intend_route(routes)
            plane.platform.route(plan.model, routes)
    _settle(plane, plan)
    plane.registry.note(plan.model, ENDED, {"plan": asdict(plan)})
    plane.registry.forget_experiment(plan.model)


def _settle(plane: ControlPlane, plan: Plan) -> None:
    """Nothing when a promotion has begun: it needs the releases at their size, and settles them itself."""
    with plane.registry.turn(plan.model) as turn:
        if turn.standing().promotion is None:
            plane.platform.settle(plan.model)


def _left_behind(plane: ControlPlane, plan: Plan) -> Position | None:
    """Where the same experiment began, when its run died: its route stands and no end is on record."""
    events = plane.registry.events(plan.model, kinds=(STARTED, ENDED))
    if not events or events[-1].kind != STARTED or not _still_ours(plane, plan):
        return None
    # The same plan may have been taken up more than once; it began at the first of those.
    first = events[-1]
    for event in reversed(events):
        if event.kind != STARTED or event.detail["plan"] != asdict(plan):
            break
        first = event
    return Position(**first.detail["position"]) if first.detail["plan"] == asdict(plan) else None


def give_back_abandoned(plane: ControlPlane, problems: list[str]) -> list[str]:
    """Give the traffic back where an experiment was killed and nobody has taken it up; a sentence each.

    What is in the way of one is added to `problems`, and keeps no other.
    """
    sentences = []
    for model, silence in plane.registry.experiments().items():
        try:
            if _given_back(plane, model, silence):
                sentences.append(
                    f"{model}: an experiment that nobody drives any more was ended; the traffic is back"
                )
        except ModelServeError as error:
            problems.append(f"{model}: {error}")
    return sentences


def _given_back(plane: ControlPlane, model: str, silence: float) -> bool:
    detail = _newest_start(plane, model)
    if detail is None:
        plane.registry.forget_experiment(model)
        return False
    if silence < max(SILENT_SECONDS, 4 * float(detail.get("look_seconds", 0))):
        return False
    _give_back(plane, Plan(**detail["plan"]))
    return True


def _newest_start(plane: ControlPlane, model: str) -> dict[str, Any] | None:
    """What the experiment that is open said when it began; None when the newest one has ended."""
    events = plane.registry.events(model, kinds=(STARTED, ENDED))
    return events[-1].detail if events and events[-1].kind == STARTED else None


def report_markdown(plan: Plan, ended: Ended) -> str:
    """The finding, the arms, and the interval of their difference, as a page."""
    found = ended.comparison
    rows = "\n".join(f"| {arm.release} | {arm.count} | {arm.mean:.2%} |" for arm in (found.a, found.b))
    return (
        f"# {plan.a} against {plan.b}\n\n**{ended.sentence}**\n\n"
        f"| release | outcomes | mean of `{plan.measure}` |\n|---|---|---|\n{rows}\n\n"
        f"The difference lies between {100 * found.low:+.2f} and {100 * found.high:+.2f} points with "
        f"probability {1 - plan.alpha:.0%}, at whatever time one looks.\n"
    )
