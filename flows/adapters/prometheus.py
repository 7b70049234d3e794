"""Reads raw counters from Prometheus; translates, never decides."""

from __future__ import annotations

from collections.abc import Sequence

from flows.domain.counters import Snapshot


class PrometheusCounters:
    """Counters of releases, as one Prometheus sees them at one time."""

    def __init__(self, url: str, timeout_seconds: float = 5.0) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds

    def snapshot(self, releases: Sequence[str], earlier: Snapshot | None = None) -> Snapshot:
        """All counters of these releases (of one model) now; pass the last snapshot as `earlier`.

        Raises DependencyDown when Prometheus does not answer: the time is then unobserved.
        """
        raise NotImplementedError

    def recent(self, model: str, seconds: float = 3600.0) -> tuple[float, float]:
        """Requests per second and error rate (0 to 1) of the model over the last hour: input of `plan`."""
        raise NotImplementedError
