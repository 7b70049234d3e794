"""The HTTP side of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson

from serving.errors import BadRequest, NotFound, Problem
from serving.exchange import JSON, Answer, Call, Handler, problem_answer
from serving.receipts import HEADER as RECEIPT
from serving.service import Service, State
from serving.v2.protocol import Protocol

_BINARY = b"application/octet-stream"
_MODELS = "/v2/models/"
_INFER = "/infer"
_EMPTY = b"{}"


class OpenInference:
    """Every route under /v2. Errors are problem documents that also carry the protocol's `error`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._protocol: Protocol | None = None

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, path, handler); paths in Starlette's form."""
        model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
        return [
            ("GET", "/v2", reporting(self.server)),
            ("GET", "/v2/health/live", reporting(self.live)),
            ("GET", "/v2/health/ready", reporting(self.ready)),
            ("POST", "/v2/repository/index", reporting(self.index)),
            *[
                entry
                for path in (model, version)
                for entry in (
                    ("GET", path, reporting(self.metadata)),
                    ("GET", path + "/ready", reporting(self.model_ready)),
                    ("POST", path + _INFER, reporting(self.infer)),
                )
            ],
        ]

    async def server(self, _: Call) -> Answer:
        return _json({"name": "modelserve", "version": "1", "extensions": ["binary_tensor_data"]})

    async def live(self, call: Call) -> Answer:
        await self._service.healthz(call)
        return Answer(200, _EMPTY)

    async def ready(self, call: Call) -> Answer:
        await self._service.readyz(call)
        return Answer(200, _EMPTY)

    async def index(self, _: Call) -> Answer:
        model = self._service.model.spec.name
        ready = self._service.state is State.READY
        entry = {
            "name": model,
            "version": self._service.settings.version,
            "state": "READY" if ready else "UNAVAILABLE",
            "reason": "" if ready else self._service.state.value,
        }
        return _json([entry])

    async def metadata(self, call: Call) -> Answer:
        return _json(self._for(call).metadata())

    async def model_ready(self, call: Call) -> Answer:
        self._for(call)
        await self._service.readyz(call)
        return Answer(200, _EMPTY)

    async def infer(self, call: Call) -> Answer:
        service = self._service
        protocol = self._for(call)
        loaded = service.model
        limits = loaded.spec.serving.limits
        headers = call.headers
        body = await service.body(call, limits.max_body_bytes)
        columns, wanted = protocol.parse(body, _head_length(headers, len(body)))
        payload = loaded.codec.payload(columns)
        result = await service.run(call, payload, call.deadline(limits.timeout_seconds))
        content, head_length = protocol.answer(loaded.codec.arrays(result), wanted)
        own = ((RECEIPT, call.receipt.encode()),) if call.receipt else ()
        if head_length is None:
            return Answer(200, content, JSON, own)
        length = (b"inference-header-content-length", str(head_length).encode())
        return Answer(200, content, _BINARY, (length, *own))

    def _for(self, call: Call) -> Protocol:
        """The protocol of the model in the path; NotFound for any other name or version."""
        service = self._service
        name, version = _model_of(call.scope["path"])
        spec = service.model.spec
        if name != spec.name:
            raise NotFound(f"no model {name} here; this server has {spec.name}")
        if version is not None and version != service.settings.version:
            raise NotFound(f"no version {version} of {name} here; this server has {service.settings.version}")
        if self._protocol is None:
            self._protocol = Protocol(spec, service.settings.version)
        return self._protocol


def is_infer(path: str) -> bool:
    """Whether the fast path should take it."""
    if not path.endswith(_INFER) or not path.startswith(_MODELS):
        return False
    parts = path.split("/")
    return len(parts) == 5 or (len(parts) == 7 and parts[4] == "versions")


def _model_of(path: str) -> tuple[str, str | None]:
    parts = path.removeprefix(_MODELS).split("/")
    name = unquote(parts[0])
    return name, unquote(parts[2]) if len(parts) > 2 and parts[1] == "versions" else None


def reporting(handler: Handler) -> Handler:
    """The handler with problems in the form that the protocol's clients read."""

    async def reported(call: Call) -> Answer:
        try:
            return await handler(call)
        except Problem as problem:
            return error_answer(call.ended_in(problem), call.request_id)

    return reported


def error_answer(problem: Problem, request_id: str) -> Answer:
    """The problem document with the member `error`, which the protocol's clients show."""
    answer = problem_answer(problem, request_id)
    content = orjson.loads(answer.body)
    content["error"] = content["detail"]
    answer.body = orjson.dumps(content)
    return answer


def _head_length(headers: dict[bytes, bytes], body_length: int) -> int | None:
    stated = headers.get(b"inference-header-content-length")
    if stated is None:
        return None
    if not stated.isdigit() or int(stated) > body_length:
        raise BadRequest("Inference-Header-Content-Length must be a number of bytes within the body")
    return int(stated)


def _json(content: Any) -> Answer:
    return Answer(200, orjson.dumps(content))
