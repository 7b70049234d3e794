"""What turns out to be true while a promotion is watched, as counters of both releases.

Reading takes nothing away from the archive. Where it stands is part of the stored counters, so that the next
step's run, or one that follows a dead one, counts no outcome twice. What was answered before the promotion
began is not looked at: only since then do both releases answer the same split.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence

from flows.adapters.outcomes import OutcomeStream, Position
from flows.domain.errors import DependencyDown
from flows.domain.judge.asked import Outcomes
from flows.domain.judge.counters import OUTCOME_KINDS, Snapshot
from flows.domain.judge.outcomes import Pairing, loss
from flows.domain.release import parse_release_name

log = logging.getLogger(__name__)


class Truths:
    """`shifts` are the times at which the weight has changed, rising: unix seconds."""

    def __init__(self, url: str, asked: Outcomes, canary: str, stable: str, shifts: Sequence[float]) -> None:
        self._url = url
        self._asked = asked
        self._arms = {canary: True, stable: False}
        self._names = canary, stable
        self._shifts = shifts
        self._stream: OutcomeStream | None = None
        self._answers_from = ""
        self._pairing = Pairing(canary, stable)

    def joined(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what is known by now; as it is while Redis does not answer, which the judge takes
        for outcomes that nobody can tell. What comes meanwhile is counted later."""
        try:
            stream = self._stream or self._opened(snapshot)
            for row in stream.read():
                amount = loss(self._asked, row.prediction, row.outcome)
                if amount is not None and row.release in self._arms:
                    step = bisect_right(self._shifts, row.at)
                    self._pairing.add(amount, canary=self._arms[row.release], step=step)
        except DependencyDown as error:
            log.warning("%s", error)
            return snapshot
        return snapshot.joined(self._pairing.series(), (self._answers_from, stream.position.outcomes))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _opened(self, snapshot: Snapshot) -> OutcomeStream:
        """From where the last stored counters stand; for a promotion's first ones, from now on."""
        model, _ = parse_release_name(self._names[0])
        start = Position(*snapshot.heard) if snapshot.heard else None
        self._stream = OutcomeStream(self._url, model, start)
        self._answers_from = self._stream.position.samples
        counted = {
            series: value
            for series, value in {**snapshot.gone, **snapshot.counters}.items()
            if series.kind in OUTCOME_KINDS and series.release in self._names
        }
        self._pairing = Pairing(*self._names, counted)
        return self._stream
