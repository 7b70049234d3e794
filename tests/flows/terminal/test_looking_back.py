"""A model that has been released for years: what people and flows read does not grow with what is retired."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import psycopg2
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.domain.errors import ReleaseUnknown
from flows.terminal import cli
from flows.wiring import ControlPlane
from tests.flows.conftest import SPEC, Story

if TYPE_CHECKING:
    from flows.adapters.registry import Registry

YEARS = 3000
"""Releases that came and went."""


def retired(registry: Registry, first: int, count: int) -> None:
    """Releases that were promoted, were stable for a while, and left, with all that is remembered of them."""
    with psycopg2.connect(registry._url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO releases (model, version, bundle, sha256, spec, phase)"
            " SELECT 'flights', v, 'file:///x', repeat('a', 64), %s, 'retired'"
            " FROM generate_series(%s, %s) AS v",
            (SPEC, first, first + count - 1),
        )
        cursor.execute(
            "INSERT INTO promotions (model, version, run, state, deadline, lease_until, ended_at)"
            " SELECT 'flights', v, 'run-' || v, 'promoted', now(), now(), now()"
            " FROM generate_series(%s, %s) AS v",
            (first, first + count - 1),
        )
        cursor.execute(
            "INSERT INTO events (model, version, kind) SELECT 'flights', v, 'stable'"
            " FROM generate_series(%s, %s) AS v",
            (first, first + count - 1),
        )
    connection.close()


@pytest.fixture
def old_model(plane: ControlPlane, story: Story) -> ControlPlane:
    story.register(1)
    retired(plane.registry, 2, YEARS)
    story.register(YEARS + 2, YEARS + 3)
    story.promoted(YEARS + 2)
    story.begin(YEARS + 3, 25)
    return plane


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, plane: ControlPlane) -> CliRunner:
    """A terminal in which verbs work on this test's registry."""
    monkeypatch.setattr(cli, "plane", lambda: plane)
    monkeypatch.setattr(cli.state_folder, "find", lambda: plane.settings.state)
    return CliRunner()


def shown(monkeypatch: pytest.MonkeyPatch, typed: CliRunner, *words: str) -> str:
    text = io.StringIO()
    monkeypatch.setattr(cli, "console", Console(file=text, width=200, highlight=False, emoji=False))
    done = typed.invoke(cli.app, list(words))
    assert done.exit_code == 0, done.output or done.exception
    return text.getvalue()


def test_a_window_reads_what_serves_and_not_what_once_did(old_model: ControlPlane) -> None:
    standing = old_model.registry.standing("flights")
    assert [release.version for release in standing.releases] == [YEARS + 2, YEARS + 3]
    assert [one.releases for one in old_model.registry.standings()] == [standing.releases]


def test_a_rollback_may_still_name_any_of_them(old_model: ControlPlane, story: Story) -> None:
    from flows.steps.restore import roll_back

    restored = roll_back(old_model, "flights", "test", to=1700)
    assert restored.retreat is not None
    assert restored.retreat.target == 1700
    assert story.weights() == {"flights-v1700": 100}
    with pytest.raises(ReleaseUnknown, match=r"no version 9999; .* older ones, 2994"):
        roll_back(old_model, "flights", "test", to=9999)


def test_the_next_version_follows_the_newest(old_model: ControlPlane) -> None:
    from flows.steps.registration import _next_version

    assert _next_version(old_model, "flights") == YEARS + 4
    assert _next_version(old_model, "never-seen") == 1


@pytest.mark.usefixtures("old_model")
def test_a_history_is_a_page_and_says_that_there_is_more(
    monkeypatch: pytest.MonkeyPatch, typed: CliRunner
) -> None:
    page = shown(monkeypatch, typed, "history", "flights")
    assert len(page.splitlines()) < 100
    assert page.count("there are older ones: --last N, or --all") == 3
    assert f"flights-v{YEARS + 3}" in page
    assert "flights-v1700" not in page
    assert len(shown(monkeypatch, typed, "history", "flights", "--last", "2").splitlines()) < 40
    everything = shown(monkeypatch, typed, "history", "flights", "--all")
    assert "flights-v1700" in everything
    assert "older" not in everything


def test_the_log_of_a_release_reads_as_sentences(
    monkeypatch: pytest.MonkeyPatch, typed: CliRunner, story: Story
) -> None:
    story.register(1, 2)
    story.promoted(1)
    assert shown(monkeypatch, typed, "logs", "flights") == "flights-v1 is in memory\n"
    missing = typed.invoke(cli.app, ["logs", "flights", "2"])
    assert "flights-v2 has no log: it was never started here" in str(missing.exception)
