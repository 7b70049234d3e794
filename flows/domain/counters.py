"""Raw counters at two times become exact counts of the window between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flows.domain.windows import Window


class Series(NamedTuple):
    """One raw counter: `label` is the class, the bound in seconds, the bin … of its `kind`."""

    kind: str
    release: str
    label: str
    pod: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All counters of a model's releases at one time of Prometheus's clock."""

    at: float
    counters: Mapping[Series, float] = field(default_factory=dict)
    scraped: Mapping[str, float] = field(default_factory=dict)
    """Gateway instance → time of its last good scrape; 0 when it is down."""
    gone: Mapping[Series, float] = field(default_factory=dict)
    """Last values of series that were there before and are not reported now: they may come back."""
    problem: str = ""
    """Why these counters cannot be trusted; empty when they can."""

    def after(self, earlier: Snapshot | None) -> Snapshot:
        """This snapshot, remembering what `earlier` knew of series that are missing now."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Snapshot:
        raise NotImplementedError


def difference(
    before: Snapshot,
    after: Snapshot,
    canary: str,
    stable: str | None,
    weight: int,
    fresh_seconds: float = 60.0,
) -> Window:
    """The window between two snapshots, observed only when every gateway was scraped freshly.

    Keep `before` when the window was not observed, so that the next one covers the gap:
    `before = after if window.observed else before`.
    """
    raise NotImplementedError
