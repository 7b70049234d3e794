"""What the OpenAPI document says about the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from serving.inference.examples import example_row
from serving.openapi.frames import json_answer, json_body, problems
from serving.spec import Column, ModelFile

_PARAMETERS = {"type": "object", "description": "binary_data_size, binary_data, binary_data_output"}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "parameters": _PARAMETERS,
        "data": {"type": "array", "description": "The values, nested or in one row; absent in binary"},
    },
}
_METADATA = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_STATISTICS = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {"model_stats": {"type": "array", "items": {"type": "object"}}},
}


def protocol_paths(model: ModelFile, version: str) -> dict[str, Any]:
    """The paths below /v2."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": [model.name]}}
    release = {"name": "version", "in": "path", "required": True, "schema": {"enum": [version]}}

    def reading(summary: str, schema: dict[str, Any], *parameters: Any) -> dict[str, Any]:
        return {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {
                "200": json_answer("Yes", schema),
                **problems("401", "404", "429", "500", "503"),
            },
        }

    paths: dict[str, Any] = {
        "/v2": {"get": reading("The server and its extensions", {"type": "object"})},
        "/v2/health/live": {"get": reading("As /healthz", {"type": "object"})},
        "/v2/health/ready": {"get": reading("As /readyz", {"type": "object"})},
        "/v2/repository/index": {"post": reading("The one model that is here", {"type": "array"})},
        "/v2/repository/models/{name}/load": {
            "post": reading("Yes, when it is the model that is here", {"type": "object"}, name)
        },
        "/v2/repository/models/{name}/unload": {
            "post": {
                "summary": "Refused: the model stays as long as its server",
                "parameters": [name],
                "responses": problems("400", "401", "404", "409", "429", "500", "503"),
            }
        },
        "/v2/models": {"get": reading("The name of the one model", {"type": "object"})},
        "/v2/models/stats": {"get": reading("What it has done so far", _STATISTICS)},
    }
    for path, parameters in (
        ("/v2/models/{name}", [name]),
        ("/v2/models/{name}/versions/{version}", [name, release]),
    ):
        paths[path] = {"get": reading("The model's signature", _METADATA, *parameters)}
        paths[path + "/ready"] = {"get": reading("As /readyz", {"type": "object"}, *parameters)}
        paths[path + "/stats"] = {"get": reading("What it has done so far", _STATISTICS, *parameters)}
        paths[path + "/config"] = {
            "get": reading("Tensors and batching, as Triton spells them", {"type": "object"}, *parameters)
        }
        paths[path + "/infer"] = {"post": _infer(model, parameters)}
    return paths


def _infer(model: ModelFile, parameters: list[Any]) -> dict[str, Any]:
    inputs = model.signature.inputs
    row = example_row(inputs)
    return {
        "summary": "Predict, by the Open Inference Protocol",
        "description": "Also with the binary tensor extension (Inference-Header-Content-Length).",
        "parameters": parameters,
        "requestBody": json_body(
            {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "parameters": _PARAMETERS,
                    "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
                    "outputs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
                        },
                    },
                },
            },
            {"inputs": [_example(model, column, row) for column in inputs]},
        ),
        "responses": {
            "200": json_answer(
                "One tensor an output",
                {
                    "type": "object",
                    "required": ["model_name", "model_version", "outputs"],
                    "properties": {"outputs": {"type": "array", "items": _TENSOR}},
                },
            ),
            **problems("400", "401", "404", "408", "413", "415", "429", "500", "503", "504"),
        },
    }


def _example(model: ModelFile, column: Column, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": column.name,
        "shape": [1, *column.shape],
        "datatype": model.datatype(column),
        "data": [row[column.name]],
    }
