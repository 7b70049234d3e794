"""The steps of a promotion keep their hands off what somebody else has set."""

from __future__ import annotations

import pytest

from flows.domain.errors import PromotionLost, RouteConflict
from flows.domain.promotion import State
from flows.domain.routes import Routes
from flows.promote import shift
from flows.steps.restore import restore
from flows.wiring import ControlPlane
from tests.flows.conftest import Story


def test_a_route_that_somebody_else_has_changed_is_not_written_over(
    plane: ControlPlane, story: Story
) -> None:
    """Between the look of a watched window and the next step, a person may have moved the traffic."""
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 10)
    by_hand = Routes({"flights-v1": 80, "flights-v2": 20})
    plane.platform.route("flights", by_hand)
    with pytest.raises(RouteConflict, match="changed by somebody else"):
        shift.fn(plane, promotion, 50)
    assert plane.platform.routes("flights") == by_hand
    assert plane.registry.promotion(promotion.id).weight == 10


def test_a_flow_that_has_lost_its_turn_moves_nothing(plane: ControlPlane, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    promotion = story.begin(2, 10)
    restore(plane, "flights", "by hand", State.ABORTED)
    with pytest.raises(PromotionLost):
        shift.fn(plane, promotion, 50)
    assert story.weights() == {"flights-v1": 100}
