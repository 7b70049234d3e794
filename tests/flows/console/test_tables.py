"""What others said is shown as they said it, whatever it looks like."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from flows.adapters.registry import Event
from flows.console.tables import event_line, events_table, models_table, promotions_table, releases_table
from flows.domain.promotion import Promotion, Standing, State
from flows.domain.routes import Routes
from flows.terminal import cli

SAID = "error at serving:x:65532 in [red]layer[/red] [/nothing] :cross_mark:"
NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the command line's own console writes."""
    text = io.StringIO()
    monkeypatch.setattr(cli.console, "file", text)
    monkeypatch.setattr(cli.console, "width", 200)
    return text


def test_reasons_and_events_are_not_taken_for_markup(printed: io.StringIO) -> None:
    promotion = Promotion("0" * 32, "flights", 2, "run", State.FAILED, False, 0, SAID, NOW, NOW, NOW, NOW)
    cli.console.print(promotions_table([promotion]))
    cli.console.print(events_table([Event(1, NOW, 2, None, "ended", {"reason": SAID})]))
    frozen = Standing("flights", (), None, None, Routes(), SAID)
    cli.console.print(models_table([frozen]))
    cli.console.print(releases_table(frozen, ()))
    assert " ".join(printed.getvalue().split()).count(SAID) == 4  # a title is wrapped


def test_an_alert_that_nobody_has_answered_stands_beside_its_model(printed: io.StringIO) -> None:
    quiet, loud = (Standing(name, (), None, None, Routes(), None) for name in ("quiet", "loud"))
    cli.console.print(models_table([quiet, loud], {"loud": 2}))
    lines = [line for line in printed.getvalue().splitlines() if "alerts fire and moved nothing" in line]
    assert len(lines) == 1
    assert "loud" in lines[0]


def test_progress_is_printed_as_it_is(printed: io.StringIO) -> None:
    cli.say(SAID)
    cli.console.print(event_line(Event(1, NOW, 2, None, "ended", {"reason": SAID})), markup=False)
    assert printed.getvalue().count(SAID) == 2


def test_an_error_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(cli, "errors", Console(file=text, width=200, highlight=False, emoji=False))
    from flows.domain.errors import ImageFailed

    def fails() -> None:
        raise ImageFailed(SAID)

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main()
    assert SAID in text.getvalue()
