"""An A/B test between two releases of a model: what it routes, and what its outcomes say.

The comparison may be looked at after every outcome. Each arm carries the mixture martingale
`M(p) = B(x+½, n-x+½) / (B(½,½) p^x (1-p)^(n-x))`, which is a non-negative supermartingale when outcomes lie
in [0, 1] and their mean is p; the product over both arms is one too. By Ville's inequality the set
`{(p_a, p_b): M_a(p_a) M_b(p_b) < 1/alpha}` covers the true pair at all times at once with probability
1 - alpha. The interval of the difference is that set's shadow, and the evidence against "no difference" is
the product at the pooled mean, its minimum over equal means.

It assumes that whether an outcome is reported does not depend on the release, and that outcomes of different
requests are independent: one visitor with a thousand requests counts as a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flows.domain.errors import SpecInvalid
from flows.domain.release import parse_release_name
from flows.domain.routes import Match, Routes

IMBALANCE_ALPHA = 0.001
"""A split this unlikely under the planned one means broken routing or stickiness."""


@dataclass(frozen=True)
class Plan:
    """Release `b` gets `share` % of new visitors, `a` the rest.

    `sticky` is how a visitor stays on his release: by the cookie `modelserve-<model>` that his first answer
    sets, by the header `x-experiment-arm` (`a` or `b`) that the client sends, or not at all.
    `measure` is what counts as success: `outcome`, the reported value itself (boolean or in [0, 1]); or the
    name of an output, and then a prediction that equals the reported outcome.
    """

    model: str
    a: str
    b: str
    share: int = 50
    sticky: Literal["cookie", "header", "none"] = "cookie"
    measure: str = "outcome"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        for name in (self.a, self.b):
            if parse_release_name(name)[0] != self.model:
                raise SpecInvalid(f"experiment: {name} is not a release of {self.model}")
        if self.a == self.b:
            raise SpecInvalid(f"experiment: both arms are {self.a}; name two different versions")
        if not 1 <= self.share <= 99:
            raise SpecInvalid(f"experiment: share must be 1 to 99 percent, found {self.share}")
        if not 0 < self.alpha < 1:
            raise SpecInvalid(f"experiment: alpha must lie between 0 and 1, found {self.alpha:g}")
        if self.sticky not in ("cookie", "header", "none"):
            raise SpecInvalid(f"experiment: sticky must be cookie, header or none, found {self.sticky!r}")

    def routes(self) -> Routes:
        """The model's route while the experiment runs."""
        matches: tuple[Match, ...] = ()
        if self.sticky == "cookie":
            key = f"modelserve-{self.model}"
            matches = tuple(
                Match("cookie", key, str(parse_release_name(name)[1]), name) for name in (self.a, self.b)
            )
        if self.sticky == "header":
            matches = (
                Match("header", "x-experiment-arm", "a", self.a),
                Match("header", "x-experiment-arm", "b", self.b),
            )
        return Routes({self.a: 100 - self.share, self.b: self.share}, matches)

    def success(self, prediction: Mapping[str, Any], outcome: Any) -> float | None:
        """The score of one row in [0, 1]; None when it has none (no such output, no usable outcome)."""
        if outcome is None:
            return None
        if self.measure != "outcome":
            if self.measure not in prediction:
                return None
            return float(prediction[self.measure] == outcome)
        if isinstance(outcome, bool | int | float) and 0 <= float(outcome) <= 1:
            return float(outcome)
        return None


@dataclass(frozen=True)
class Arm:
    """`count` scored outcomes with the sum `total`; each lies in [0, 1]."""

    release: str
    count: int = 0
    total: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.total) and 0 <= self.total <= self.count):
            raise ValueError(f"{self.release}: {self.count} outcomes in [0, 1] cannot sum to {self.total}")

    @property
    def mean(self) -> float:
        """The observed mean; ½ before the first outcome."""
        return self.total / self.count if self.count else 0.5


