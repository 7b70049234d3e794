"""The OpenAPI document of one server: schemas, limits and examples from its model's own signature."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.inference.codec import MAX_STRING, NUMPY
from serving.inference.examples import example_row, example_value, instances_for
from serving.inference.model import LoadedModel
from serving.openapi.frames import PROBLEMS, json_answer, json_body, problems
from serving.openapi.jobs import job_paths
from serving.openapi.v2 import protocol_paths
from serving.settings import Settings
from serving.spec import Column, Datatype


def describe(model: LoadedModel, settings: Settings) -> dict[str, Any]:
    """The whole document as a dict."""
    version = settings.version
    examples = instances_for(model.spec, model.bundle.folder)[0][:2]
    paths = {
        "/predict": {"post": _predict(model)},
        "/feedback": {"post": _feedback()},
        **(job_paths(examples, settings.job_inputs) if settings.keeps_jobs else {}),
        **protocol_paths(model.spec, version),
        **_named_paths(model),
        "/healthz": {"get": _probe("Whether the process can still answer")},
        "/readyz": {"get": _probe("Whether the server takes traffic")},
        "/metrics": {"get": _probe("Prometheus metrics")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": model.spec.name,
            "version": version,
            "description": model.spec.description or f"Model {model.spec.name}, version {version}.",
        },
        "paths": paths,
        "components": {"schemas": {"Problem": _PROBLEM}},
    }


_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}


def _predict(model: LoadedModel) -> dict[str, Any]:
    spec = model.spec
    instances, _ = instances_for(spec, model.bundle.folder)
    outputs = spec.signature.outputs
    prediction = row_schema(outputs, {column.name: spec.datatype(column) for column in outputs})
    predicted: Any = example_row(outputs)
    if len(outputs) == 1:
        prediction = prediction["properties"][outputs[0].name]
        predicted = example_value(outputs[0])
    return {
        "summary": "Predict some rows",
        "operationId": "predict",
        "parameters": [
            {
                "name": "X-Request-Timeout",
                "in": "header",
                "description": "Seconds until the answer is of no use",
                "schema": {"type": "number", "exclusiveMinimum": 0},
            }
        ],
        "requestBody": json_body(instances_schema(model), {"instances": instances[:2]}),
        "responses": {
            "200": json_answer(
                "One prediction a row, in order",
                {
                    "type": "object",
                    "required": ["predictions"],
                    "properties": {"predictions": {"type": "array", "items": prediction}},
                },
                example={"predictions": [predicted]},
            ),
            **problems(*(status for status in PROBLEMS if status not in ("404", "409"))),
        },
    }


def _named_paths(model: LoadedModel) -> dict[str, Any]:
    """KServe's first protocol."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": [model.spec.name]}}
    failures = problems("401", "404", "429", "500", "503")
    answers = {"responses": {"200": json_answer("Yes", {"type": "object"}), **failures}}
    predict = _predict(model)
    return {
        "/": {"get": {"summary": "As /healthz", **answers}},
        "/v1/models": {"get": {"summary": "The name of the one model", **answers}},
        "/v1/models/{name}": {"get": {"summary": "As /readyz", "parameters": [name], **answers}},
        "/v1/models/{name}:predict": {
            "post": {
                **predict,
                "summary": "As /predict",
                "operationId": "predict_by_name",
                "parameters": [name, *predict["parameters"]],
                "responses": {**predict["responses"], **problems("404")},
            }
        },
    }


def instances_schema(model: LoadedModel) -> dict[str, Any]:
    """The schema of the body of /predict."""
    spec = model.spec
    inputs = spec.signature.inputs
    row = row_schema(inputs, {column.name: spec.datatype(column) for column in inputs})
    if len(inputs) == 1:
        row = {"anyOf": [row, row["properties"][inputs[0].name]]}
    return {
        "type": "object",
        "required": ["instances"],
        "additionalProperties": False,
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "maxItems": spec.serving.limits.max_rows,
                "items": row,
            }
        },
    }


def row_schema(columns: tuple[Column, ...], datatypes: dict[str, Datatype]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [column.name for column in columns if not column.nullable],
        "additionalProperties": False,
        "properties": {column.name: column_schema(column, datatypes[column.name]) for column in columns},
    }


def column_schema(column: Column, datatype: Datatype) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": [column.type, "null"] if column.nullable and not column.shape else column.type
    }
    if column.type == "number":
        limit = float(np.finfo(NUMPY[datatype]).max)
        schema["minimum"] = -limit if column.minimum is None else max(column.minimum, -limit)
        schema["maximum"] = limit if column.maximum is None else min(column.maximum, limit)
    elif column.type == "integer":
        info = np.iinfo(NUMPY[datatype])
        schema["minimum"] = int(info.min) if column.minimum is None else column.minimum
        schema["maximum"] = int(info.max) if column.maximum is None else column.maximum
    elif column.type == "string":
        schema["maxLength"] = MAX_STRING
    for dimension in reversed(column.shape):
        schema = {"type": "array", "minItems": dimension, "maxItems": dimension, "items": schema}
    if column.nullable and column.shape:
        schema["type"] = ["array", "null"]
    if column.description:
        schema["description"] = column.description
    return schema


_RECEIPT = "0123456789abcdef00000001-2-692a8f00-00112233445566778899aabbccddeeff"

_KEPT = {
    "status": {"const": "accepted"},
    "kept": {"type": "integer", "description": "Rows whose outcome was not told before"},
    "known": {"type": "integer", "description": "Rows of which the same was told before"},
    "conflicting": {"type": "integer", "description": "Rows of which something else was told before"},
}


def _feedback() -> dict[str, Any]:
    return {
        "summary": "Tell what turned out to be true for an earlier request",
        "operationId": "feedback",
        "requestBody": json_body(
            {
                "type": "object",
                "required": ["request_id", "outcomes"],
                "additionalProperties": False,
                "properties": {
                    "request_id": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": 128,
                        "description": "X-Feedback-Id of the answer",
                    },
                    "outcomes": {
                        "type": "array",
                        "description": "One outcome a row, null where it is not known; each is taken once",
                    },
                },
            },
            {"request_id": _RECEIPT, "outcomes": [1, None]},
        ),
        "responses": {
            "202": json_answer("Kept", {"type": "object", "properties": _KEPT}),
            **problems("400", "401", "404", "408", "413", "415", "422", "429", "500", "503"),
        },
    }


def _probe(summary: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "Yes", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **problems("503"),
        },
    }
