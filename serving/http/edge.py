"""The outermost application: what every request gets, and the short way for the hot ones.

Request id, metrics, logs, security headers and the last line of defence against exceptions are here. Hot
routes go from here to the service without passing through FastAPI, and without ASGI where the request is
whole; with `SERVING_FAST_PATH=false` they take FastAPI's way and answer the same. No exception leaves this
file: Starlette's last resort would close the connection, which a proxy reports as a failure of its own.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from serving.access import OPEN_ROUTES
from serving.errors import Problem
from serving.exchange import (
    CLOSE,
    Answer,
    Call,
    Handler,
    Receive,
    Scope,
    Send,
    answered,
    failed,
    fault,
    problem_answer,
    refusal,
    reporting,
)
from serving.http.compression import compressed, wanted
from serving.http.origins import Origins
from serving.http.whole import WholeRequest, header_lines
from serving.service import Service, State
from serving.v1 import KServe, is_predict
from serving.v2.routes import OpenInference, is_infer

logger = logging.getLogger("serving.access")

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_SECURITY = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_ROUTED = re.compile(rb"[?%#]")
"""Paths with one of these are for the router to read."""
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
Application = Callable[[Scope, Receive, Send], Any]


class Edge:
    """`make_inner` makes FastAPI's part. It is called in a thread, by `prepare` or by the first request that
    needs it: probes and predictions do not."""

    def __init__(
        self, service: Service, inference: OpenInference, make_inner: Callable[[], Application]
    ) -> None:
        self._service = service
        self._telemetry = service.telemetry
        self._make_inner = make_inner
        self._making: asyncio.Task[Application] | None = None
        self._inner: Application | None = None
        self._short_ways: dict[tuple[bytes, bytes], Handler] = {}
        self._predict = service.predict
        self._infer: Handler | None = None
        self._named_predict: Handler | None = None
        if service.settings.fast_path:
            self._short_ways = {
                (b"POST", b"/predict"): self._predict,
                (b"GET", b"/healthz"): service.healthz,
                (b"GET", b"/readyz"): service.readyz,
                (b"HEAD", b"/healthz"): service.healthz,
                (b"HEAD", b"/readyz"): service.readyz,
                (b"GET", b"/metrics"): service.metrics,
            }
            self._infer = reporting(inference.infer)
            self._named_predict = reporting(KServe(service).predict)
        self._compress_above = service.settings.compress_bytes
        self._origins = Origins(service.settings.cors_origins)
        self._log_all = service.settings.access_log
        # The version on refusals and failures too: whoever counts them must know whose they are.
        self._constant = (service.version_header, *_SECURITY)
        self._constant_lines = header_lines(self._constant)
        self._prefix = os.urandom(8).hex()
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            inner = await self._application()
            await inner(scope, receive, send)
            return
        call = self._begun(scope, receive, dict(scope["headers"]))
        status = 499
        try:
            refused = self._origins.preflight(scope["method"], call.headers) if self._origins else None
            refused = refused or await self._refused(call)
            handler = self.short_way(scope["method"].encode(), scope["raw_path"])
            if handler is None and refused is None:
                status = await self._long(call, send)
            else:
                answer = refused or await answered(cast(Handler, handler), call)
                status = answer.status
                if status != 499:
                    if len(answer.body) > self._compress_above:
                        await self._compress(call, answer)
                    answer.headers = (*answer.headers, *self._own_headers(call))
                    await respond(answer, send)
        finally:
            self._ended(call, status)
        if call.after is not None:
            call.after()

    def short_way(self, method: bytes, url: bytes) -> Handler | None:
        """See WholeRequests."""
        handler = self._short_ways.get((method, url))
        if handler is None and method == b"POST" and not _ROUTED.search(url):
            path = url.decode("ascii", "replace")
            if is_predict(path):
                return self._named_predict
            return self._infer if is_infer(path) else None
        return handler

    def whole(self, request: WholeRequest, handler: Handler) -> None:
        """See WholeRequests."""
        call = self._begun(request.scope, request.receive, request.headers, request.body)
        prompt = handler is self._predict and b"content-encoding" not in request.headers
        if prompt and not self._service.guarded:
            self._promptly(request, call)
        else:
            request.task = request.loop.create_task(self._whole(request, handler, call))

    def _promptly(self, request: WholeRequest, call: Call) -> None:
        """A prediction needs no task, which would cost as much as reading the body does."""
        finish = partial(self._finish, request, call)
        try:
            answer = self._service.predict_promptly(call, finish)
        except Exception as error:
            answer = failed(call, error)
        if answer is not None:
            # In the next turn, after all that this one has to read: answering each request as it is read
            # wakes its client each time, and costs half as much again.
            request.loop.call_soon(finish, answer)

    async def _whole(self, request: WholeRequest, handler: Handler, call: Call) -> None:
        answer = None
        try:
            answer = await self._refused(call) or await answered(handler, call)
        except Exception as error:
            answer = failed(call, error)
        finally:
            self._finish(request, call, answer)

    def _finish(self, request: WholeRequest, call: Call, answer: Answer | None) -> None:
        """Send it, if there is one and somebody to send it to, and count the request."""
        if answer is not None and len(answer.body) > self._compress_above and wanted(call.headers):
            request.task = request.loop.create_task(self._finish_smaller(request, call, answer))
        else:
            self._send(request, call, answer)

    async def _finish_smaller(self, request: WholeRequest, call: Call, answer: Answer) -> None:
        try:
            await self._compress(call, answer)
        finally:
            self._send(request, call, answer)

    async def _compress(self, call: Call, answer: Answer) -> None:
        encoding = wanted(call.headers)
        if encoding is not None:
            await compressed(answer, encoding)

    def _send(self, request: WholeRequest, call: Call, answer: Answer | None) -> None:
        status = 499
        try:
            if answer is not None and answer.status != 499:
                status = answer.status
                if self._origins:
                    answer.headers = (*answer.headers, *self._origins.headers(call.headers))
                draining = self._service.state is State.DRAINING
                request.respond(answer, call.request_id.encode("ascii"), self._constant_lines, close=draining)
        finally:
            if not request.response_complete:
                request.drop()
            self._ended(call, status)
        if call.after is not None:
            call.after()

    def _begun(
        self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], body: bytes | None = None
    ) -> Call:
        self._telemetry.in_flight += 1
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            request_id = given.decode("ascii")
        else:
            self._count += 1
            request_id = f"{self._prefix}{self._count:08x}"
        return Call(scope, receive, headers, request_id, time.monotonic(), body)

    def _ended(self, call: Call, status: int) -> None:
        """Count it, log it, trace it."""
        telemetry = self._telemetry
        telemetry.in_flight -= 1
        seconds = time.monotonic() - call.started
        route = route_label(call.scope["path"])
        telemetry.request(route, status, seconds)
        if call.problem is not None:
            telemetry.count("rejected", 1, call.problem.reason)
        if status >= 500 or self._log_all:
            self._log(call, status, seconds)
        tracer = self._service.tracer
        if tracer is not None:
            trace = tracer.finished(call, route, status, seconds)
            if trace is not None:
                telemetry.traced(route, seconds, trace, time.time())

    async def prepare(self) -> None:
        """Make FastAPI's part ready before anybody asks for it."""
        await self._application()
        # It is here to stay, as the model's objects are; see the service's start.
        gc.freeze()

    async def _application(self) -> Application:
        if self._inner is None:
            if self._making is None:
                self._making = asyncio.create_task(asyncio.to_thread(self._make_inner))
            self._inner = await asyncio.shield(self._making)
        return self._inner

    async def _refused(self, call: Call) -> Answer | None:
        """The refusal for a client that may not ask; None for one that may."""
        path = call.scope["path"]
        if not self._service.guarded or path in OPEN_ROUTES:
            return None
        try:
            await self._service.admit(call)
        except Problem as problem:
            call.problem = problem.without_traceback()
            return refusal(path, problem, call.request_id)
        return None

    async def _long(self, call: Call, send: Send) -> int:
        """Through FastAPI, adding our headers to whatever it answers."""
        status = 499
        call.scope["serving.call"] = call

        async def adding(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if message["status"] == 499:
                    return
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *self._own_headers(call)]}
            elif status == 499:
                return
            await send(message)

        try:
            inner = await self._application()
            await inner(call.scope, call.receive, adding)
        except Exception as error:
            call.problem = fault(call, error)
            if status == 499:
                await respond(problem_answer(call.problem, call.request_id), adding)
        finally:
            del call.scope["serving.call"]
        return status

    def _own_headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        own = [(b"x-request-id", call.request_id.encode("ascii")), *self._constant]
        if self._origins:
            own.extend(self._origins.headers(call.headers))
        if self._service.state is State.DRAINING:
            own.append(CLOSE)
        return own

    def _log(self, call: Call, status: int, seconds: float) -> None:
        fields: dict[str, object] = {
            "request_id": call.request_id,
            "method": call.scope["method"],
            "route": route_label(call.scope["path"]),
            "status": status,
            "seconds": round(seconds, 6),
        }
        if call.problem is not None:
            fields["reason"] = call.problem.reason
            fields["detail"] = call.problem.detail
        parent = call.headers.get(b"traceparent")
        if parent is not None:
            fields["traceparent"] = parent.decode("latin-1")[:64]
        logger.log(logging.WARNING if status >= 500 else logging.INFO, "request", extra=fields)


async def respond(answer: Answer, send: Send) -> None:
    """Send a whole answer over ASGI."""
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                (b"content-type", answer.content_type),
                (b"content-length", b"%d" % len(answer.body)),
                *answer.headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": answer.body})


_ROUTES = frozenset(
    {"/predict", "/feedback", "/metrics", "/healthz", "/readyz", "/docs", "/openapi.json", "/batch-predict"}
)


def route_label(path: str) -> str:
    """One of a few fixed words: raw paths in labels would make endless series."""
    if path in _ROUTES:
        return path
    if path.startswith("/v2"):
        return "/v2/infer" if _INFER.fullmatch(path) else "/v2"
    if path.startswith("/v1/"):
        return "/v1/predict" if is_predict(path) else "/v1"
    if path.startswith("/batch-predict/"):
        return "/batch-predict/{id}/results" if path.endswith("/results") else "/batch-predict/{id}"
    return "other"
