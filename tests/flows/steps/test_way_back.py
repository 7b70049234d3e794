"""The way back is always open: a rollback that is repeated never leaves users with nobody."""

from __future__ import annotations

import pytest

from flows.domain.errors import ModelServeError
from flows.domain.release import Phase
from flows.steps.restore import retire, roll_back
from flows.wiring import ControlPlane
from tests.flows.conftest import Story


@pytest.fixture
def two(story: Story) -> Story:
    """Version 2 serves, version 1 stands behind it, version 3 was only registered."""
    story.register(1, 2, 3)
    story.promoted(1)
    story.promoted(2)
    return story


def test_a_second_rollback_leaves_the_last_release_where_it_is(plane: ControlPlane, two: Story) -> None:
    roll_back(plane, "flights", "it is three in the morning")
    assert two.weights() == {"flights-v1": 100}
    for _ in range(2):
        again = roll_back(plane, "flights", "again, by mistake")
        assert again.retreat is None
        assert "v1 is the last release that serves" in again.sentence
        assert "retire" in again.sentence
        assert two.weights() == {"flights-v1": 100}
    assert two.phases()[1] is Phase.STABLE


def test_what_was_left_can_be_gone_back_to(plane: ControlPlane, two: Story) -> None:
    roll_back(plane, "flights", "by mistake")
    assert roll_back(plane, "flights", "it was fine", to=2).retreat is not None
    assert two.weights() == {"flights-v2": 100}
    assert roll_back(plane, "flights", "it was not", to=1).retreat is not None
    assert two.weights() == {"flights-v1": 100}


def test_a_model_is_emptied_by_a_verb_of_its_own_and_that_is_undone(plane: ControlPlane, two: Story) -> None:
    retired = retire(plane, "flights", "nobody asks any more")
    assert "nobody (503)" in retired.sentence
    assert two.weights() == {}
    assert roll_back(plane, "flights", "again").retreat is None
    back = roll_back(plane, "flights", "they do ask", to=2)
    assert back.retreat is not None
    assert two.weights() == {"flights-v2": 100}
    assert two.phases()[2] is Phase.STABLE
    assert "flights v2 was brought back (they do ask)" in back.sentence


def test_a_model_that_is_being_promoted_is_not_retired(plane: ControlPlane, two: Story) -> None:
    two.begin(3, 50)
    with pytest.raises(ModelServeError, match=r"v3 is being promoted.*modelserve abort flights"):
        retire(plane, "flights", "nobody asks any more")
    assert two.weights() == {"flights-v2": 50, "flights-v3": 50}


@pytest.mark.parametrize("how", ["registered", "rejected"])
def test_nobody_is_sent_back_to_a_release_that_never_served(
    plane: ControlPlane, two: Story, how: str
) -> None:
    if how == "rejected":
        from flows.domain.promotion import State
        from flows.steps.restore import restore

        promotion = two.begin(3, 50)
        restore(plane, "flights", "5 % errors", State.REJECTED, only=promotion)
    with pytest.raises(ModelServeError, match=r"v3 has never been stable.*stable before: 1, 2.*--unproven"):
        roll_back(plane, "flights", "quick", to=3)
    assert two.weights() == {"flights-v2": 100}
