"""A release that takes less, or answers otherwise, than the one that clients know."""

from __future__ import annotations

from typing import Any

import pytest

from flows.domain.signature import Signature, narrowed

OLD: dict[str, dict[str, Any]] = {
    "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "x": {"type": "number", "shape": [3]},
    "country": {"type": "string", "categories": ["FR", "DE", "MT"]},
    "height": {"type": "number", "nullable": True},
}


def signature(inputs: dict[str, dict[str, Any]], output: dict[str, Any] | None = None) -> Signature:
    columns = [{"name": name, **column} for name, column in inputs.items()]
    return Signature.model_validate(
        {"inputs": columns, "outputs": [{"name": "y", "type": "number", **(output or {})}]}
    )


def changed(name: str, **changes: Any) -> dict[str, dict[str, Any]]:
    return {**OLD, name: {**OLD.get(name, {}), **changes}}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (changed("city", type="string"), "input city is new and required: rows without it are refused"),
        ({name: OLD[name] for name in OLD if name != "x"}, "input x is gone: rows that carry it are refused"),
        (changed("height", type="integer"), "input height: number has become integer"),
        (changed("x", shape=[4]), "input x: the shape [3] has become [4]"),
        (changed("height", nullable=False), "input height: null is not taken any more"),
        (changed("age", minimum=18), "input age: nothing below 18 is taken any more"),
        (changed("age", maximum=99), "input age: nothing above 99 is taken any more"),
        (changed("x", maximum=1), "input x: nothing above 1 is taken any more"),
        (changed("country", categories=["FR", "US"]), "input country: DE, MT are no category any more"),
    ],
)
def test_whatever_clients_send_and_is_no_longer_taken_is_said(
    inputs: dict[str, dict[str, Any]], says: str
) -> None:
    assert narrowed(signature(OLD), signature(inputs)) == [says]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"name": "z"}, "output y: is gone"),
        ({"type": "string"}, "output y: number has become string"),
        ({"shape": [2]}, "output y: the shape [] has become [2]"),
        ({"nullable": True}, "output y: may be null now"),
    ],
)
def test_whatever_clients_read_and_is_answered_otherwise_is_said(output: dict[str, Any], says: str) -> None:
    assert narrowed(signature(OLD), signature(OLD, output)) == [says]


@pytest.mark.parametrize(
    "inputs",
    [
        OLD,
        changed("city", type="string", nullable=True),
        changed("age", type="number"),
        changed("age", minimum=-5, maximum=None),
        changed("country", categories=["FR", "DE", "MT", "US"]),
        changed("country", categories=[]),
        changed("x", nullable=True, description="three numbers"),
    ],
)
def test_a_release_that_takes_as_much_or_more_is_no_news(inputs: dict[str, dict[str, Any]]) -> None:
    assert narrowed(signature(OLD), signature(inputs)) == []
