"""Somebody is told: each address gets what has happened since it was last told something.

The registry's events are the outbox. The sweep empties it once a minute, so a message survives the death of
whoever caused it, and a mail server that is away costs a delay. An address that is new is told what happens
from now on.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from flows.adapters.notifier import Address, addresses
from flows.domain.errors import ModelServeError
from flows.domain.judge.verdict import Verdict
from flows.domain.judge.windows import Window
from flows.domain.notices import WORDS, Notice, Urgency, notices
from flows.domain.release import release_name
from flows.domain.spec import parse_spec
from flows.steps.plots import promotion_plot
from flows.wiring import ControlPlane

log = logging.getLogger(__name__)

AT_ONCE = 20
"""Messages to one address a minute; what is more comes with the next sweep."""
TEST = "This is a test of ModelServeAI's messages. Promotions that end, wait or need somebody come here."


def tell(plane: ControlPlane) -> list[str]:
    """Tell every address what is new; what could not be told, a sentence each. Never raises for a message."""
    try:
        places = addresses(plane.settings.notify)
    except ModelServeError as error:
        return [str(error)]
    return [problem for place in places if (problem := _tell_one(plane, place)) is not None]


def try_addresses(plane: ControlPlane) -> list[tuple[str, str | None]]:
    """Send a test to each address: (address without its secrets, what went wrong).

    Raises ModelServeError when none is set, or one is no address.
    """
    places = addresses(plane.settings.notify)
    if not places:
        raise ModelServeError(
            "MODELSERVE_NOTIFY is not set: URLs of Apprise, separated by blanks, such as "
            "mailto://user:password@example.org or slack://…; see https://appriseit.com/services/"
        )
    return [(place.shown, place.send("ModelServeAI", TEST, Urgency.NEWS, None)) for place in places]


def _tell_one(plane: ControlPlane, place: Address) -> str | None:
    last = plane.registry.told(place.key)
    news = plane.registry.happenings(last, WORDS)
    for notice in notices(news)[:AT_ONCE]:
        with tempfile.TemporaryDirectory(prefix="modelserve-") as folder:
            picture = _picture(plane, notice, Path(folder))
            problem = place.send(notice.title, _body(plane, notice), notice.urgency, picture)
        if problem is not None:
            return f"not told yet, tried again by the next sweep: {notice.title}: {problem}"
        plane.registry.tell(place.key, notice.event)
    return None


def _body(plane: ControlPlane, notice: Notice) -> str:
    when = f"{datetime.fromtimestamp(notice.at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    lines = [notice.sentence, "", when]
    if link := notice.link or _run(plane, notice):
        lines += ["", link]
    if notice.promotion:
        lines += ["", f"the whole story: modelserve explain {notice.promotion[:8]}"]
    return "\n".join(lines)


def _run(plane: ControlPlane, notice: Notice) -> str | None:
    """The page of the Prefect run that has driven it."""
    if notice.promotion is None:
        return None
    run = plane.registry.promotion(notice.promotion).run
    try:
        UUID(run)
    except ValueError:  # a promotion without Prefect
        return None
    return plane.settings.run_url(run)


def _picture(plane: ControlPlane, notice: Notice, folder: Path) -> Path | None:
    """The plot of the promotion so far; a message goes out without it rather than not at all."""
    if notice.promotion is None:
        return None
    try:
        promotion = plane.registry.promotion(notice.promotion)
        stored = plane.registry.windows(promotion)
        if not stored:
            return None
        name = release_name(promotion.model, promotion.version)
        policy = parse_spec(plane.registry.spec(promotion.model, promotion.version), "model.yaml").promotion
        windows = [Window.from_json(window.content) for window in stored]
        verdicts = [Verdict.from_json(window.verdict) for window in stored]
        target = folder / f"{name}.png"
        target.write_bytes(promotion_plot(f"{name}: {promotion.state}", policy, windows, verdicts))
    except Exception as error:
        log.warning("no picture for %r: %s", notice.title, error)
        return None
    return target


def spoken(problems: Sequence[tuple[str, str | None]]) -> list[str]:
    """A line an address, for the person who has asked for a test."""
    return [f"{shown}: sent" if problem is None else f"NOT sent: {problem}" for shown, problem in problems]
