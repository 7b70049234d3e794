"""The disk under the state folder is full for a while in the middle of a promotion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from flows.domain.promotion import State
from tests.chaos.world import World

pytestmark = pytest.mark.timeout(400)

BLOCK = bytes(1 << 20)


def write_on(file: BinaryIO, block: bytes) -> NoReturn:
    while True:
        file.write(block)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte fits any more until the body is over."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (len(BLOCK), 1):
                with pytest.raises(OSError, match="No space left"):
                    write_on(file, BLOCK[:size])
        yield
    finally:
        ballast.unlink()


@pytest.mark.parametrize("seconds", [10, pytest.param(30, marks=pytest.mark.thorough)])
def test_a_full_disk_stops_nobody_and_loses_nothing(world: World, seconds: int) -> None:
    before, story = world.stable, world.story(f"disk of the state folder full for {seconds} s")
    version, _ = world.promote()
    world.at_weight(version, 10)
    story.strikes()
    with full(world.settings.state):
        time.sleep(seconds)
    ended = world.ended(version, 150)
    serving = version if ended.state is State.PROMOTED else before
    story.ends(version, State.PROMOTED, State.FAILED, serving=serving)
