"""`restore`: put a model's traffic where the registry says it is safe. The one way back.

The failing flow, the alert, the sweep and a person all call it, from wherever they are, as often as they
like: it takes the model's turn, so two never work against each other, and the second finds nothing to do.
It needs the registry and the platform, nothing else.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from flows.adapters.registry import Turn
from flows.domain.errors import (
    DependencyDown,
    ModelServeError,
    PromotionRunning,
    ReleaseNotReady,
    ReleaseUnproven,
)
from flows.domain.promotion import (
    Promotion,
    Retreat,
    Standing,
    State,
    due,
    newest,
    plan_emptying,
    plan_retreat,
    settled,
    unpreceded,
)
from flows.domain.release import Release
from flows.domain.routes import Routes
from flows.domain.spec import parse_spec
from flows.steps.proving import prove
from flows.wiring import ControlPlane

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What `restore` did. `retreat` is None when there was nothing to take back."""

    model: str
    retreat: Retreat | None
    routes: Routes
    seconds: float
    """From the call to the data plane serving the route."""
    last: int | None = None
    """The version that stays because nothing stands behind it."""

    @property
    def sentence(self) -> str:
        weights = ", ".join(f"{name} {weight} %" for name, weight in self.routes.weights.items() if weight)
        serving = weights or "nobody (503): there is no earlier release"
        if self.retreat is None:
            if self.last is not None:
                return (
                    f"{self.model}: nothing to roll back: v{self.last} is the last release that serves; "
                    f"another one: modelserve rollback {self.model} --to VERSION; "
                    f"nobody at all: modelserve retire {self.model}"
                )
            return f"{self.model}: nothing to roll back; traffic goes to {serving}"
        if self.retreat.leaves is None:
            what = f"v{self.retreat.target} was brought back"
        else:
            what = f"v{self.retreat.leaves} was taken out"
        return (
            f"{self.model} {what} ({self.retreat.reason}); "
            f"traffic goes to {serving}, {self.seconds:.1f} s after the decision"
        )


def restore(
    plane: ControlPlane,
    model: str,
    reason: str,
    state: State = State.ABORTED,
    to: int | None = None,
    only: Promotion | None = None,
    leaving: int | None = None,
    *,
    empty: bool = False,
) -> Restored:
    """Take the canary out, or, when there is none, go back from the stable to the previous release (or `to`).

    `only`: a promotion that must still be open and driven by the same run, else nothing is taken back. A
    failing flow names its own, so that it never rolls back what somebody else has begun meanwhile.
    `leaving`: the version that must still be the newest in service. Of two who ask at the same moment, the
    second finds it gone, and does not take out the next one.
    `empty`: take out whatever serves; nobody answers afterwards. Without it, a stable release with nothing
    behind it leaves only when the promotion that made it stable fails (`only`).
    An earlier retreat that was interrupted is finished first and is then the result. The intention is on
    record before any traffic moves; traffic moves before phases change.
    Raises ReleaseUnknown, ReleaseNotReady when the target does not come up, DependencyDown.
    """
    began = time.monotonic()
    with plane.registry.turn(model) as turn:
        standing = turn.standing()
        retreat = standing.retreat
        if to is not None:
            turn.release(to)  # raises ReleaseUnknown
        if retreat is None and _is_meant(standing, only, leaving):
            if empty:
                retreat = plan_emptying(standing, reason)
            else:
                retreat = plan_retreat(standing, state, reason, to, last=only is not None)
            if retreat is None and only is not None:
                turn.end(only, state, reason)  # its canary has left already; only its row is still open
        elif retreat is not None and to is not None and to != retreat.leaves:
            retreat = replace(retreat, target=to)
        if retreat is None:
            standing = turn.standing()
            routes = _reroute(plane, turn, standing)
            alone = standing.stable is not None and standing.previous is None and standing.promotion is None
            last = standing.stable.version if standing.stable is not None and alone and to is None else None
            return Restored(model, None, routes, time.monotonic() - began, last)
        try:
            # Before anything is on record: a target that cannot start (ReleaseNotReady) must not be the one
            # that every later rollback tries.
            routes = settled(_started(plane, turn, retreat))
        except DependencyDown:
            _intend(turn, standing, retreat)
            raise
        _intend(turn, standing, retreat)
        turn.intend_route(routes)
        plane.platform.route(model, routes)
        seconds = time.monotonic() - began
        turn.settle_retreat(retreat, standing.promotion)
        _stop(plane, turn, standing)
    return Restored(model, retreat, routes, seconds)


