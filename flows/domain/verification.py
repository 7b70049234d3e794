"""Does a release answer its golden requests as it did when it was packaged? The comparison, without I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flows.domain.errors import SpecInvalid

ALLOWED = {"instances", "predictions", "tolerance", "status"}


@dataclass(frozen=True)
class Sample:
    """A golden request: what is sent, and the predictions or the HTTP status that must come back."""

    instances: list[Any]
    predictions: list[Any] | None
    status: int
    tolerance: float
    line: int


def parse_samples(text: str, source: str) -> list[Sample]:
    """Parse `samples.jsonl`. Raises SpecInvalid with the file, the line and what is wrong."""
    samples = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{source}: line {number}"
        try:
            content = json.loads(line)
        except ValueError as error:
            raise SpecInvalid(f"{where}: not valid JSON: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("instances"), list):
            raise SpecInvalid(f"{where}: expected an object with a list under 'instances'")
        if unknown := content.keys() - ALLOWED:
            raise SpecInvalid(
                f"{where}: unknown key {sorted(unknown)[0]!r}; allowed: {', '.join(sorted(ALLOWED))}"
            )
        status = content.get("status", 200)
        predictions = content.get("predictions")
        if status == 200 and not isinstance(predictions, list):
            raise SpecInvalid(f"{where}: expected a list under 'predictions', or a 'status' other than 200")
        tolerance = content.get("tolerance", 1e-4)
        if not isinstance(tolerance, int | float) or tolerance < 0:
            raise SpecInvalid(
                f"{where}: 'tolerance' must be a number that is not negative, not {tolerance!r}"
            )
        samples.append(Sample(content["instances"], predictions, status, float(tolerance), number))
    if not samples:
        raise SpecInvalid(f"{source}: holds no sample; a release needs at least one golden request")
    return samples


def mismatch(sample: Sample, status: int, body: Any) -> str | None:
    """What is wrong with an answer, as half a sentence; None when it is right."""
    if status != sample.status:
        detail = body.get("detail") or body.get("title") if isinstance(body, dict) else body
        return f"answered HTTP {status} instead of {sample.status}: {str(detail)[:200]}"
    if sample.predictions is None:
        return None
    found = body.get("predictions") if isinstance(body, dict) else None
    return _difference(sample.predictions, found, sample.tolerance, "predictions")


def _difference(expected: Any, found: Any, tolerance: float, path: str) -> str | None:
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            return f"{path} has the keys {sorted(found)} instead of {sorted(expected)}"
        pairs = [(f"{path}.{key}", expected[key], found[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{path} has {len(found)} entries instead of {len(expected)}"
        pairs = [(f"{path}[{i}]", e, f) for i, (e, f) in enumerate(zip(expected, found, strict=True))]
    elif _is_number(expected) and _is_number(found):
        if abs(expected - found) <= tolerance:
            return None
        return f"{path} is {found!r} instead of {expected!r} ± {tolerance:g}"
    else:
        same = expected == found and isinstance(expected, bool) == isinstance(found, bool)
        return None if same else f"{path} is {found!r} instead of {expected!r}"
    return next((d for where, e, f in pairs if (d := _difference(e, f, tolerance, where)) is not None), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
