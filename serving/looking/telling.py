"""`python -m serving look`: what is found in a file, as JSON for the control plane."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from serving.errors import PackageNeeded, StartupError
from serving.looking import Asked, look
from serving.spec import Column


def tell(kind: str, path: Path, report: Path, inputs: list[str], *, trust_pickle: bool) -> int:
    """Write `report`: the parts of model.yaml, or {"needs": …} for a package that is lacking.

    The exit code; with 1 the last line of standard error is what is wrong.
    """
    try:
        asked = Asked(trust_pickle, tuple(parse_input(text) for text in inputs))
        content = look(kind, path, asked).told()
    except PackageNeeded as problem:
        content = {"needs": problem.requirement}
        print(problem, file=sys.stderr)
    except StartupError as problem:
        print(problem, file=sys.stderr)
        return 1
    # Libraries print what they like, so not on standard output.
    report.write_text(json.dumps(content), encoding="utf-8")
    return 0


def parse_input(text: str) -> Column:
    """`image:number:3x224x224`. StartupError for anything else."""
    name, _, rest = text.partition(":")
    kind, _, sizes = rest.partition(":")
    try:
        shape = tuple(int(size) for size in sizes.split("x")) if sizes else ()
        return Column.model_validate({"name": name, "type": kind or "number", "shape": shape})
    except (ValueError, ValidationError) as error:
        raise StartupError(
            f"--input {text}: expected NAME:TYPE:SHAPE, such as image:number:3x224x224; TYPE is number, "
            "integer, "
            "boolean or string"
        ) from error
