"""Optional OpenTelemetry: one span a request, in the trace that the client or the mesh has begun.

Spans are made when the request is over, from its own times, so that nothing is paid for before that.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from serving.errors import StartupError
from serving.exchange import Call

logger = logging.getLogger("serving.tracing")


class Tracer:
    def __init__(self, endpoint: str, model: str, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise StartupError(
                f"SERVING_OTLP_ENDPOINT needs the package {error.name!r}; install the extra 'tracing'"
            ) from None
        resource = Resource.create({"service.name": f"{model}-v{version}", "service.version": version})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces"))
        )
        self._tracer = self._provider.get_tracer("serving")
        self._propagator: Any = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER

    def finished(self, call: Call, route: str, status: int, seconds: float) -> str | None:
        """Record the span of a request that has just been answered; its trace's id when that is kept."""
        end = time.time_ns()
        carrier = {
            name: call.headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in call.headers
        }
        span = self._tracer.start_span(
            f"{call.scope['method']} {route}",
            context=self._propagator.extract(carrier),
            kind=self._kind,
            start_time=end - int(seconds * 1e9),
            attributes={
                "http.request.method": call.scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "modelserve.request_id": call.request_id,
            },
        )
        span.end(end)
        context = span.get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags.sampled else None

    def close(self) -> None:
        self._provider.shutdown()