@dataclass(frozen=True)
class Comparison:
    """What the outcomes so far say about `b` against `a`; valid at whatever time it is looked at."""

    a: Arm
    b: Arm
    alpha: float
    difference: float
    """Mean of b minus mean of a."""
    low: float
    high: float
    """The true difference lies between these, at all times at once, with probability 1 - alpha."""
    log_evidence: float
    """Natural logarithm of the e-value against "no difference"."""

    @property
    def better(self) -> str | None:
        """The better release; None while that is not proven."""
        if self.log_evidence < math.log(1 / self.alpha) or self.low <= 0 <= self.high:
            return None
        return self.b.release if self.difference > 0 else self.a.release

    @property
    def sentence(self) -> str:
        """For people, with figures in percentage points."""
        arms = f"{self.a.release} {self.a.mean:.2%} of {self.a.count}, "
        arms += f"{self.b.release} {self.b.mean:.2%} of {self.b.count} outcomes"
        between = f"difference {100 * self.low:+.2f} to {100 * self.high:+.2f} points"
        if self.better is None:
            return f"not decided: {arms}; {between} at {1 - self.alpha:.0%}"
        return f"{self.better} is better: {arms}; {between} at {1 - self.alpha:.0%}"


def compare(a: Arm, b: Arm, alpha: float) -> Comparison:
    """Compare two arms; cheap enough for every look (about a thousand logarithms)."""
    threshold = math.log(1 / alpha)
    difference = b.mean - a.mean if a.count and b.count else 0.0
    return Comparison(
        a=a,
        b=b,
        alpha=alpha,
        difference=difference,
        low=_bound(a, b, difference, -1.0, threshold),
        high=_bound(a, b, difference, 1.0, threshold),
        log_evidence=_least_evidence(a, b, 0.0),
    )


def imbalance(plan: Plan, requests_a: int, requests_b: int) -> str | None:
    """A sentence when the observed split cannot be the planned one; only for splits that are not sticky."""
    total = requests_a + requests_b
    if not total or _log_martingale(Arm(plan.b, total, requests_b), plan.share / 100) < math.log(
        1 / IMBALANCE_ALPHA
    ):
        return None
    return (
        f"{plan.b} got {requests_b / total:.1%} of {total} requests instead of {plan.share} %: "
        "check the route before believing the comparison"
    )


def _log_martingale(arm: Arm, mean: float) -> float:
    """ln M(mean); infinite where outcomes contradict the mean outright."""
    hits, misses = arm.total, arm.count - arm.total
    if (hits > 0 and mean <= 0) or (misses > 0 and mean >= 1):
        return math.inf
    value = _log_beta(hits + 0.5, misses + 0.5) - _log_beta(0.5, 0.5)
    if hits > 0:
        value -= hits * math.log(mean)
    if misses > 0:
        value -= misses * math.log1p(-mean)
    return value


def _log_beta(first: float, second: float) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)


def _least_evidence(a: Arm, b: Arm, difference: float) -> float:
    """The least ln M_a(p) + ln M_b(p + difference) over all p: a convex function, minimised by its slope."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    for _ in range(60):
        middle = (low + high) / 2
        if _slope(a, middle) + _slope(b, middle + difference) > 0:
            high = middle
        else:
            low = middle
    middle = (low + high) / 2
    return _log_martingale(a, middle) + _log_martingale(b, middle + difference)


def _slope(arm: Arm, mean: float) -> float:
    hits, misses = arm.total, arm.count - arm.total
    falling = -hits / mean if mean > 0 else (-math.inf if hits else 0.0)
    rising = misses / (1 - mean) if mean < 1 else (math.inf if misses else 0.0)
    return falling + rising


def _bound(a: Arm, b: Arm, inside: float, outside: float, threshold: float) -> float:
    """Where the evidence reaches the threshold between a difference inside the set and an extreme one."""
    if _least_evidence(a, b, outside) < threshold:
        return outside
    for _ in range(40):
        middle = (inside + outside) / 2
        if _least_evidence(a, b, middle) < threshold:
            inside = middle
        else:
            outside = middle
    return outside