def roll_back(
    plane: ControlPlane,
    model: str,
    reason: str,
    to: int | None = None,
    state: State = State.ABORTED,
    leaving: int | None = None,
    *,
    unproven: bool = False,
) -> Restored:
    """Roll `model` back, once: of two who ask at the same moment, the second finds it done.

    `leaving`: the version that is meant; the newest in service if none is named. Raises ReleaseUnproven when
    `to` has never been stable; with `unproven` it is scanned and asked its samples instead (`prove`).
    """
    standing = plane.registry.standing(model)
    if to is not None:
        proven = plane.registry.proven(model)
        if plane.registry.release(model, to).version in proven:
            pass
        elif unproven:
            prove(plane, model, to)
        else:
            known = ", ".join(map(str, proven)) or "none"
            raise ReleaseUnproven(
                f"{model} v{to} has never been stable, or was rejected; versions that were stable before: "
                f"{known}; to send everybody to v{to} all the same: --unproven, which scans it and asks its "
                "samples first"
            )
    if leaving is None:
        release = newest(standing)
        leaving = release.version if release is not None else None
    return restore(plane, model, reason, state, to, leaving=leaving)


def retire(plane: ControlPlane, model: str, reason: str) -> Restored:
    """Take the model out: nobody answers for it until `roll_back` names a version.

    Raises PromotionRunning.
    """
    promotion = plane.registry.standing(model).promotion
    if promotion is not None:
        raise PromotionRunning(
            f"{model} v{promotion.version} is being promoted; end that first: modelserve abort {model}"
        )
    return restore(plane, model, reason, empty=True)


def bring_home(
    plane: ControlPlane,
    promotion: Promotion,
    reason: str,
    state: State = State.FAILED,
    *,
    late: bool = False,
) -> Restored:
    """End a promotion that broke off through no fault of its release; the sweep, the automations and the
    failing flow all do the same.

    A release that the judge has already condemned is taken out as rejected, or as unproven. One that was
    certified and serves everybody stays: only the watching stopped. So does one that nothing precedes when
    the deadline is what ends it (`late`, or the judge has seen it pass). A canary leaves.
    """
    model = promotion.model
    with plane.registry.turn(model) as turn:
        standing = turn.standing()
        if not _is_open(standing, promotion):
            return Restored(model, None, standing.route, 0.0)
        assert standing.promotion is not None
        watching = standing.promotion.state is State.WATCHING
        condemned = condemnation(plane, promotion)
        if watching and condemned is None and standing.retreat is None:
            routes = settled(standing.stable, standing.previous)
            turn.intend_route(routes)
            plane.platform.route(model, routes)
            turn.end(promotion, State.PROMOTED, f"certified; the watch after it ended early: {reason}")
            plane.platform.settle(model)
            return Restored(model, None, routes, 0.0)
        serving = standing.promotion.weight > 0 and standing.canary is not None
        only_one = serving and standing.stable is None and standing.retreat is None
        if only_one and condemned is None and (late or _expired(plane, promotion)):
            why = f"{reason}; nothing precedes the release, so it stays, unproven"
            return Restored(model, None, stay(plane, turn, standing, promotion, why), 0.0)
    if condemned is not None:
        return restore(plane, model, condemned[1], condemned[0], only=promotion)
    return restore(plane, model, reason, state, only=promotion)


def roll_back_run(plane: ControlPlane, run: str, reason: str) -> Restored | None:
    """Take back what this Prefect flow run has left behind; None when it has left no promotion open.

    An automation may name a run that has completed, or whose promotion somebody else has taken over.
    """
    promotion = plane.registry.promotion_of_run(run)
    return None if promotion is None else bring_home(plane, promotion, reason)


