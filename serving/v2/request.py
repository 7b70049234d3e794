"""An infer request as a client of the protocol makes it, for the self-check at start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from serving.inference.codec import NUMPY
from serving.spec import ModelFile
from serving.v2.tensors import to_binary


def infer_request(
    model: ModelFile, rows: Sequence[dict[str, Any]], *, binary: bool
) -> tuple[bytes, int | None]:
    """The body for rows by input name (no nulls), and the length of its JSON head when it is binary."""
    inputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for column in model.signature.inputs:
        datatype = model.datatype(column)
        values = np.array([row[column.name] for row in rows], dtype=NUMPY[datatype])
        tensor: dict[str, Any] = {"name": column.name, "shape": list(values.shape), "datatype": datatype}
        if binary:
            parts.append(to_binary(values, datatype))
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = values.reshape(-1).tolist()
        inputs.append(tensor)
    head = orjson.dumps({"inputs": inputs})
    return (b"".join((head, *parts)), len(head)) if binary else (head, None)
