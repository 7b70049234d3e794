"""Raw counters at two times become exact counts of the window between them.

No rates and no extrapolation: a counter that went down was restarted and counts from zero, one that is
missing may come back, and a monitoring outage is only a longer window. Whatever cannot be trusted makes the
window unobserved, with the reason; it never becomes a zero.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from flows.domain.judge.windows import Counts, EvidenceInvalid, Pair, Window, unobserved

GATEWAY_KINDS = frozenset({"requests", "refused", "sent", "active", "latency", "cached"})
"""Kinds that the gateway counts for both arms; the others are counted by the releases' own servers."""
METRIC_KINDS = frozenset({"bad", "total"})
"""Kinds that somebody else counts: their label is a metric's name and the labels of its series."""
OUTCOME_KINDS = frozenset({"outcomes", "loss", "differences"})
"""Kinds that whoever watches the promotion counts."""
OTHERS_KINDS = METRIC_KINDS | OUTCOME_KINDS
"""Kinds that neither the gateway nor the servers count."""
GAUGES = frozenset({"active"})
"""Kinds that may fall without a restart."""
SKEW_SECONDS = 5.0
"""How far in the future a scrape may seem to be before two clocks are said to differ."""


class Series(NamedTuple):
    """One raw counter.

    `kind` and its `label`: requests (class "2" to "5"), refused, sent, active (no label), latency (bound in
    seconds, "inf" for all), cached (the same, of answers that were known already), served and took (requests
    and latency as the server counts them), outputs (bin), compared, disagreed (no label), segment
    and segment_errors (`column=value`), bad and total (metric and series), outcomes, loss (no label),
    differences (hundredths).
    `pod` is who reports it: a gateway instance for GATEWAY_KINDS, else a server.
    """

    kind: str
    release: str
    label: str
    pod: str

    @property
    def process(self) -> tuple[bool, str, str]:
        """What is restarted as one: the counters of a release in one reporting process."""
        return self.kind in GATEWAY_KINDS, self.release, self.pod


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All counters of a model's releases at one time of Prometheus's clock (unix seconds)."""

    at: float
    counters: Mapping[Series, float] = field(default_factory=dict)
    scraped: Mapping[str, float] = field(default_factory=dict)
    """Gateway instance → time of its last good scrape; 0 when it is down."""
    gone: Mapping[Series, float] = field(default_factory=dict)
    """Last values of series that were there before and are not reported now: they may come back."""
    problem: str = ""
    """Why these counters cannot be trusted; empty when they can."""
    heard: tuple[str, str] | None = None
    """Where outcomes are read from, if this is asked for: before the promotion's first answer, and after the
    last outcome that is counted here."""

    def after(self, earlier: Snapshot | None) -> Snapshot:
        """This snapshot, remembering what `earlier` knew of series that are missing now."""
        if earlier is None:
            return self
        known = {**earlier.gone, **earlier.counters}
        gone = {series: value for series, value in known.items() if series not in self.counters}
        return replace(self, gone=gone, heard=earlier.heard)

    def joined(self, counters: Mapping[Series, float], heard: tuple[str, str]) -> Snapshot:
        """With outcomes that were counted at about the same time, and where reading them goes on."""
        gone = {series: value for series, value in self.gone.items() if series not in counters}
        return replace(self, counters={**self.counters, **counters}, gone=gone, heard=heard)

    def doubt(self, fresh_seconds: float) -> str:
        """Why nothing can be concluded from this snapshot; empty when something can."""
        if self.problem:
            return self.problem
        if not self.scraped:
            return "Prometheus scrapes no gateway: is the job 'gateway' configured and are the rules loaded?"
        for pod, at in sorted(self.scraped.items()):
            if at <= 0:
                return f"gateway {pod} does not answer Prometheus"
            if at - self.at > SKEW_SECONDS:
                return f"gateway {pod} was scraped {at - self.at:.0f} s in the future: clocks differ"
            if self.at - at > fresh_seconds:
                return f"gateway {pod} was last scraped {self.at - at:.0f} s ago"
        return ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `Snapshot.from_json` gives back an equal snapshot."""
        return {
            "at": self.at,
            "counters": [[*series, value] for series, value in sorted(self.counters.items())],
            "scraped": dict(self.scraped),
            "gone": [[*series, value] for series, value in sorted(self.gone.items())],
            "problem": self.problem,
            **({"heard": list(self.heard)} if self.heard else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Snapshot:
        """Raises EvidenceInvalid when it was not written by `to_json`."""
        try:
            counters, gone = (
                {
                    Series(kind, release, label, pod): value
                    for kind, release, label, pod, value in content[name]
                }
                for name in ("counters", "gone")
            )
            heard = content.get("heard")
            read = (str(heard[0]), str(heard[1])) if heard else None
            return cls(content["at"], counters, dict(content["scraped"]), gone, content["problem"], read)
        except (KeyError, TypeError, ValueError) as error:
            raise EvidenceInvalid(
                f"stored snapshot: {error!r}; it was not written by this program"
            ) from error


def difference(
    before: Snapshot,
    after: Snapshot,
    canary: str,
    stable: str | None,
    weight: int,
    fresh_seconds: float = 60.0,
) -> Window:
    """The window between two snapshots, observed only when every gateway was scraped freshly at both ends.

    `canary` and `stable` are release names. Keep `before` when the window was not observed, so that the next
    one covers the gap: `before = after if window.observed else before`.
    """
    doubt = _doubt(before, after, fresh_seconds)
    if doubt:
        return unobserved(before.at, after.at, weight, doubt, stable=stable is not None)
    grown = _grown(before, after, canary)
    bounds = _bounds(grown, "latency")
    try:
        return Window(
            before.at,
            after.at,
            weight,
            _counts(grown, canary, bounds, before, after),
            _counts(grown, stable, bounds, before, after) if stable is not None else None,
            _halves(grown, stable),
        )
    except EvidenceInvalid as error:
        return unobserved(before.at, after.at, weight, str(error), stable=stable is not None)


def _doubt(before: Snapshot, after: Snapshot, fresh_seconds: float) -> str:
    doubt = before.doubt(fresh_seconds) or after.doubt(fresh_seconds)
    if doubt:
        return doubt
    if after.at <= before.at:
        return f"Prometheus's clock went back by {before.at - after.at:.0f} s"
    for pod, at in sorted(after.scraped.items()):
        if at < before.scraped.get(pod, 0):
            return f"the scrape of gateway {pod} is older than the last one: another Prometheus answered"
    return ""


def _grown(before: Snapshot, after: Snapshot, canary: str) -> dict[Series, int]:
    """How much each reported counter grew."""
    known = {**before.gone, **before.counters}
    gateways = {*before.scraped, *(series.pod for series in known if series.kind in GATEWAY_KINDS)}
    servers = {series.process for series in known if series.kind not in GATEWAY_KINDS}
    restarted = {
        series.process
        for series, value in after.counters.items()
        if series.kind not in GAUGES and value < known.get(series, -math.inf)
    }
    grown = {}
    for series, value in after.counters.items():
        start = known.get(series)
        if series.process in restarted:
            start = 0.0
        elif start is None:
            # First seen. In a process that we knew, it was born since, at zero. In one that we did not know,
            # its past is not ours to count: except the canary's own servers, whose whole life is this ramp.
            born = series.pod in gateways if series.kind in GATEWAY_KINDS else series.process in servers
            start = 0.0 if born or (series.release == canary and series.kind not in GATEWAY_KINDS) else value
        grown[series] = round(value - start)
    return grown


def _bounds(grown: Mapping[Series, int], kind: str) -> list[float]:
    """The histogram bounds that every reporting process has for every release: only these add up."""
    found: defaultdict[tuple[str, str], set[float]] = defaultdict(set)
    for series in grown:
        if series.kind == kind:
            found[series.release, series.pod].add(float(series.label))
    common = set.intersection(*found.values()) if found else set()
    return sorted(bound for bound in common if math.isfinite(bound)) if math.inf in common else []


def _counts(
    grown: Mapping[Series, int], release: str, bounds: list[float], before: Snapshot, after: Snapshot
) -> Counts:
    sums: defaultdict[tuple[str, str], int] = defaultdict(int)
    for series, amount in grown.items():
        if series.release == release:
            label = repr(float(series.label)) if series.kind in ("latency", "cached") else series.label
            sums[series.kind, label] += amount
    timed = sums["latency", "inf"]
    slow = {bound: timed - sums["latency", repr(bound)] for bound in bounds}
    # Another family of the gateway's page than all answers: it may have been read an instant later.
    cached = min(sums["cached", "inf"], timed)
    return Counts(
        requests=_total(sums, "requests"),
        errors=sums["requests", "5"],
        timed=timed,
        slow=slow,
        outputs={label: amount for (kind, label), amount in sorted(sums.items()) if kind == "outputs"},
        compared=_total(sums, "compared"),
        disagreed=_total(sums, "disagreed"),
        reported=any(
            one.release == release and one.kind not in GATEWAY_KINDS | OTHERS_KINDS for one in after.counters
        ),
        started=_started(release, before, after),
        predicted=sums["requests", "2"],
        # Another family of the gateway's page than the requests: it may have been read an instant later.
        refused=min(_total(sums, "refused"), sums["requests", "4"]),
        # What is under way at the end is not lost, and what was at the beginning has ended since.
        sent=max(0, _total(sums, "sent") - _total(sums, "active")),
        cached=cached,
        cached_slow={
            bound: min(max(cached - sums["cached", repr(bound)], 0), slow[bound])
            for bound in (bounds if cached else ())
        },
        segments=_segments(sums),
        metrics=_metrics(sums),
        outcomes=sums.get(("outcomes", "")),
        loss=_total(sums, "loss"),
        differences={
            label: amount
            for (kind, label), amount in sorted(sums.items())
            if kind == "differences" and amount
        },
    )


def _segments(sums: Mapping[tuple[str, str], int]) -> dict[str, Pair]:
    # Two counters of one page, of which several workers may write one a moment later.
    return {
        label: (min(sums.get(("segment_errors", label), 0), total), total)
        for (kind, label), total in sorted(sums.items())
        if kind == "segment"
    }


def _metrics(sums: Mapping[tuple[str, str], int]) -> dict[str, Pair]:
    found: dict[str, Pair] = {}
    for (kind, label), amount in sorted(sums.items()):
        if kind in METRIC_KINDS:
            name = label.partition("{")[0]
            bad, total = found.get(name, (0, 0))
            found[name] = (bad + amount, total) if kind == "bad" else (bad, total + amount)
    return found


def _started(release: str, before: Snapshot, after: Snapshot) -> int:
    """How many of the release's servers were not there before, or whose counters began again."""
    known = {**before.gone, **before.counters}
    names = {one.pod for one in known if one.release == release and one.kind == "served"}
    new = {
        one.pod
        for one, value in after.counters.items()
        if one.release == release
        and one.kind == "served"
        and (one.pod not in names or value < known.get(one, -math.inf))
    }
    return len(new)


def _halves(grown: Mapping[Series, int], stable: str | None) -> tuple[Counts, Counts] | None:
    """The stable's servers in two groups, every other one in each."""
    ours = {series: amount for series, amount in grown.items() if series.release == stable}
    pods = sorted({series.pod for series in ours if series.kind == "served"})
    if len(pods) < 2:
        return None
    bounds = _bounds(ours, "took")
    first, second = (
        _served({series: amount for series, amount in ours.items() if series.pod in group}, bounds)
        for group in (pods[::2], pods[1::2])
    )
    return first, second


def _served(grown: Mapping[Series, int], bounds: list[float]) -> Counts:
    sums: defaultdict[tuple[str, str], int] = defaultdict(int)
    for series, amount in grown.items():
        sums[series.kind, series.label] += amount
    timed = sums["took", "inf"] if bounds else 0
    return Counts(
        _total(sums, "served"),
        sums["served", "5"],
        timed,
        {bound: timed - sums["took", repr(bound)] for bound in bounds},
    )


def _total(sums: Mapping[tuple[str, str], int], kind: str) -> int:
    return sum(amount for (one, _), amount in sums.items() if one == kind)
