"""Fills the plain YAML skeletons under `k8s/release/` with a release's values.

A skeleton stays a readable manifest: `${name}` inside a text becomes text, a value that is only `${name}`
becomes the value itself (number, list, mapping), and a key whose value is None, or an empty list or
mapping that was filled in, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PLACEHOLDER = re.compile(r"\$\{([a-z_0-9]+)\}")


def fill(skeleton: Any, values: Mapping[str, Any]) -> Any:
    """A copy of `skeleton` with every placeholder replaced.

    Raises KeyError with the placeholder's name when `values` lacks it.
    """
    if isinstance(skeleton, dict):
        filled = {}
        for key, value in skeleton.items():
            result = fill(value, values)
            if not (_is_placeholder(value) and result in (None, [], {})):
                filled[key] = result
        return filled
    if isinstance(skeleton, list):
        return [fill(item, values) for item in skeleton]
    if isinstance(skeleton, str):
        return _fill_text(skeleton, values)
    return skeleton


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and PLACEHOLDER.fullmatch(value) is not None


def _fill_text(text: str, values: Mapping[str, Any]) -> Any:
    whole = PLACEHOLDER.fullmatch(text)
    if whole:
        return values[whole.group(1)]
    return PLACEHOLDER.sub(lambda match: str(values[match.group(1)]), text)
