"""Statistics and configuration of the model, as Triton's extensions of the protocol spell them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.samples import Sample

from serving.spec import Column, Datatype, ModelFile

EXTENSIONS = ["binary_tensor_data", "model_repository", "statistics", "model_configuration"]
_BYTES = "TYPE_STRING"
"""Triton's word for BYTES; the other types are called as on the wire."""


def statistics(samples: Iterable[Sample], name: str, version: str) -> dict[str, Any]:
    """The answer of `stats`, from the server's own series: of all workers, durations in nanoseconds.

    Requests are counted in `success` and `fail`, model calls in `compute_infer`, rows in `inference_count`
    and in the cache's fields. Making arrays and answers is part of `success` and not measured apart.
    """
    found: dict[str, float] = {}
    for sample in samples:
        key = sample.name.removeprefix("modelserve_")
        if "outcome" in sample.labels:
            key += "_" + sample.labels["outcome"]
        if "le" not in sample.labels:
            found[key] = found.get(key, 0.0) + sample.value

    def measured(count: str, seconds: str | None = None) -> dict[str, int]:
        nanoseconds = found.get(seconds, 0.0) * 1e9 if seconds is not None else 0.0
        return {"count": round(found.get(count, 0.0)), "ns": round(nanoseconds)}

    return {
        "model_stats": [
            {
                "name": name,
                "version": version,
                "last_inference": round(found.get("last_inference_timestamp_seconds", 0.0) * 1e3),
                "inference_count": round(found.get("batch_rows_sum", 0.0)),
                "execution_count": round(found.get("batch_rows_count", 0.0)),
                "inference_stats": {
                    "success": measured("predictions_total_success", "prediction_seconds_total_success"),
                    "fail": measured("predictions_total_fail", "prediction_seconds_total_fail"),
                    "queue": measured("queue_duration_seconds_count", "queue_duration_seconds_sum"),
                    "compute_input": measured("not_measured"),
                    "compute_infer": measured(
                        "inference_duration_seconds_count", "inference_duration_seconds_sum"
                    ),
                    "compute_output": measured("not_measured"),
                    "cache_hit": measured("cache_hits_total"),
                    "cache_miss": measured("cache_misses_total"),
                },
                "response_stats": {},
                "batch_stats": [],
                "memory_usage": [],
            }
        ]
    }


def configuration(model: ModelFile, version: str) -> dict[str, Any]:
    """The answer of `config`: the fields of Triton's ModelConfig that have a meaning here."""

    def tensor(column: Column) -> dict[str, Any]:
        # Without the batch's axis, which `max_batch_size` stands for.
        return {
            "name": column.name,
            "data_type": _type(model.datatype(column)),
            "dims": list(column.shape) or [1],
            **({} if column.shape else {"reshape": {"shape": []}}),
        }

    return {
        "name": model.name,
        "platform": f"{model.serving.runtime.kind}_modelserve",
        "backend": model.serving.runtime.kind,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": model.serving.limits.max_rows,
        "input": [
            {**tensor(column), "format": "FORMAT_NONE", "optional": column.nullable}
            for column in model.signature.inputs
        ],
        "output": [tensor(column) for column in model.signature.outputs],
        "dynamic_batching": {"preferred_batch_size": [model.serving.batching.max_rows]},
        "parameters": {"version": {"string_value": version}},
    }


def _type(datatype: Datatype) -> str:
    return _BYTES if datatype == "BYTES" else f"TYPE_{datatype}"
