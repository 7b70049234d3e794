"""The frames that every route's description has: JSON bodies, JSON answers, problems."""

from __future__ import annotations

from typing import Any

PROBLEMS = {
    "400": "The bytes are not JSON",
    "401": "No valid key",
    "404": "No such model, version or job",
    "408": "The body came too slowly, or the deadline that the request brought has passed",
    "409": "Not in the state that the server is in",
    "413": "The body is too large",
    "415": "Not a JSON media type",
    "422": "The input does not match the signature",
    "429": "Too many requests of this client",
    "500": "The model failed",
    "503": "Starting, draining or full; see Retry-After",
    "504": "The server's own deadline passed",
}
"""Status of an answer that is no success → what it means."""


def problems(*statuses: str) -> dict[str, Any]:
    """Response objects of the given error statuses."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": PROBLEMS[status], "content": content} for status in statuses}


def json_body(schema: dict[str, Any], example: Any, **others: dict[str, Any]) -> dict[str, Any]:
    """A required request body. `others`: subtypes of `application/` → their media type objects."""
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    return {
        "required": True,
        "content": content | {f"application/{name}": one for name, one in others.items()},
    }


def json_answer(description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A response object with a JSON body. `more` goes beside the schema, such as an example."""
    return {"description": description, "content": {"application/json": {"schema": schema, **more}}}
