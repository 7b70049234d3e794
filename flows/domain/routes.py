"""What a model's route says: who gets which share of the traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

PREDICTIONS = r"(predict|v1/models/[^/:]+:predict|v2/models/[^/]+(/versions/[^/]+)?/infer)"
"""Regular expression for the paths of a model at which its release predicts. Only these are counted when
releases are compared: what a release says of its jobs, its documentation or its health is no prediction, and
anybody can ask for it."""
ASIDE = r"(feedback|batch-predict(/[^/]+(/results)?)?|v1(/.*)?|v2(/.*)?)"
"""The other paths of a model that are for its users. Metrics, documentation and probes are for those who run
it: the gateway does not know them, in whatever spelling, unless `MODELSERVE_GATEWAY_SHOWS` names them."""


@dataclass(frozen=True)
class Match:
    """Requests that carry this header (or cookie) value go to one release, whatever the weights say."""

    source: str
    """`header` or `cookie`."""
    key: str
    value: str
    release: str

    def __post_init__(self) -> None:
        if self.source == "header":
            # Header names have no case; the data planes give them back in lower case.
            object.__setattr__(self, "key", self.key.lower())


@dataclass(frozen=True)
class Mirror:
    """A copy of `percent` % of the requests goes to `release`; its answers are thrown away."""

    release: str
    percent: float


@dataclass(frozen=True)
class Routes:
    """The whole route of one model.

    `weights` maps release names to whole percents. They sum to 100, or the map is empty: then nothing is
    served and the gateway answers 503. A release at weight 0 gets no share, but is reachable with the
    header `x-model-version: <version>`, as every release in the map is.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    matches: tuple[Match, ...] = ()
    mirror: Mirror | None = None

    def __post_init__(self) -> None:
        total = sum(self.weights.values())
        if any(weight < 0 for weight in self.weights.values()):
            raise ValueError(f"weights must not be negative: {dict(self.weights)}")
        if self.weights and total != 100:
            raise ValueError(f"weights sum to {total}, not to 100: {dict(self.weights)}")
        object.__setattr__(self, "weights", MappingProxyType(dict(sorted(self.weights.items()))))

    def weight(self, release: str) -> int:
        """The share of `release` in percent; 0 when it is not in the map."""
        return self.weights.get(release, 0)


def split(stable: str | None, canary: str, weight: int) -> Routes:
    """`weight` % to the canary, the rest to the stable; all to the canary when there is no stable."""
    if stable is None:
        return Routes({canary: 100}) if weight else Routes()
    return Routes({stable: 100 - weight, canary: weight})
