"""The array type that everything between the codec and the runtimes passes on."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""Rows along the first axis, of any type of numbers, booleans or strings."""
