"""What a server says that does not become ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.inference.model import load_model
from serving.self_check import self_check
from serving.settings import Settings


def refusal(bundle: Path) -> str:
    """The one line that the start ends with; a failed test when the model would be served."""
    with pytest.raises(StartupError) as raised:
        accepted(bundle)
    message = str(raised.value)
    assert "\n" not in message
    return message


def accepted(bundle: Path) -> None:
    """The start up to ready, without a server. StartupError."""
    self_check(load_model(Settings(bundle=str(bundle))), "1")
