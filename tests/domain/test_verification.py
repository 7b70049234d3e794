"""Golden requests: what counts as the same answer."""

from __future__ import annotations

from typing import Any

import pytest

from flows.domain.errors import SpecInvalid
from flows.domain.verification import Sample, mismatch, parse_samples


def sample(predictions: list[Any] | None, status: int = 200, tolerance: float = 1e-3) -> Sample:
    return Sample([{}], predictions, status, tolerance, 1)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([{"p": 0.5, "late": True}], [{"p": 0.5009, "late": True}]),
        ([0.5], [0.5]),
        ([[1.0, 2.0]], [[1.0, 2.0005]]),
        (["a"], ["a"]),
    ],
)
def test_equal_within_the_tolerance(expected: list[Any], found: list[Any]) -> None:
    assert mismatch(sample(expected), 200, {"predictions": found}) is None


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        ([{"p": 0.5}], [{"p": 0.502}], "predictions[0].p is 0.502 instead of 0.5 ± 0.001"),
        ([{"p": 0.5}], [{"q": 0.5}], "predictions[0] has the keys ['q'] instead of ['p']"),
        ([1.0], [1.0, 1.0], "predictions has 2 entries instead of 1"),
        ([True], [1], "predictions[0] is 1 instead of True"),
        ([0.5], ["0.5"], "predictions[0] is '0.5' instead of 0.5"),
        ([0.5], [float("nan")], "predictions[0] is nan instead of 0.5 ± 0.001"),
        ([0.5], None, "predictions is None instead of [0.5]"),
    ],
)
def test_every_difference_is_named_with_its_path(expected: list[Any], found: Any, message: str) -> None:
    assert mismatch(sample(expected), 200, {"predictions": found}) == message


def test_a_request_that_must_be_refused() -> None:
    assert mismatch(sample(None, status=422), 422, {"detail": "bad"}) is None
    assert mismatch(sample(None, status=422), 200, {}) == "answered HTTP 200 instead of 422: None"


def test_the_server_s_own_words_are_quoted() -> None:
    wrong = mismatch(sample([1]), 500, {"title": "Internal", "detail": "unseen destination 'XNA'"})
    assert wrong == "answered HTTP 500 instead of 200: unseen destination 'XNA'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sample"),
        ("{", "samples.jsonl: line 1: not valid JSON"),
        ("[]", "line 1: expected an object with a list under 'instances'"),
        ('{"instances": [1]}', "line 1: expected a list under 'predictions'"),
        ('{"instances": [1], "predictions": [1], "tolerence": 1}', "unknown key 'tolerence'; allowed: inst"),
        ('{"instances": [1], "predictions": [1], "tolerance": -1}', "'tolerance' must be a number"),
    ],
)
def test_a_bad_samples_file_names_the_line(text: str, message: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse_samples(text, "samples.jsonl")
    assert message in str(caught.value)


def test_blank_lines_are_skipped_and_lines_counted() -> None:
    parsed = parse_samples('\n{"instances": [1], "predictions": [2], "tolerance": 0}\n', "s")
    assert parsed == [Sample([1], [2], 200, 0.0, 2)]
