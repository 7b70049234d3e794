"""FastAPI's part: every route with its place in the OpenAPI document, and `/docs`.

Routes only hand over to the service. The document is made when it is asked for, because the schemas and
examples come from the signature of the model, which is loaded after the server has begun to answer probes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException

from serving.access import OPEN_ROUTES
from serving.errors import NotFound, Problem, WrongMethod
from serving.exchange import Answer, Call, Handler, answered, refusal
from serving.http.compression import compressed, wanted
from serving.http.jobs import BatchPredict
from serving.openapi.document import describe
from serving.service import Service
from serving.v1 import KServe
from serving.v2.routes import OpenInference

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(service: Service, inference: OpenInference) -> FastAPI:
    """The application without the edge; it expects the edge's Call in the scope."""
    app = FastAPI(title="ModelServeAI", docs_url=None, redoc_url=None, openapi_url=None)
    # FastAPI's own error pages and redirects would be answers in another form than ours.
    app.router.redirect_slashes = False
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]

    def route(method: str, path: str, handler: Handler) -> None:
        methods = [method, "HEAD"] if path in OPEN_ROUTES else [method]
        app.add_api_route(
            path,
            _endpoint(handler, service.settings.compress_bytes),
            methods=methods,
            include_in_schema=False,
        )

    route("POST", "/predict", service.predict)
    route("POST", "/feedback", service.feedback)
    route("GET", "/healthz", service.healthz)
    route("GET", "/readyz", service.readyz)
    route("GET", "/metrics", service.metrics)
    for method, path, handler in (
        *inference.routes(),
        *KServe(service).routes(),
        *BatchPredict(service).routes(),
    ):
        route(method, path, handler)

    async def openapi(_: Call) -> Answer:
        import orjson

        return Answer(200, orjson.dumps(describe(service.model, service.settings)))

    async def docs(_: Call) -> Answer:
        page = bytes(get_swagger_ui_html(openapi_url="openapi.json", title="ModelServeAI").body)
        policy = (b"content-security-policy", _policy(page))
        return Answer(200, page, b"text/html; charset=utf-8", (policy,))

    route("GET", "/openapi.json", openapi)
    route("GET", "/docs", docs)
    return app


def _policy(page: bytes) -> bytes:
    """The page runs its own script, by its hash, and Swagger's, and asks nobody but this server."""
    [own] = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(own).digest())
    return (
        b"default-src 'none'; script-src https://cdn.jsdelivr.net 'sha256-%s'; "
        b"style-src https://cdn.jsdelivr.net 'unsafe-inline'; img-src data: https://fastapi.tiangolo.com; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ) % digest


def _endpoint(handler: Handler, compress_above: int) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        call: Call = request.scope["serving.call"]
        answer = await answered(handler, call)
        encoding = wanted(call.headers) if len(answer.body) > compress_above else None
        if encoding is not None:
            await compressed(answer, encoding)
        return as_response(answer)

    return endpoint


def as_response(answer: Answer) -> Response:
    """The answer as it is: no content type or charset of Starlette's own."""
    response = Response(answer.body, answer.status)
    response.raw_headers = [
        (b"content-type", answer.content_type),
        (b"content-length", b"%d" % len(answer.body)),
        *answer.headers,
    ]
    return response


async def _http_error(request: Request, error: HTTPException) -> Response:
    call: Call = request.scope["serving.call"]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        call.problem = WrongMethod(
            f"{request.method} is not for this route; use {allowed}", headers=((b"allow", allowed.encode()),)
        )
    elif error.status_code == 404:
        call.problem = NotFound("no such route; /docs lists them")
    else:
        call.problem = Problem(str(error.detail))
    return as_response(refusal(request.url.path, call.problem, call.request_id))
