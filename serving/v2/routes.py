"""The HTTP side of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import msgspec
import orjson

from serving.errors import BadRequest, Conflict, NotFound
from serving.exchange import JSON, Answer, Call, Handler, reporting
from serving.receipts import HEADER as RECEIPT
from serving.service import Service, State
from serving.v2.extensions import EXTENSIONS, configuration, statistics
from serving.v2.protocol import Protocol

_BINARY = b"application/octet-stream"
_MODELS = "/v2/models/"
_INFER = "/infer"
_REPOSITORY = "/v2/repository/models/"
_EMPTY = b"{}"
_WISHES_BYTES = 1 << 20


class Wishes(msgspec.Struct):
    """What a client may say to the repository; what the protocol does not know is passed over."""

    ready: bool = False
    parameters: dict[str, Any] = {}


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
            ("POST", "/v2/repository/models/{name}/load", reporting(self.load)),
            ("POST", "/v2/repository/models/{name}/unload", reporting(self.unload)),
            ("GET", "/v2/models", reporting(self.models)),
            ("GET", "/v2/models/stats", reporting(self.all_statistics)),
            *[
                entry
                for path in (model, version)
                for entry in (
                    ("GET", path, reporting(self.metadata)),
                    ("GET", path + "/ready", reporting(self.model_ready)),
                    ("GET", path + "/stats", reporting(self.statistics)),
                    ("GET", path + "/config", reporting(self.configuration)),
                    ("POST", path + _INFER, reporting(self.infer)),
                )
            ],
        ]

    async def server(self, _: Call) -> Answer:
        return _json({"name": "modelserve", "version": "1", "extensions": EXTENSIONS})

    async def live(self, call: Call) -> Answer:
        await self._service.healthz(call)
        return _json({"live": True})

    async def ready(self, call: Call) -> Answer:
        await self._service.readyz(call)
        return _json({"ready": True})

    async def models(self, _: Call) -> Answer:
        return _json({"models": [self._service.model.spec.name]})

    async def index(self, call: Call) -> Answer:
        model = self._service.model.spec.name
        ready = self._service.state is State.READY
        if not ready and (await self._wishes(call)).ready:
            return _json([])
        entry = {
            "name": model,
            "version": self._service.settings.version,
            "state": "READY" if ready else "UNAVAILABLE",
            "reason": "" if ready else self._service.state.value,
        }
        return _json([entry])

    async def load(self, call: Call) -> Answer:
        """The model that is here is loaded; any other, or in another way, is not for a client to load."""
        self._service.require_model(_repository_model(call.scope["path"]))
        wishes = await self._wishes(call)
        if wishes.parameters:
            named = ", ".join(wishes.parameters)
            raise BadRequest(f"parameters {named}: what is served stands in the release; promote another")
        await self._service.readyz(call)
        return Answer(200, _EMPTY)

    async def unload(self, call: Call) -> Answer:
        name = _repository_model(call.scope["path"])
        self._service.require_model(name)
        await self._wishes(call)
        raise Conflict(f"{name} is what this server is for; it leaves when the server is stopped")

    async def all_statistics(self, _: Call) -> Answer:
        return self._statistics()

    async def statistics(self, call: Call) -> Answer:
        self._for(call)
        return self._statistics()

    def _statistics(self) -> Answer:
        service = self._service
        name = service.model.spec.name
        return _json(statistics(service.telemetry.samples(), name, service.settings.version))

    async def configuration(self, call: Call) -> Answer:
        self._for(call)
        return _json(configuration(self._service.model.spec, self._service.settings.version))

    async def metadata(self, call: Call) -> Answer:
        return _json(self._for(call).metadata())

    async def model_ready(self, call: Call) -> Answer:
        self._for(call)
        await self._service.readyz(call)
        return _json({"name": self._service.model.spec.name, "ready": True})

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
        self._service.require_model(name)
        if version is not None and version != service.settings.version:
            raise NotFound(f"no version {version} of {name} here; this server has {service.settings.version}")
        if self._protocol is None:
            self._protocol = Protocol(spec, service.settings.version)
        return self._protocol

    async def _wishes(self, call: Call) -> Wishes:
        """The body of a repository call, which may be empty."""
        body = await self._service.body(call, _WISHES_BYTES)
        try:
            return msgspec.json.decode(body or _EMPTY, type=Wishes)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the repository request: {str(error).replace('`', '')}") from None


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


def _repository_model(path: str) -> str:
    return unquote(path.removeprefix(_REPOSITORY).split("/")[0])


def _head_length(headers: dict[bytes, bytes], body_length: int) -> int | None:
    stated = headers.get(b"inference-header-content-length")
    if stated is None:
        return None
    if not stated.isdigit() or int(stated) > body_length:
        raise BadRequest("Inference-Header-Content-Length must be a number of bytes within the body")
    return int(stated)


def _json(content: Any) -> Answer:
    return Answer(200, orjson.dumps(content))
