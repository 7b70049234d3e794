"""Rows as packed bytes are the same rows: whatever is done with them, an array would give the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.inference.codec import TensorCodec, flattened
from serving.inference.rows import TensorPayload, Vectors, joined_payload
from serving.spec import read_model_file
from tests.serving.model_bundles import WIDTH

ROWS = st.lists(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=6
)


@pytest.fixture(scope="module")
def codec(bundles: dict[str, Path]) -> TensorCodec:
    return TensorCodec(read_model_file(bundles["affine"] / "model.yaml"))


def of(codec: TensorCodec, rows: list[list[float]], form: str) -> TensorPayload:
    """The same rows as a list, as an array (as from binary), and packed (as the cache leaves them)."""
    if form == "array":
        return codec.payload({"x": np.array(rows, np.float32)})
    payload = codec.decode(orjson.dumps({"instances": rows}))
    if form == "packed":
        codec.canonical(payload, 0)
        assert isinstance(payload.columns[0], Vectors)
    return payload


@given(rows=ROWS, other=ROWS, data=st.data())
def test_packed_rows_are_the_same_rows(
    codec: TensorCodec, rows: list[list[float]], other: list[list[float]], data: st.DataObject
) -> None:
    expected = np.array(rows, np.float32)
    packed = of(codec, rows, "packed")
    row = data.draw(st.integers(0, len(rows) - 1))
    array = of(codec, rows, "array")
    assert codec.canonical(packed, row) == codec.canonical(array, row)
    assert (
        b"".join(codec.canonical(packed, index) for index in range(len(rows))) == (expected + 0.0).tobytes()
    )
    np.testing.assert_array_equal(codec.features(packed, row)["x"], expected[row])
    start = data.draw(st.integers(0, len(rows) - 1))
    np.testing.assert_array_equal(
        flattened(packed.part(start, len(rows)).columns, np.float32), expected[start:]
    )
    np.testing.assert_array_equal(flattened(packed.pick([row, 0]).columns, np.float32), expected[[row, 0]])
    for form in ("list", "array", "packed"):
        beside = of(codec, other, form)
        both = flattened([packed.columns[0], beside.columns[0]], np.float32)
        np.testing.assert_array_equal(both, np.array([*rows, *other], np.float32))
        assert both.flags.writeable, "torch takes it as it is"
        joined = joined_payload([packed, beside])
        assert joined.count == len(rows) + len(other)
        np.testing.assert_array_equal(flattened(joined.columns, np.float32), both)


def test_minus_zero_is_zero_in_a_key_and_stays_in_the_row(codec: TensorCodec) -> None:
    packed = of(codec, [[-0.0, 1.0, 2.0, 3.0]], "packed")
    assert codec.canonical(packed, 0) == codec.canonical(of(codec, [[0.0, 1.0, 2.0, 3.0]], "list"), 0)
    assert np.signbit(flattened(packed.columns, np.float32)[0, 0])
