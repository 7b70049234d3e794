"""Generated files of the stack: rendered from `infra/local`, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jinja2

from flows.places import project

MARK = "MODELSERVE_STACK_OF"
"""Every process of a stack carries this variable with its state folder: so `down` finds orphans."""
TEMPLATES = project() / "infra" / "local"


def render(template: str, **values: Any) -> str:
    """The text of `infra/local/<template>` with every placeholder filled; a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    # As in JSON, which YAML and redis.conf read too. (Jinja's own `tojson` escapes for web pages.)
    environment.filters["quoted"] = lambda text: json.dumps(str(text), ensure_ascii=False)
    return environment.get_template(template).render(**values)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` atomically: readers see the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
