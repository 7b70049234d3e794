"""Reads raw counters from Prometheus; translates, never decides.

Everything is asked in one query at one time of Prometheus's own clock, so that both arms are of the same
moment and nobody's clock but Prometheus's matters. Only our own series names are known here
(monitoring/rules/traffic-*.yml makes them from the mesh's). No rates: what is between two snapshots is
counted in flows.domain.judge.counters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import httpx

from flows.domain.errors import DependencyDown
from flows.domain.judge.asked import Metric
from flows.domain.judge.counters import Series, Snapshot
from flows.domain.release import parse_release_name, release_name

KINDS: Mapping[str, tuple[str, str]] = {
    "traffic:requests:count": ("requests", "class"),
    "traffic:refused:count": ("refused", ""),
    "traffic:sent:count": ("sent", ""),
    "traffic:active:count": ("active", ""),
    "traffic:latency:bucket": ("latency", "le"),
    "traffic:cached:bucket": ("cached", "le"),
    "modelserve_requests_total": ("served", "code"),
    "modelserve_request_duration_seconds_bucket": ("took", "le"),
    "modelserve_outputs_total": ("outputs", "bin"),
    "modelserve_segment_requests_total": ("segment", "segment"),
    "modelserve_segment_errors_total": ("segment_errors", "segment"),
    "modelserve_shadow_compared_total": ("compared", ""),
    "modelserve_shadow_disagreed_total": ("disagreed", ""),
}
"""Series → kind of counter, and the label that it is read by."""
SCRAPED = "traffic:scrape:seconds"
ASKED = "modelserve_asked"
"""The label that tells a metric of the model's own from all others: side, name and release."""
RECENT_STEP_SECONDS = 10


