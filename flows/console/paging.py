"""What is longer than the screen is paged, as git does it; what is piped is written as it is."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console, RenderableType

LESS = "FRX"
"""Quit when it fits on one screen, keep the colours, leave it on the screen afterwards."""


def show(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print the parts one after another; on a terminal through the pager that PAGER names, else less."""
    if not console.is_terminal:
        for part in parts:
            console.print(part)
        return
    os.environ.setdefault("LESS", LESS)
    with console.pager(styles=True):
        for part in parts:
            console.print(part)
