"""Where this person's stack lives, from whichever folder a verb is typed."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_state_path

from flows.domain.errors import ModelServeError

VARIABLE = "MODELSERVE_STATE"
HERE = Path(".modelserve")
RECORD = "state-folder"


def find() -> Path:
    """The state folder that is meant: the one that is set, the one in this folder, or the last `up`'s.

    Raises ModelServeError that says where was looked. Makes nothing.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if HERE.is_dir():
        return HERE
    recorded = _recorded()
    if recorded is not None and recorded.is_dir():
        return recorded
    last = f"that of the last 'modelserve up' ({recorded or 'never called'})"
    raise ModelServeError(
        f"no stack was found: {VARIABLE} is not set, {HERE.absolute()} is not there, nor is {last}; "
        "'modelserve up' starts one here"
    )


def find_or_own() -> Path:
    """As `find`, and without a stack a folder in the user's cache, for verbs that need none."""
    try:
        return find()
    except ModelServeError:
        return user_cache_path("modelserve") / "check"


def remember(state: Path) -> None:
    """Let verbs find this folder from elsewhere; a home that cannot be written to costs only that."""
    if VARIABLE in os.environ:
        return  # whoever sets it knows where it is
    try:
        record = _record()
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{state}\n")
    except OSError:
        return


def _record() -> Path:
    return user_state_path("modelserve") / RECORD


def _recorded() -> Path | None:
    try:
        return Path(_record().read_text().strip())
    except OSError:
        return None
