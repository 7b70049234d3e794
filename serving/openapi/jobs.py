"""What the OpenAPI document says about jobs."""

from __future__ import annotations

from typing import Any

from serving.jobs.inputs import uri_pattern
from serving.openapi.frames import json_answer, json_body, problems

_TIME = {"type": ["string", "null"], "format": "date-time"}
_COUNT = {"type": "integer", "minimum": 0}
_STATES = ["queued", "running", "done", "failed", "cancelled"]
_JOB: dict[str, Any] = {
    "type": "object",
    "required": ["id", "version", "state", "rows", "rows_done", "rows_failed", "progress", "pages"],
    "properties": {
        "id": {"type": "string"},
        "version": {"type": "string", "description": "The release that runs it"},
        "state": {"enum": _STATES},
        "rows": {"type": ["integer", "null"], "description": "Not known until the input has been read"},
        "rows_done": _COUNT,
        "rows_failed": _COUNT,
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "pages": _COUNT,
        "error": {"type": ["string", "null"]},
        "created_at": _TIME,
        "started_at": _TIME,
        "finished_at": _TIME,
        "results_uri": {"type": ["string", "null"], "description": "A JSON file that lists the result files"},
    },
}
_RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["row"],
    "properties": {
        "row": _COUNT,
        "prediction": {"description": "As in the predictions of /predict"},
        "error": {
            "type": "object",
            "required": ["status", "title", "detail"],
            "properties": {
                "status": {"type": "integer"},
                "title": {"type": "string"},
                "detail": {"type": "string"},
                "pointer": {"type": "string", "description": "JSON pointer of the bad field in the row"},
            },
        },
    },
}
_PAGE: dict[str, Any] = {
    "type": "object",
    "required": ["id", "page", "pages", "next", "results"],
    "properties": {
        "id": {"type": "string"},
        "page": _COUNT,
        "pages": _COUNT,
        "next": {"type": ["string", "null"]},
        "results": {"type": "array", "items": _RESULT},
    },
}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
}
_NUMBER = {
    "name": "page",
    "in": "query",
    "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
}


def job_paths(examples: list[Any], folders: list[str]) -> dict[str, Any]:
    """The paths below /batch-predict; `examples` are rows of the model, `folders` where inputs may be."""

    def asking(summary: str, operation: str, answer: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
        return {
            "summary": summary,
            "operationId": operation,
            "parameters": [_ID, *more],
            "responses": {
                "200": json_answer("As it is now", answer),
                **problems("400", "401", "404", "429", "500", "503"),
            },
        }

    return {
        "/batch-predict": {"post": _create(examples, folders)},
        "/batch-predict/{id}": {
            "get": asking("How far a job is", "job", _JOB),
            "delete": asking("Cancel a job: rows that have not started never run", "cancelJob", _JOB),
        },
        "/batch-predict/{id}/results": {
            "get": asking("A page of a job's results", "jobResults", _PAGE, _NUMBER)
        },
    }


def _create(examples: list[Any], folders: list[str]) -> dict[str, Any]:
    body = {
        "type": "object",
        "additionalProperties": False,
        "oneOf": [{"required": ["instances"]}, {"required": ["input_uri"]}],
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "description": "As in /predict, but any number; a row that breaks the signature fails alone",
            },
            "input_uri": {
                "type": "string",
                "pattern": uri_pattern(folders),
                "description": "A file below the store's folder inputs, or below another one that is allowed",
            },
            "format": {
                "enum": ["json", "jsonl", "parquet"],
                "description": "Where the suffix does not say it; else jsonl",
            },
        },
    }
    return {
        "summary": "Predict many rows, and ask later",
        "operationId": "batchPredict",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key and body again give the same job",
                "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
            }
        ],
        "requestBody": json_body(
            body,
            {"instances": examples},
            **{
                "jsonl": {"schema": {"type": "string", "description": "One row a line"}},
                "x-parquet": {"schema": {"type": "string", "format": "binary"}},
            },
        ),
        "responses": {
            "202": {
                **json_answer("Taken; Location says where to ask", _JOB),
                "headers": {"Location": {"schema": {"type": "string"}}},
            },
            **problems("400", "401", "408", "413", "415", "422", "429", "500", "503"),
        },
    }