def stay(plane: ControlPlane, turn: Turn, standing: Standing, promotion: Promotion, reason: str) -> Routes:
    """End the promotion of a release that nothing precedes as unproven: it serves on, as the stable, so that
    the next release has something to be compared with and something to go back to."""
    routes = settled(standing.canary)
    if standing.route != routes:
        turn.intend_route(routes)
        plane.platform.route(standing.model, routes)
    turn.stay(promotion, reason)
    plane.platform.settle(standing.model)
    return routes


def let_stay(plane: ControlPlane, promotion: Promotion, reason: str) -> bool:
    """End the watch of a first release that serves everybody, so that another one may follow; False when
    this is not what it is any more, or when its last verdict is against it."""
    with plane.registry.turn(promotion.model) as turn:
        standing = turn.standing()
        if not _is_open(standing, promotion) or not unpreceded(standing) or condemnation(plane, promotion):
            return False
        stay(plane, turn, standing, promotion, reason)
    return True


def condemnation(plane: ControlPlane, promotion: Promotion) -> tuple[State, str] | None:
    """As what and why the last stored verdict sends the traffic back; None when it does not.

    An earlier version went back when nothing could be seen, and took out only releases for want of evidence:
    such a verdict, found open, is not drawn any more.
    """
    stored = plane.registry.windows(promotion)
    if not stored or stored[-1].verdict["outcome"] != "rollback":
        return None
    kind, sentence = stored[-1].verdict["kind"], str(stored[-1].verdict["sentence"])
    if kind == "reject":
        return State.REJECTED, sentence
    if kind == "unobserved" or stored[-1].content["stable"] is None:
        return None
    return State.UNPROVEN, sentence


def _expired(plane: ControlPlane, promotion: Promotion) -> bool:
    """The judge has seen the policy's deadline pass."""
    stored = plane.registry.windows(promotion)
    return bool(stored) and bool(stored[-1].verdict["expired"])


def reconcile(plane: ControlPlane, model: str) -> Routes:
    """Make the data plane serve what the registry's rows call for now; finishes an interrupted retreat."""
    with plane.registry.turn(model) as turn:
        standing = turn.standing()
        if standing.retreat is None:
            return _reroute(plane, turn, standing)
    return restore(plane, model, "an interrupted rollback is finished").routes


def _is_meant(standing: Standing, only: Promotion | None, leaving: int | None) -> bool:
    if only is not None and not _is_open(standing, only):
        return False
    release = newest(standing)
    return leaving is None or (release is not None and release.version == leaving)


def _is_open(standing: Standing, promotion: Promotion) -> bool:
    found = standing.promotion
    return found is not None and (found.id, found.run) == (promotion.id, promotion.run)


def _intend(turn: Turn, standing: Standing, retreat: Retreat) -> None:
    if retreat != standing.retreat:
        turn.intend_retreat(retreat)


def _started(plane: ControlPlane, turn: Turn, retreat: Retreat) -> Release | None:
    """The retreat's target with its servers up. One that serves users already is good enough as it is."""
    if retreat.target is None:
        return None
    target = turn.release(retreat.target)
    spec = parse_spec(plane.registry.spec(target.model, target.version), f"{target.name}/model.yaml")
    try:
        plane.platform.start(target, spec, takes_over=True)
    except ReleaseNotReady:
        if plane.platform.routes(target.model).weight(target.name) == 0:
            raise
    return target


def _stop(plane: ControlPlane, turn: Turn, before: Standing) -> None:
    """Stop what was in service and is not any more; the sweep stops what cannot be stopped now."""
    serving = {release.version for release in turn.standing().releases if release.in_service}
    for release in before.releases:
        if not release.in_service or release.version in serving:
            continue
        try:
            plane.platform.stop(release)
            plane.platform.settle(release.model)
        except ModelServeError as error:
            log.warning("%s still has servers: %s", release.name, error)


def _reroute(plane: ControlPlane, turn: Turn, standing: Standing) -> Routes:
    routes = due(standing)
    if plane.platform.routes(standing.model) != routes:
        turn.intend_route(routes)
        plane.platform.route(standing.model, routes)
    return routes
