"""Somebody is told, over real mail and a real webhook: once each, late rather than never."""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message
from typer.testing import CliRunner

from flows.domain.errors import ModelServeError
from flows.domain.judge.judging import judge
from flows.domain.judge.policy import PromotionPolicy
from flows.domain.judge.windows import Counts, Window
from flows.domain.promotion import State
from flows.steps.restore import restore, roll_back
from flows.steps.telling import tell, try_addresses
from flows.sweep import sweep_once
from flows.terminal import cli
from flows.wiring import ControlPlane
from tests.flows.conftest import Story
from tests.free_ports import free_ports


class Mailbox(Message):
    """A mail server that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.mails: list[EmailMessage] = []

    def prepare_message(self, _session: Any, envelope: Any) -> EmailMessage:
        found = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(found, EmailMessage)
        return found

    def handle_message(self, message: Any) -> None:
        self.mails.append(message)


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, str]]:
    """A mail server on a free port, and the address that sends there."""
    box = Mailbox()
    (port,) = free_ports(1)
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    yield box, f"mailto://127.0.0.1:{port}?from=modelserve@example.org&to=night@example.org&mode=insecure"
    controller.stop()


class Hook:
    """A webhook's receiver; `refuses` makes it answer 503."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refuses = False
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if not hook.refuses:
                    hook.bodies.append(json.loads(body))
                self.send_response(503 if hook.refuses else 200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/{quote('s3cret')}"

    @property
    def titles(self) -> list[str]:
        return [body["title"] for body in self.bodies]


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    yield found
    found.server.shutdown()
    found.server.server_close()


Told = Callable[[str], ControlPlane]


@pytest.fixture
def told(plane: ControlPlane) -> Told:
    """A control plane whose addresses know of all that has happened so far."""

    def make(urls: str) -> ControlPlane:
        made = replace(plane, settings=plane.settings.model_copy(update={"notify": urls}))
        assert tell(made) == []
        return made

    return make


def test_what_ends_waits_or_needs_somebody_is_told_once(told: Told, hook: Hook, story: Story) -> None:
    story.register(1, 2, 3)
    story.promoted(1)
    plane = told(hook.url)
    assert hook.bodies == [], "a new address is told what happens from now on"
    promotion = story.begin(2, 25)
    plane.registry.note(
        "flights", "waiting", {"before": 50, "how": "modelserve approve flights 50"}, promotion
    )
    plane.registry.note("flights", "alert", {"alert": "SloBurn", "outcome": "shared-incident", "why": "both"})
    plane.registry.note("flights", "alert", {"alert": "SloBurn", "outcome": "rolled-back", "why": "done"})
    restore(plane, "flights", "12 of 30 requests failed", State.REJECTED, only=promotion)
    plane.registry.freeze("flights", "drift")
    plane.registry.note(
        "flights", "drift", {"outcome": "harmed", "sentence": "log loss 0.9", "report": "http://r"}
    )
    assert sweep_once(plane).untold == ()
    assert hook.titles == [
        "flights v2 waits for a person before 50 %",
        "flights: the alert SloBurn fires, and nothing was moved",
        "flights v2: rejected, traffic went back",
        "flights is frozen: it is not promoted any more",
        "flights: drift check: harmed",
    ]
    assert [body["type"] for body in hook.bodies] == ["failure", "failure", "warning", "warning", "warning"]
    assert "12 of 30 requests failed" in hook.bodies[2]["message"]
    assert f"modelserve explain {promotion.id[:8]}" in hook.bodies[2]["message"]
    assert "http://r" in hook.bodies[4]["message"]
    sweep_once(plane)
    assert len(hook.bodies) == 5


def test_a_rollback_by_hand_is_told_by_itself(told: Told, hook: Hook, story: Story) -> None:
    story.register(1, 2)
    story.promoted(1)
    story.promoted(2)
    plane = told(hook.url)
    roll_back(plane, "flights", "it is slow on Tuesdays")
    tell(plane)
    assert hook.titles == ["flights: v2 was taken out, v1 serves"]
    assert "it is slow on Tuesdays" in hook.bodies[0]["message"]


def test_a_mail_has_the_sentence_the_link_and_the_picture(
    told: Told, mailbox: tuple[Mailbox, str], story: Story
) -> None:
    box, url = mailbox
    story.register(1, 2)
    story.promoted(1)
    plane = told(url)
    run = "11111111-2222-3333-4444-555555555555"
    promotion = story.begin(2, 25, run=run)
    window = Window(0, 5, 25, Counts(30, 12), Counts(70, 0))
    verdict = judge(PromotionPolicy(), [window])
    plane.registry.store_window(promotion, 1, window.to_json(), verdict.to_json(), None, watching=False)
    restore(plane, "flights", "12 of 30 requests failed", State.REJECTED, only=promotion)
    assert tell(plane) == []
    (mail,) = box.mails
    assert mail["subject"] == "flights v2: rejected, traffic went back"
    body = mail.get_body(("plain", "html"))
    assert body is not None
    assert "12 of 30 requests failed" in body.get_content()
    assert f"/runs/flow-run/{run}" in body.get_content()
    (picture,) = mail.iter_attachments()
    assert picture.get_filename() == "flights-v2.png"
    content = picture.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert content.startswith(b"\x89PNG")


def test_an_address_that_is_away_is_told_later_and_keeps_no_other_waiting(
    told: Told, hook: Hook, mailbox: tuple[Mailbox, str], story: Story
) -> None:
    box, mail = mailbox
    story.register(1)
    plane = told(f"{hook.url} {mail}")
    hook.refuses = True
    story.promoted(1)
    swept = sweep_once(plane)
    (untold,) = swept.untold
    assert "not told yet, tried again by the next sweep: flights v1: promoted" in untold
    assert "s3cret" not in untold
    assert swept.problems == (), "the sweep itself has done its work"
    assert [mail["subject"] for mail in box.mails] == ["flights v1: promoted"]
    hook.refuses = False
    assert tell(plane) == []
    assert hook.titles == ["flights v1: promoted"]
    assert len(box.mails) == 1


def test_many_messages_come_in_portions(told: Told, hook: Hook, story: Story) -> None:
    story.register(1)
    plane = told(hook.url)
    for number in range(25):
        plane.registry.freeze("flights", f"reason {number}")
    tell(plane)
    assert len(hook.bodies) == 20
    tell(plane)
    assert len(hook.bodies) == 25


def test_an_address_that_is_none_is_named_without_its_secret(plane: ControlPlane) -> None:
    wrong = replace(plane, settings=plane.settings.model_copy(update={"notify": "carrier-pigeon://s3cret"}))
    (problem,) = tell(wrong)
    assert "address 1 (carrier-pigeon) is none that Apprise knows" in problem
    assert "s3cret" not in problem
    with pytest.raises(ModelServeError, match="carrier-pigeon"):
        try_addresses(wrong)
    with pytest.raises(ModelServeError, match="MODELSERVE_NOTIFY is not set"):
        try_addresses(plane)


def test_a_person_tries_the_addresses(
    told: Told, hook: Hook, monkeypatch: pytest.MonkeyPatch, plane: ControlPlane
) -> None:
    made = told(f"{hook.url} json://127.0.0.1:1/")
    monkeypatch.setattr(cli, "plane", lambda: made)
    monkeypatch.setattr(cli.state_folder, "find", lambda: plane.settings.state)
    done = CliRunner().invoke(cli.app, ["notify"])
    assert done.exit_code == 1
    assert len(hook.bodies) == 1
