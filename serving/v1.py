"""The routes of KServe's first protocol: `/v1/models/NAME:predict` is another name of `/predict`.

Rows and answers look the same in both; errors also carry the protocol's `error`.
"""

from __future__ import annotations

from urllib.parse import unquote

import orjson

from serving.exchange import Answer, Call, Handler, reporting
from serving.service import Service

_MODELS = "/v1/models/"
_PREDICT = ":predict"


class KServe:
    """Every route of the first protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, path, handler); paths in Starlette's form."""
        return [
            ("GET", "/", reporting(self.alive)),
            ("GET", "/v1/models", reporting(self.models)),
            ("GET", "/v1/models/{name}", reporting(self.ready)),
            ("POST", "/v1/models/{name}:predict", reporting(self.predict)),
        ]

    async def alive(self, call: Call) -> Answer:
        await self._service.healthz(call)
        return Answer(200, b'{"status":"alive"}')

    async def models(self, _: Call) -> Answer:
        return Answer(200, orjson.dumps({"models": [self._service.model.spec.name]}))

    async def ready(self, call: Call) -> Answer:
        name = self._named(call)
        await self._service.readyz(call)
        return Answer(200, orjson.dumps({"name": name, "ready": True}))

    async def predict(self, call: Call) -> Answer:
        self._named(call)
        return await self._service.predict(call)

    def _named(self, call: Call) -> str:
        """The model's name; NotFound when the path has another one."""
        name = unquote(call.scope["path"].removeprefix(_MODELS).removesuffix(_PREDICT))
        self._service.require_model(name)
        return name


def is_predict(path: str) -> bool:
    """Whether the fast path should take it."""
    return path.endswith(_PREDICT) and path.startswith(_MODELS) and "/" not in path.removeprefix(_MODELS)
