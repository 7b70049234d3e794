"""Prometheus metrics of one server, cheap enough for the hot path and right with several workers.

Observations of the hot path are appended to lists and drained four times a second and at every scrape: one
pass over a thousand durations costs what four calls of `observe` do. With several workers prometheus_client
keeps its values in files (PROMETHEUS_MULTIPROC_DIR, set by the supervisor before anything is imported), and
every worker answers /metrics for all of them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar, Sample

from serving.arrays import Array

CONTENT_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
OPENMETRICS = b"application/openmetrics-text"
OPENMETRICS_CONTENT_TYPE = OPENMETRICS + b"; version=1.0.0; charset=utf-8"
_DRAIN_SECONDS = 0.25
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_IDENTITY = ("model", "version")
PREDICTION_ROUTES = frozenset({"/predict", "/v1/predict", "/v2/infer"})
"""Labels of the routes at which the model predicts for a client who waits."""


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def observe_many(self, values: Sequence[float]) -> None:
        array = np.asarray(values, dtype=np.float64)
        counts = np.bincount(np.searchsorted(self._upper_bounds, array), minlength=len(self._upper_bounds))
        self._sum.inc(float(array.sum()))
        for bucket in np.flatnonzero(counts):
            self._buckets[bucket].inc(int(counts[bucket]))

    def exemplify(self, seconds: float, trace: str, at: float) -> None:
        """Name a trace that took `seconds`, beside the bucket that it was counted in."""
        bucket = self._buckets[int(np.searchsorted(self._upper_bounds, seconds))]
        bucket.set_exemplar(Exemplar({"trace_id": trace}, seconds, at))


class Telemetry:
    """All series of a server. It only collects until it is bound to a model and a version."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(
            "modelserve_requests", "Answered requests", (*_IDENTITY, "route", "code"), registry=registry
        )
        self._request_seconds = BulkHistogram(
            "modelserve_request_duration_seconds",
            "From the request's head to the last byte of its answer",
            (*_IDENTITY, "route"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue_seconds = BulkHistogram(
            "modelserve_queue_duration_seconds",
            "Wait for the model",
            _IDENTITY,
            buckets=_SECONDS,
            registry=registry,
        )
        self._inference_seconds = BulkHistogram(
            "modelserve_inference_duration_seconds",
            "One call of the model",
            _IDENTITY,
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_rows = BulkHistogram(
            "modelserve_batch_rows",
            "Rows of one call of the model",
            _IDENTITY,
            buckets=_ROWS,
            registry=registry,
        )
        self._gauges: dict[str, Gauge] = {
            name: Gauge(f"modelserve_{name}", text, _IDENTITY, registry=registry, multiprocess_mode="livesum")
            for name, text in (
                ("pending_rows", "Online rows that wait or run"),
                ("in_flight_requests", "Requests being answered"),
                ("device_memory_bytes", "Accelerator memory in use"),
                ("ready", "1 while the server takes traffic"),
            )
        }
        # Every replica sees the same ones, so that they must not be added up.
        self._gauges["jobs_waiting"] = Gauge(
            "modelserve_jobs_waiting",
            "Jobs of the release that nobody runs yet",
            _IDENTITY,
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._gauges["last_inference_timestamp_seconds"] = Gauge(
            "modelserve_last_inference_timestamp_seconds",
            "When the last prediction was answered, in Unix time",
            _IDENTITY,
            registry=registry,
            multiprocess_mode="max",
        )
        self._counters: dict[str, Counter] = {
            name: Counter(f"modelserve_{name}", text, (*_IDENTITY, *labels), registry=registry)
            for name, text, labels in (
                ("rejected", "Requests refused or failed, by what was wrong", ("reason",)),
                ("cache_hits", "Rows answered from the cache", ()),
                ("cache_misses", "Rows that were not in the cache", ()),
                ("cache_errors", "Cache operations that failed or were too slow", ()),
                ("shadow_sent", "Requests copied to the shadow", ()),
                ("shadow_dropped", "Copies dropped because the shadow is behind", ()),
                ("shadow_failed", "Copies that the shadow did not answer", ()),
                ("shadow_compared", "Rows compared with the shadow's answer", ()),
                ("shadow_disagreed", "Rows on which the shadow disagreed", ()),
                ("predictions", "Requests for a prediction, by success or fail", ("outcome",)),
                ("prediction_seconds", "How long these took", ("outcome",)),
                ("outputs", "Requests that the model answered, by class or bin of their first row", ("bin",)),
                ("segment_requests", "Requests predicted or failed, by a column's value", ("segment",)),
                ("segment_errors", "Of these, requests that failed", ("segment",)),
                ("samples_dropped", "Rows that were not sampled: too many, too large, or Redis absent", ()),
                ("samples_sent", "Rows written to the drift samples", ()),
                ("rate_limited_alone", "Requests that this process counted alone: Redis absent or slow", ()),
                ("outcomes", "Rows of /feedback, by what became of them; refused are reports", ("outcome",)),
                ("worker_restarts", "Workers that ended by themselves and were started again", ()),
            )
        }
        self._jobs = Gauge(
            "modelserve_jobs",
            "Jobs of this replica: running now, and ended since it started, by state",
            (*_IDENTITY, "state"),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._difference = Histogram(
            "modelserve_shadow_difference",
            "Largest numeric difference to the shadow's answer in a row",
            _IDENTITY,
            buckets=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0),
            registry=registry,
        )
        self._latency_difference = Histogram(
            "modelserve_shadow_latency_difference_seconds",
            "Shadow's latency minus ours",
            _IDENTITY,
            buckets=(-1.0, -0.1, -0.01, -0.001, 0.0, 0.001, 0.01, 0.1, 1.0, 10.0),
            registry=registry,
        )
        self._labels: tuple[str, str] | None = None
        self._durations: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._traces: dict[tuple[str, float], tuple[str, float, float]] = {}
        self._traced = False
        self._waits: list[float] = []
        self._batches: list[tuple[int, float | None]] = []
        self._counts: defaultdict[tuple[str, tuple[str, ...]], int] = defaultdict(int)
        self._outputs: list[Array] = []
        self._bins: Callable[[Sequence[Array]], dict[str, int]] | None = None
        self._sources: dict[str, Callable[[], float]] = {}
        self._armed = False
        self.in_flight = 0
        self.dropped_samples = self.cache_hits = self.cache_misses = 0
        """Rows, counted for nearly each of a busy server, so without a call."""

    def bind(self, model: str, version: str) -> None:
        """Name the release; every series carries it."""
        self._labels = (model, version)
        for name, counter in self._counters.items():
            if name in ("predictions", "prediction_seconds"):
                for outcome in ("success", "fail"):
                    counter.labels(model, version, outcome)
            elif name not in ("rejected", "outputs", "segment_requests", "segment_errors", "outcomes"):
                counter.labels(model, version)
        if os.environ.get("MODELSERVE_WORKER_RESTARTS"):
            restarts = int(os.environ.pop("MODELSERVE_WORKER_RESTARTS"))
            self._counters["worker_restarts"].labels(model, version).inc(restarts)

    def source(self, name: str, value: Callable[[], float]) -> None:
        """Where the gauge `modelserve_<name>` is read from."""
        self._sources[name] = value

    def bins(self, bins: Callable[[Sequence[Array]], dict[str, int]]) -> None:
        self._bins = bins

    def show(self, name: str, labels: Sequence[str]) -> None:
        """Show the counter `modelserve_<name>_total` of each of these labels, from zero on."""
        if self._labels is not None:
            for label in labels:
                self._counters[name].labels(*self._labels, label)

    # ---- hot path

    def request(self, route: str, code: int, seconds: float) -> None:
        self._durations[route, code].append(seconds)
        if not self._armed:
            self._arm()

    def traced(self, route: str, seconds: float, trace: str, at: float) -> None:
        """A recorded trace of a request: the newest of a bucket is its exemplar. `at`: Unix time."""
        bound = next((bound for bound in _SECONDS if seconds <= bound), float("inf"))
        self._traces[route, bound] = (trace, seconds, at)

    def batch(self, rows: int, seconds: float | None, waits: list[float]) -> None:
        self._batches.append((rows, seconds))
        self._waits += waits

    def count(self, name: str, amount: int = 1, *labels: str) -> None:
        """Add to the counter `modelserve_<name>_total`; `labels` are the ones after model and version."""
        self._counts[name, labels] += amount

    def outputs(self, classes: Array) -> None:
        """Values of the monitored output of one batch; may be called from the model's thread."""
        self._outputs.append(classes)

    def jobs(self, state: str, count: int) -> None:
        if self._labels is not None:
            self._jobs.labels(*self._labels, state).set(count)

    def shadow_compared(self, difference: float | None, latency_difference: float) -> None:
        if self._labels is not None:
            if difference is not None:
                self._difference.labels(*self._labels).observe(difference)
            self._latency_difference.labels(*self._labels).observe(latency_difference)

    # ---- drain and scrape

    def _arm(self) -> None:
        self._armed = True
        asyncio.get_running_loop().call_later(_DRAIN_SECONDS, self._tick)

    def _tick(self) -> None:
        self._armed = False
        self.drain()

    def drain(self) -> None:
        if self._labels is None:
            return
        identity = self._labels
        durations, self._durations = self._durations, defaultdict(list)
        for (route, code), seconds in durations.items():
            self._requests.labels(*identity, route, str(code)).inc(len(seconds))
            self._request_seconds.labels(*identity, route).observe_many(seconds)
            if route in PREDICTION_ROUTES:
                outcome = "success" if code < 400 else "fail"
                self._counters["predictions"].labels(*identity, outcome).inc(len(seconds))
                self._counters["prediction_seconds"].labels(*identity, outcome).inc(sum(seconds))
                self._gauges["last_inference_timestamp_seconds"].labels(*identity).set(time.time())
        traces, self._traces = self._traces, {}
        for (route, _), (trace, seconds_taken, at) in traces.items():
            self._traced = True
            self._request_seconds.labels(*identity, route).exemplify(seconds_taken, trace, at)
        waits, self._waits = self._waits, []
        if waits:
            self._queue_seconds.labels(*identity).observe_many(waits)
        batches, self._batches = self._batches, []
        if batches:
            self._batch_rows.labels(*identity).observe_many([rows for rows, _ in batches])
            calls = [seconds for _, seconds in batches if seconds is not None]
            if calls:
                self._inference_seconds.labels(*identity).observe_many(calls)
        self.count("samples_dropped", self.dropped_samples)
        self.count("cache_hits", self.cache_hits)
        self.count("cache_misses", self.cache_misses)
        self.dropped_samples = self.cache_hits = self.cache_misses = 0
        counts, self._counts = self._counts, defaultdict(int)
        for (name, labels), amount in counts.items():
            self._counters[name].labels(*identity, *labels).inc(amount)
        outputs, self._outputs = self._outputs, []
        if outputs and self._bins is not None:
            for label, amount in self._bins(outputs).items():
                self._counters["outputs"].labels(*identity, label).inc(amount)
        self._gauges["in_flight_requests"].labels(*identity).set(self.in_flight)
        for name, value in self._sources.items():
            self._gauges[name].labels(*identity).set(value())

    def samples(self) -> Iterator[Sample]:
        """What /metrics shows, for those who count with it."""
        self.drain()
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        for metric in registry.collect():
            yield from metric.samples

    def render(self, accept: bytes = b"") -> tuple[bytes, bytes]:
        """The content of /metrics, over all workers when there are several, and its type.

        OpenMetrics, which alone can carry exemplars, when there are traces and the scraper takes it. Workers
        share their values in files that have no room for exemplars: there are none with several.
        """
        self.drain()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry), CONTENT_TYPE
        if self._traced and OPENMETRICS in accept:
            text: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return text, OPENMETRICS_CONTENT_TYPE
        return generate_latest(self._registry), CONTENT_TYPE


def bin_edges(minimum: float | None, maximum: float | None, bins: Sequence[float]) -> list[float]:
    """The score bins' edges: the declared ones, else tenths of the output's range, else tenths of 0..1."""
    if bins:
        return list(bins)
    low, high = (0.0 if minimum is None else minimum), (1.0 if maximum is None else maximum)
    return [low + (high - low) * step / 10 for step in range(1, 10)]
