"""What every verb begins with: the settings of this call, and the control plane of a stack that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from flows.domain.errors import ModelServeError
from flows.settings import Settings

if TYPE_CHECKING:
    from flows.wiring import ControlPlane


def settings() -> Settings:
    """The settings of this call. Raises ModelServeError that names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            f"MODELSERVE_{'__'.join(str(part) for part in detail['loc']).upper()}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise ModelServeError("; ".join(problems)) from error


def plane() -> ControlPlane:
    """The control plane of a stack that runs. Raises ModelServeError at once when it does not."""
    from flows.adapters import stack
    from flows.wiring import control_plane

    chosen = settings()
    ours = chosen.mode == "local" and "registry_url" not in chosen.model_fields_set
    if ours and not stack.Supervisor(chosen).alive():
        raise ModelServeError(f"the stack is not running (state folder {chosen.state}): modelserve up")
    return control_plane(chosen)
