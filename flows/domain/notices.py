"""What a person is told, and in which words: events of the registry become notices.

Told is what asks for a person or ends something that one is waiting for. Steps on the way are in the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flows.domain.promotion import State


class Urgency(StrEnum):
    """How it is coloured; the words are those of Apprise."""

    GOOD = "success"
    NEWS = "info"
    LOOK = "warning"
    ACT = "failure"


@dataclass(frozen=True)
class Happening:
    """One event of the registry. `at` is when, in unix seconds."""

    id: int
    at: float
    model: str
    version: int | None
    promotion: str | None
    kind: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Notice:
    """`title` says what happened, `sentence` why and what to do. `event` is the newest that it covers."""

    event: int
    at: float
    title: str
    sentence: str
    urgency: Urgency
    promotion: str | None = None
    link: str | None = None
    """Where the event itself names a page."""


ENDS = {
    State.PROMOTED: ("promoted", Urgency.GOOD),
    State.REJECTED: ("rejected, traffic went back", Urgency.LOOK),
    State.FAILED: ("the promotion failed, traffic went back", Urgency.LOOK),
    State.ABORTED: ("the promotion was aborted, traffic went back", Urgency.NEWS),
    State.KEPT: ("kept at its weight, unproven: a person must decide", Urgency.LOOK),
    State.UNPROVEN: ("unproven: too little evidence, and none against it", Urgency.LOOK),
}
ROLLED_BACK, STOOD, ALERT = "rolled back", "stays", "alert"
ANSWERED = frozenset({"rolled-back"})
"""Outcomes of an alert after which nobody has to act: what was done is an event of its own."""


def notices(happenings: Iterable[Happening]) -> list[Notice]:
    """What to tell of these events, in their order.

    A rollback that ended a promotion is one thing that happened, though it leaves two events.
    """
    found = sorted(happenings, key=lambda one: one.id)
    ended = {(one.model, one.version) for one in found if one.kind == "ended"}
    told = []
    for one in found:
        if one.kind == ROLLED_BACK and (one.model, one.version) in ended:
            continue
        if (words := WORDS.get(one.kind)) and (said := words(one)) is not None:
            title, sentence, urgency = said
            link = one.detail.get("report")
            told.append(Notice(one.id, one.at, title, sentence, urgency, one.promotion, link))
    return told


Said = tuple[str, str, Urgency]


def _ended(one: Happening) -> Said | None:
    words, urgency = ENDS[State(one.detail["state"])]
    return f"{one.model} v{one.version}: {words}", str(one.detail.get("reason") or ""), urgency


def _rolled_back(one: Happening) -> Said | None:
    leaves, target = one.detail.get("leaves"), one.detail.get("target")
    serves = f"v{target} serves" if target else "nobody serves: every request is answered with 503"
    what = f"v{leaves} was taken out, {serves}" if leaves else f"v{target} was brought back"
    return (
        f"{one.model}: {what}",
        str(one.detail.get("reason") or ""),
        Urgency.LOOK if target else Urgency.ACT,
    )


def _waiting(one: Happening) -> Said | None:
    title = f"{one.model} v{one.version} waits for a person before {one.detail['before']} %"
    return title, str(one.detail["how"]), Urgency.ACT


def _frozen(one: Happening) -> Said | None:
    sentence = f"{one.detail.get('reason')}; when that is settled: modelserve thaw {one.model}"
    return f"{one.model} is frozen: it is not promoted any more", sentence, Urgency.LOOK


def _alert(one: Happening) -> Said | None:
    if one.detail.get("outcome") in ANSWERED:
        return None
    title = f"{one.model}: the alert {one.detail.get('alert')} fires, and nothing was moved"
    return title, str(one.detail.get("why")), Urgency.ACT


def _drift(one: Happening) -> Said | None:
    outcome = str(one.detail.get("outcome", "")).replace("_", " ")
    done = one.detail.get("consequence")
    sentence = str(one.detail.get("sentence"))
    return f"{one.model}: drift check: {outcome}", f"{sentence}; {done}" if done else sentence, Urgency.LOOK


WORDS: Mapping[str, Callable[[Happening], Said | None]] = {
    "ended": _ended,
    ROLLED_BACK: _rolled_back,
    "waiting": _waiting,
    "frozen": _frozen,
    ALERT: _alert,
    "drift": _drift,
}
"""By an event's kind, who puts it into words; what is not named here is not told."""
