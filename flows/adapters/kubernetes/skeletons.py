"""Reads the manifests' skeletons from the checkout, where operators may adapt them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from flows.places import project

SKELETONS = project() / "k8s" / "release"


def read_skeletons(folder: Path = SKELETONS) -> dict[str, Any]:
    """The parsed skeletons by file name without suffix."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))}
