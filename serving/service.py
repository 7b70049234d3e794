"""What the server does with a request, free of routes and of how it came in.

The same methods stand behind the fast path and behind FastAPI's routes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum

from serving.access import WRONG_KEYS_PER_SECOND, ApiKeys, Buckets, RateLimit, client_of
from serving.cache.cache import RedisCache, pays
from serving.cache.recent import RecentAnswers
from serving.encodings import decompressed
from serving.errors import NotFound, Problem, RateLimited, StartupError, Unauthorized, Unavailable
from serving.exchange import VERSION_HEADER, Answer, BodyReader, Call, check_json_type, fitting
from serving.feedback import MOST_BYTES, Feedback, parsed
from serving.inference.batcher import Batcher
from serving.inference.engine import RecordEngine
from serving.inference.model import LoadedModel, load_model, short
from serving.inference.rows import Payload, Result, joined_payload
from serving.jobs.chunks import Chunks
from serving.jobs.runner import JobRunner
from serving.jobs.table import JobTable, Release
from serving.personal import Personal
from serving.predictions import Predictions
from serving.receipts import Receipts
from serving.redis.link import RedisLink
from serving.settings import Settings
from serving.telemetry import Telemetry
from serving.tracing import Tracer
from serving.watching.monitor import OutputMonitor
from serving.watching.outcomes import OutcomeWriter
from serving.watching.samples import Sampler
from serving.watching.segments import Segments
from serving.watching.shadow import Shadow

logger = logging.getLogger("serving")

TEXT = b"text/plain; charset=utf-8"
_SWITCH_SECONDS = 0.0002
_RECENT_SECONDS = 1.0
"""By so much an answer from Redis may outlive its time there."""


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """One release in one process."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        check: Callable[[LoadedModel, str], None] | None = None,
    ) -> None:
        """`check` is given the loaded model and its version before any traffic. StartupError."""
        self.settings = settings
        self._check = check
        self.telemetry = telemetry
        self.state = State.STARTING
        self.failure: StartupError | None = None
        self.link: RedisLink | None = None
        self._model: LoadedModel | None = None
        self._batcher: Batcher | None = None
        self._feedback: Feedback | None = None
        self._personal: Personal | None = None
        self._predictions: Predictions | None = None
        self._keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file is not None else None
        self._rate: RateLimit | None = None
        self._proxies = settings.forwarded_proxies if settings.forwarded_clients else 0
        self._wrong_keys = Buckets(WRONG_KEYS_PER_SECOND)
        self.tracer: Tracer | None = None
        self.jobs: tuple[JobTable, Chunks, JobRunner] | None = None
        """Where jobs can be kept."""
        self.guarded = self._keys is not None or settings.rate_limit > 0
        """Whether `admit` has anything to check."""
        self._bodies = BodyReader(10.0)
        self.version_header = (VERSION_HEADER, settings.version.encode())

    # ---- life

    async def start(self) -> None:
        """Load and warm up in a thread, then take traffic. StartupError when the model cannot be served."""
        try:
            loaded = await asyncio.to_thread(load_model, self.settings)
            self._personal = self._personal_of(loaded)
            if self._check is not None:
                await asyncio.to_thread(self._check, loaded, self.settings.version)
        except StartupError as error:
            self.state, self.failure = State.FAILED, error
            raise
        self._install(loaded)
        if self.link is not None:
            await self.link.connect()
        # The model's thread takes the lock of the interpreter again after every operation of the library, and
        # would wait 5 ms for it each time while the event loop is busy.
        sys.setswitchinterval(_SWITCH_SECONDS)
        # A full collection over torch's objects takes 60 ms: they are here to stay, so it never sees them.
        gc.collect()
        gc.freeze()
        gc.enable()
        gc.set_threshold(50_000, 50, 100)
        if self.state is State.STARTING:
            self.state = State.READY
            fields = {
                "model": loaded.spec.name,
                "version": self.settings.version,
                "inline": self.batcher.inline,
            }
            logger.info("ready", extra=fields)

    def _install(self, loaded: LoadedModel) -> None:
        spec, settings, telemetry = loaded.spec, self.settings, self.telemetry
        telemetry.bind(spec.name, settings.version)
        self._model = loaded
        self._bodies = BodyReader(spec.serving.limits.body_seconds)
        batcher = Batcher(
            loaded.engine,
            spec.serving.batching,
            cost=loaded.cost,
            observer=telemetry,
            prefer_thread=isinstance(loaded.engine, RecordEngine) or not short(loaded),
        )
        self._batcher = batcher
        monitor = OutputMonitor(spec, telemetry.outputs)
        if not monitor.shows:
            pass
        elif isinstance(loaded.engine, RecordEngine):
            loaded.engine.observed = monitor.records
        else:
            loaded.engine.observed = monitor.tensors
        telemetry.bins(monitor.bins)
        telemetry.source("pending_rows", lambda: batcher.pending_rows)
        telemetry.source("ready", lambda: float(self.state is State.READY))
        if loaded.tensors is not None:
            memory = loaded.tensors.device_memory
            if memory() is not None:
                telemetry.source("device_memory_bytes", lambda: float(memory() or 0))
        predictions = Predictions(batcher, loaded.codec, telemetry)
        if settings.redis_url is not None:
            self.link = RedisLink(settings.redis_url)
            samples = spec.serving.samples
            receipts = Receipts(settings.shared_secret, spec.name, samples.outcome_seconds)
            predictions.receipts = receipts
            writer = OutcomeWriter(self.link, samples, spec.name)
            self._feedback = Feedback(receipts, writer, self.personal, telemetry)
            if spec.serving.samples.share > 0:
                predictions.sampler = self._make_sampler(self.link, loaded)
            if spec.serving.cache.enabled:
                predictions.recent = RecentAnswers(_RECENT_SECONDS, spec.serving.cache.max_value_bytes)
                if self.personal.cacheable and pays(loaded):
                    predictions.cache = RedisCache(
                        self.link,
                        loaded,
                        settings.version,
                        settings.shared_secret,
                        telemetry,
                        batcher.announce,
                    )
        if settings.rate_limit:
            self._rate = RateLimit(self.link, spec.name, settings.rate_limit, telemetry)
        if settings.shadow_url is not None and settings.shadow_share > 0:
            predictions.shadow = Shadow(
                settings.shadow_url, settings.shadow_share, spec.serving.shadow, telemetry
            )
        if spec.promotion.segments:
            predictions.segments = Segments(spec, telemetry)
        self._predictions = predictions
        if settings.otlp_endpoint is not None:
            self.tracer = Tracer(settings.otlp_endpoint, spec.name, settings.version)
        if settings.database_url is not None and settings.jobs_uri is not None:
            release = Release(spec.name, settings.version, loaded.bundle.sha256)
            table = JobTable(settings.database_url, release, settings.jobs_lease_seconds)
            chunks = Chunks(settings.jobs_uri)
            runner = JobRunner(
                table,
                chunks,
                spec,
                self.run_rows,
                lambda: self.state is State.READY,
                settings.jobs_lease_seconds,
                telemetry,
            )
            self.jobs = table, chunks, runner
            telemetry.source("jobs_waiting", lambda: runner.waiting)

    def _make_sampler(self, link: RedisLink, loaded: LoadedModel) -> Sampler:
        spec = loaded.spec
        return Sampler(
            link,
            loaded.codec,
            self.personal,
            spec.serving.samples,
            spec.name,
            self.settings.version,
            self.telemetry,
        )

    def _personal_of(self, loaded: LoadedModel) -> Personal | None:
        """None where no row leaves the server. StartupError."""
        settings = self.settings
        if settings.redis_url is None and not settings.keeps_jobs:
            return None
        key = settings.personal_key
        return Personal(loaded.spec, key.get_secret_value().encode() if key is not None else None)

    @property
    def personal(self) -> Personal:
        assert self._personal is not None
        return self._personal

    def drain(self) -> None:
        """Not ready any more; requests that still come are answered."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    async def stop(self) -> None:
        if self.jobs is not None:
            await self.jobs[2].stop()
        if self._predictions is not None:
            await self._predictions.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        if self._batcher is not None:
            self._batcher.close()
            await asyncio.sleep(0.01)  # who waited for the model is told so
        if self.link is not None:
            await self.link.close()
        if self._model is not None:
            self._model.bundle.discard()

    def busy(self) -> bool:
        """Whether a model call is under way."""
        return self._batcher is not None and self._batcher.running_seconds() > 0

    @property
    def model(self) -> LoadedModel:
        """The loaded model; Unavailable while there is none."""
        if self._model is None:
            raise Unavailable("the model is being loaded", reason="starting", retry_after=1)
        return self._model

    @property
    def batcher(self) -> Batcher:
        return self.predictions.batcher

    @property
    def predictions(self) -> Predictions:
        """Unavailable while there is no model."""
        if self._predictions is None:
            raise Unavailable("the model is being loaded", reason="starting", retry_after=1)
        return self._predictions

    async def admit(self, call: Call) -> None:
        """Unauthorized or RateLimited when this client may not ask (now)."""
        address = client_of(call.scope, call.headers, self._proxies)
        client = address
        if self._keys is not None:
            try:
                client = call.client = self._keys.client(call.headers)
            except Unauthorized:
                if not self._wrong_keys.take(address):
                    raise RateLimited("too many requests without a valid key", retry_after=1) from None
                raise
        if self._rate is not None:
            await self._rate.admit(client)

    # ---- routes

    async def predict(self, call: Call) -> Answer:
        """POST /predict."""
        check_json_type(call.headers)
        limit = self.model.spec.serving.limits.max_body_bytes
        call.body = await self.body(call, limit)
        given: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def give(answer: Answer) -> None:
            if not given.done():
                given.set_result(answer)

        return self.predict_promptly(call, give) or await given

    def predict_promptly(self, call: Call, done: Callable[[Answer], None]) -> Answer | None:
        """POST /predict without a task, for a call whose body is here as it is meant, not compressed. The
        answer, or None when `done` will be called with it, some time soon. Raises a Problem when the rows
        cannot be taken."""
        limits = self.model.spec.serving.limits
        check_json_type(call.headers)
        assert call.body is not None
        fitting(call.body, limits.max_body_bytes)
        return self.predictions.answer(call, call.deadline(limits.timeout_seconds), done)

    async def body(self, call: Call, limit: int) -> bytes:
        """The request's body, within size and time, and decompressed: in a thread, since a small body may
        stand for a thousand times as much, which would hold up everybody else."""
        body = await self._bodies.read(call, limit)
        encoding = call.headers.get(b"content-encoding")
        if encoding is None:
            return body
        return await asyncio.to_thread(decompressed, body, encoding, limit)

    async def run(self, call: Call, payload: Payload, deadline: float) -> Result:
        """Rows through the model for a client that waits, without the cache and the shadow."""
        return await self.predictions.run(call, payload, deadline)

    async def run_rows(self, rows: Sequence[bytes]) -> list[bytes | Problem]:
        """For jobs: rows as JSON values (as in `instances` of /predict) through the background lane.

        Returns for each row its prediction as JSON (as in `predictions`) or the Problem of that row: Invalid
        with its pointer, or ModelFault. Waits for room; cancelling the task drops rows not yet run. Raises
        Unavailable while the model is being loaded or the server stops.
        """
        model, batcher = self.model, self.batcher
        answers: list[bytes | Problem] = []
        good: list[int] = []
        payloads = []
        for index, row in enumerate(rows):
            try:
                payloads.append(model.codec.decode(b'{"instances":[%s]}' % row))
                good.append(index)
                answers.append(b"")
            except Problem as problem:
                if problem.pointer is not None:
                    problem.pointer = problem.pointer.replace("#/instances/0", "#", 1)
                answers.append(problem)
        if not payloads:
            return answers
        payload = joined_payload(payloads)
        payload.counted = False
        outcomes = await batcher.background(payload)
        for index, outcome in zip(good, outcomes, strict=True):
            answers[index] = outcome if isinstance(outcome, Problem) else model.codec.fragments(outcome)[0]
        return answers

    def require_model(self, name: str) -> None:
        """NotFound unless it is the name of the model that is served."""
        ours = self.model.spec.name
        if name != ours:
            raise NotFound(f"no model {name} here; this server has {ours}")

    async def feedback(self, call: Call) -> Answer:
        """POST /feedback: what turned out to be true, for an earlier request."""
        _ = self.model
        check_json_type(call.headers)
        report = await parsed(await self.body(call, MOST_BYTES))
        if self._feedback is None:
            raise Unavailable("outcomes are not kept here: SERVING_REDIS_URL is not set", reason="no_redis")
        return await self._feedback.answer(call, report)

    async def healthz(self, _: Call) -> Answer:
        """GET /healthz: the process can still answer. Independent of load, Redis and readiness."""
        reason = self._stuck()
        if reason is not None:
            raise Unavailable(reason, reason="stuck")
        return Answer(200, b"ok\n", TEXT)

    async def readyz(self, _: Call) -> Answer:
        """GET /readyz: a warmed model is here and the server is not draining."""
        if self.state is not State.READY:
            raise Unavailable(f"the server is {self.state.value}", reason="not_ready", retry_after=1)
        reason = self._stuck()
        if reason is not None:
            raise Unavailable(reason, reason="stuck")
        return Answer(200, b"ready\n", TEXT)

    async def metrics(self, call: Call) -> Answer:
        """GET /metrics in Prometheus' text format, or as OpenMetrics with the traces of slow requests."""
        content, content_type = self.telemetry.render(call.headers.get(b"accept", b""))
        return Answer(200, content, content_type)

    def _stuck(self) -> str | None:
        if self.state is State.FAILED:
            return "the model could not be loaded"
        if self._batcher is not None:
            if not self._batcher.thread_alive():
                return "the model's thread has ended"
            if self._batcher.running_seconds() > self.settings.stuck_seconds:
                return f"one model call has been running for more than {self.settings.stuck_seconds:g} s"
        if self._model is not None and self._model.tensors is not None:
            broken = self._model.tensors.broken()
            if broken is not None:
                return f"the device cannot be used any more: {broken}"
        return None
