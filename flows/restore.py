"""`restore`: put a model's traffic where the registry says it is safe. The one way back.

The failing flow, the alert, the sweep and a person all call it, from wherever they are, as often as they
like: it takes the model's turn, so two never work against each other, and the second finds nothing to do.
It needs the registry and the platform, nothing else.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from flows.domain.errors import ModelServeError
from flows.domain.promotion import Promotion, Retreat, Standing, State, due, plan_retreat, settled
from flows.domain.routes import Routes
from flows.domain.spec import parse_spec
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

    @property
    def sentence(self) -> str:
        weights = ", ".join(f"{name} {weight} %" for name, weight in self.routes.weights.items() if weight)
        serving = weights or "nobody (503): there is no earlier release"
        if self.retreat is None:
            return f"{self.model}: nothing to roll back; traffic goes to {serving}"
        return (
            f"{self.model} v{self.retreat.leaves} was taken out ({self.retreat.reason}); "
            f"traffic goes to {serving}, {self.seconds:.1f} s after the decision"
        )


def restore(
    plane: ControlPlane,
    model: str,
    reason: str,
    state: State = State.ABORTED,
    to: int | None = None,
    only: Promotion | None = None,
) -> Restored:
    """Take the canary out, or, when there is none, go back from the stable to the previous release (or `to`).

    `only`: a promotion that must still be open and driven by the same run, else nothing is taken back. A
    failing flow names its own, so that it never rolls back what somebody else has begun meanwhile.
    An earlier retreat that was interrupted is finished first and is then the result. The intention is on
    record before any traffic moves; traffic moves before phases change.
    Raises ReleaseUnknown, ReleaseNotReady when the target does not come up, DependencyDown.
    """
    began = time.monotonic()
    with plane.registry.turn(model) as turn:
        standing = turn.standing()
        retreat = standing.retreat
        if retreat is None and (only is None or _is_open(standing, only)):
            retreat = plan_retreat(standing, state, reason, to)
        if retreat is None:
            return Restored(model, None, _reroute(plane, standing, due(standing)), time.monotonic() - began)
        turn.intend_retreat(retreat)
        if retreat.target is not None:
            target = standing.version(retreat.target)
            spec = parse_spec(plane.registry.spec(model, target.version), f"{target.name}/model.yaml")
            plane.platform.start(target, spec)
            routes = settled(target)
        else:
            routes = Routes()
        turn.intend_route(routes)
        plane.platform.route(model, routes)
        seconds = time.monotonic() - began
        turn.settle_retreat(retreat, standing.promotion)
    leaving = standing.version(retreat.leaves)
    try:
        plane.platform.stop(leaving)
        plane.platform.settle(model)
    except ModelServeError as error:
        # Users are safe already; the sweep stops what is left over.
        log.warning("%s still has servers: %s", leaving.name, error)
    return Restored(model, retreat, routes, seconds)


def reconcile(plane: ControlPlane, model: str) -> Routes:
    """Make the data plane serve what the registry's rows call for now; finishes an interrupted retreat."""
    with plane.registry.turn(model) as turn:
        standing = turn.standing()
        if standing.retreat is None:
            return _reroute(plane, standing, due(standing))
    return restore(plane, model, "an interrupted rollback is finished").routes


def _is_open(standing: Standing, promotion: Promotion) -> bool:
    found = standing.promotion
    return found is not None and (found.id, found.run) == (promotion.id, promotion.run)


def _reroute(plane: ControlPlane, standing: Standing, routes: Routes) -> Routes:
    if standing.releases and plane.platform.routes(standing.model) != routes:
        plane.platform.route(standing.model, routes)
    return routes
