"""Whom an alert is about: the new release, or an incident that every release shares.

Taking a release out helps only when the release is the cause. Where two releases have served side by side,
the judge has compared them already, and its last verdict is the answer; where there was nothing to compare,
the newest change is the likeliest cause and goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flows.domain.judge.verdict import Verdict
from flows.domain.promotion import Standing, newest
from flows.wiring import ControlPlane

INCIDENT = "incident"
"""The judge's metric for harm that both releases share."""


class Blame(Enum):
    RELEASE = "release"
    SHARED = "shared"
    NOT_IN_SERVICE = "not in service"


@dataclass(frozen=True)
class Finding:
    kind: Blame
    sentence: str
    version: int = 0
    """The release that is to blame."""


def blame(plane: ControlPlane, model: str, version: str | None) -> Finding:
    """Whom an alert about `version` of `model` (None: about the model) is about."""
    standing = plane.registry.standing(model)
    release = newest(standing)
    if release is None:
        return Finding(Blame.NOT_IN_SERVICE, f"no release of {model} is in service")
    named = str(release.version) if version is None else version
    if standing.retreat is not None and named == str(standing.retreat.leaves):
        return Finding(
            Blame.RELEASE, f"{model} v{named} is being taken out, and that must be finished", int(named)
        )
    serving = {str(other.version) for other in standing.releases if other.in_service}
    if named not in serving:
        return Finding(Blame.NOT_IN_SERVICE, f"{model} v{named} is not in service any more")
    if named != str(release.version):
        return Finding(
            Blame.SHARED,
            f"the alert names v{named}, which served before v{release.version}: that one is not the cause",
        )
    if standing.canary is None and standing.promotion is None and standing.previous is None:
        # It has proven itself once, and without it nobody would answer at all.
        return Finding(
            Blame.SHARED, f"v{release.version} has no earlier release to go back to: a person must look"
        )
    verdict = _last_verdict(plane, standing)
    if verdict is not None and verdict.metric == INCIDENT:
        return Finding(Blame.SHARED, verdict.sentence)
    if version is None and verdict is not None and verdict.interval[1] < 0:
        served = f"v{release.version} is proven to fail less than the release beside it"
        return Finding(Blame.SHARED, f"{served}: that one is not the cause; {verdict.sentence}")
    compared = "nothing to compare it with" if verdict is None else verdict.sentence
    return Finding(Blame.RELEASE, f"v{release.version} is the newest change; {compared}", release.version)


def _last_verdict(plane: ControlPlane, standing: Standing) -> Verdict | None:
    if standing.promotion is None:
        return None
    stored = plane.registry.windows(standing.promotion)
    return Verdict.from_json(stored[-1].verdict) if stored else None
