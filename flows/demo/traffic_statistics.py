"""What the users of a replay got, counted by the release that answered: the demo's table is made of this.

The figures go to one JSON file, replaced as a whole, so that a reader never sees half of it. They are
counted at the client: what it did not get, failed, whoever was at fault.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NOBODY = "none"
"""Stands for the release of answers that carry no version: the gateway's own, or no answer at all."""
NO_ANSWER = 0
"""Stands for the status of a request without an answer."""

_BOUNDS_MS = tuple(round(0.5 * 1.25**step, 3) for step in range(46))
"""Upper bounds of the latency bins, 0.5 ms to 11 s, each a quarter above the one before."""


@dataclass
class Answers:
    """Answers of one release. Times are Unix seconds, taken when the answer came."""

    requests: int = 0
    failed: int = 0
    """Everything but 2xx, and requests without an answer."""
    statuses: dict[str, int] = field(default_factory=dict)
    first_at: float | None = None
    last_at: float | None = None
    first_failure_at: float | None = None
    last_failure_at: float | None = None
    latency_bins: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS_MS) + 1))

    def add(self, status: int, seconds: float, at: float) -> None:
        self.requests += 1
        self.first_at = at if self.first_at is None else self.first_at
        self.last_at = at
        self.statuses[str(status)] = self.statuses.get(str(status), 0) + 1
        self.latency_bins[bisect_left(_BOUNDS_MS, seconds * 1000)] += 1
        if not 200 <= status < 300:
            self.failed += 1
            self.first_failure_at = at if self.first_failure_at is None else self.first_failure_at
            self.last_failure_at = at

    def latency_ms(self, share: float) -> float | None:
        """Upper bound of the bin that holds this quantile, in milliseconds; None without requests."""
        passed = 0
        for bound, count in zip((*_BOUNDS_MS, float("inf")), self.latency_bins, strict=True):
            passed += count
            if count and passed >= share * self.requests:
                return min(bound, _BOUNDS_MS[-1])
        return None


@dataclass
class Statistics:
    """One replay so far."""

    model: str
    target_rate: float
    started_at: float
    finished_at: float | None = None
    sent: int = 0
    last_sent_at: float | None = None
    in_flight: int = 0
    skipped_seconds: float = 0.0
    """Schedule given up because the gateway was slower than the rate for long."""
    row_time: str | None = None
    """`at` of the newest row that was sent."""
    releases: dict[str, Answers] = field(default_factory=dict)
    """By version, as in X-Model-Version."""
    feedback_sent: int = 0
    feedback_failed: int = 0
    feedback_unsent: int = 0
    """Outcomes that were still waiting at the end and found no time."""
    without_outcome: int = 0
    last_error: str | None = None
    """Why the newest request without an answer got none."""

    def answer(self, version: str, status: int, seconds: float, at: float) -> None:
        self.releases.setdefault(version, Answers()).add(status, seconds, at)

    @property
    def answered(self) -> int:
        return sum(answers.requests for answers in self.releases.values())

    @property
    def failed(self) -> int:
        return sum(answers.failed for answers in self.releases.values())

    def as_json(self, now: float) -> dict[str, Any]:
        """The content of the statistics file; keys are stable, readers may rely on them."""
        sending = (self.last_sent_at or now) - self.started_at if self.finished_at else now - self.started_at
        releases = {}
        for version, answers in sorted(self.releases.items()):
            releases[version] = asdict(answers) | {
                "latency_ms": {"p50": answers.latency_ms(0.5), "p99": answers.latency_ms(0.99)}
            }
            del releases[version]["latency_bins"]
        return {
            "model": self.model,
            "state": "running" if self.finished_at is None else "finished",
            "started_at": self.started_at,
            "updated_at": now,
            "finished_at": self.finished_at,
            "target_rate": self.target_rate,
            "rate": round(self.sent / max(sending, 1e-9), 2),
            "skipped_seconds": round(self.skipped_seconds, 3),
            "row_time": self.row_time,
            "sent": self.sent,
            "in_flight": self.in_flight,
            "answered": self.answered,
            "failed": self.failed,
            "last_error": self.last_error,
            "releases": releases,
            "feedback": {
                "sent": self.feedback_sent,
                "failed": self.feedback_failed,
                "unsent": self.feedback_unsent,
                "without_outcome": self.without_outcome,
            },
        }

    def write(self, path: Path, now: float) -> None:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(self.as_json(now), indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)

    def line(self) -> str:
        """The progress in one line."""
        shares = []
        for version, answers in sorted(self.releases.items()):
            name = "no release" if version == NOBODY else f"v{version}"
            failed = f", {answers.failed} FAILED" if answers.failed else ""
            shares.append(f"{name} {answers.requests - answers.failed} served{failed}")
        return f"traffic at {self.row_time or 'the start'}: {'; '.join(shares) or 'no answer yet'}"