class PrometheusCounters:
    """Counters of releases, as one Prometheus sees them at one time.

    `fresh_seconds`: how old a gateway's last scrape may be for a first snapshot to be trusted.
    """

    def __init__(self, url: str, timeout_seconds: float = 5.0, fresh_seconds: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._fresh_seconds = fresh_seconds

    def snapshot(
        self, releases: Sequence[str], earlier: Snapshot | None = None, metrics: Sequence[Metric] = ()
    ) -> Snapshot:
        """All counters of these releases (of one model) now, those of `metrics` among them; pass the last
        snapshot as `earlier`.

        A snapshot that cannot be trusted carries its `problem`, and the window that ends with it is
        unobserved. Raises DependencyDown when Prometheus does not answer, and when there is no `earlier` and
        the counters could not be trusted as the start of a window.
        """
        names = [parse_release_name(name) for name in releases]
        models = {model for model, _ in names}
        if len(models) != 1:
            raise ValueError(f"releases of one model expected, found {sorted(releases)}")
        versions = "|".join(str(version) for _, version in names)
        names_read = "|".join(KINDS)
        selector = f'{{__name__=~"{names_read}",model="{models.pop()}",version=~"{versions}"}}'
        query = " or ".join([selector, SCRAPED, *_asked(metrics, releases)])
        at, samples, warnings = self._query(query, "vector")
        problem = f"Prometheus answered in part: {warnings[0]}" if warnings else ""
        with self._reading():
            snapshot = _snapshot(at, samples, frozenset(releases), problem)
        if earlier is None:
            doubt = snapshot.doubt(self._fresh_seconds)
            if doubt:
                raise DependencyDown(f"the counters at {self._url} cannot be used yet: {doubt}")
        return snapshot.after(earlier)

    def recent(self, model: str, seconds: float = 3600.0) -> tuple[float, float]:
        """Requests per second and error rate (0 to 1) of the model over the last hour: input of `plan`.

        Both 0 when nothing was counted. Raises DependencyDown when Prometheus does not answer.
        """
        query = f'traffic:requests:count{{model="{model}"}}[{seconds:.0f}s:{RECENT_STEP_SECONDS}s]'
        _, series, _ = self._query(query, "matrix")
        total = errors = 0.0
        times: list[float] = []
        with self._reading():
            for one in series:
                points = [(float(at), float(value)) for at, value in one["values"]]
                values = [(at, value) for at, value in points if math.isfinite(value) and value >= 0]
                times += [at for at, _ in (*values[:1], *values[-1:])]
                grown = sum(b - a if b >= a else b for (_, a), (_, b) in pairwise(values))
                total += grown
                errors += grown if one["metric"]["class"] == "5" else 0.0
        span = max(times) - min(times) if times else 0.0
        if not total or not span:
            return 0.0, 0.0
        return total / span, errors / total

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A sample that lacks a label would be counted as something else: it is none, and said to be."""
        try:
            yield
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise DependencyDown(
                f"Prometheus at {self._url} holds a series that cannot be read ({error!r}); "
                "are the rules of this version loaded, and no others of the same names?"
            ) from error

    def _query(self, query: str, kind: str) -> tuple[float, list[dict[str, Any]], list[str]]:
        """Time of evaluation, results, and warnings of a partial answer."""
        where = f"Prometheus at {self._url}"
        try:
            answer = httpx.post(
                f"{self._url}/api/v1/query",
                data={"query": query, "timeout": f"{self._timeout_seconds:g}s"},
                timeout=self._timeout_seconds,
            )
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise DependencyDown(f"{where} does not answer ({reason}); start it, or check its URL") from error
        try:
            body = answer.json()
            if body["status"] != "success":
                raise DependencyDown(f"{where} refused a query: {body.get('error', answer.status_code)}")
            if body["data"]["resultType"] != kind:
                raise KeyError(kind)
            results = body["data"]["result"]
            at = float(results[0]["value"][0]) if results and kind == "vector" else 0.0
            return at, results, list(body.get("warnings", []))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = f"HTTP {answer.status_code}, {' '.join(answer.text.split())[:80]!r}"
            raise DependencyDown(f"{where} does not answer as Prometheus does ({reason})") from error


def _snapshot(at: float, samples: list[dict[str, Any]], releases: frozenset[str], problem: str) -> Snapshot:
    found: dict[tuple[Series, str], float] = {}
    scraped: dict[str, float] = {}
    for sample in samples:
        labels, value = sample["metric"], float(sample["value"][1])
        name = labels.get("__name__", ASKED) if ASKED in labels else labels["__name__"]
        if not math.isfinite(value) or value < 0:
            problem = problem or f"{name} of {labels.get('version', labels.get('pod'))} is {value:g}"
            continue
        if name == SCRAPED:
            # Two of the same pod are two Prometheus replicas behind one address: the later one counts.
            scraped[labels.get("pod", "")] = max(value, scraped.get(labels.get("pod", ""), 0.0))
            continue
        series = _others_series(labels) if ASKED in labels else _series(name, labels)
        if series.release in releases:
            key = (series, labels.get("route", "") + labels.get("code", ""))
            found[key] = max(value, found.get(key, 0.0))
    counters: defaultdict[Series, float] = defaultdict(float)
    for (series, _), value in found.items():
        counters[series] += value
    return Snapshot(at, dict(counters), scraped, problem=problem)


def _asked(metrics: Sequence[Metric], releases: Sequence[str]) -> list[str]:
    """A clause for each counter of one's own, marked with what it is."""
    sides: tuple[Literal["bad", "total"], ...] = ("bad", "total")
    return [
        f'label_replace({metric.selector(side, name)}, "{ASKED}", "{side} {metric.name} {name}", "", "")'
        for metric in metrics
        for name in releases
        for side in sides
    ]


def _others_series(labels: Mapping[str, str]) -> Series:
    """Each series by itself, since one of several that begins again must be seen as such."""
    side, metric, release = labels[ASKED].split(" ")
    pod = f"{labels.get('job', '')}@{labels.get('pod') or labels.get('instance', '')}"
    own = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()) if name != ASKED)
    return Series(side, release, f"{metric}{{{own}}}", pod)


def _series(name: str, labels: Mapping[str, str]) -> Series:
    kind, label = KINDS[name]
    value = labels[label] if label else ""
    if kind in ("latency", "cached", "took"):
        value = repr(float(value))
    elif kind == "served":
        value = value[:1]
    release = release_name(labels["model"], int(labels["version"]))
    return Series(kind, release, value, labels.get("pod") or labels.get("instance", ""))
