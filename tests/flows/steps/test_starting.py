"""What would end a promotion at once is said before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.adapters.scanner import Scanner
from flows.domain.errors import ScanImpossible
from flows.domain.promotion import State
from flows.domain.spec import parse_spec
from flows.promote import _blame, ready_scanner
from flows.steps.starting import start_promotion
from flows.wiring import ControlPlane
from tests.flows.conftest import SPEC, Story


@pytest.fixture
def blind(plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ControlPlane:
    """A scanner without a database and without a network; whoever builds an image fails the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return replace(plane, scanner=Scanner(tmp_path / "trivy", tmp_path / "scans"))


def test_a_scan_that_cannot_be_as_required_keeps_a_promotion_from_beginning(
    blind: ControlPlane, story: Story
) -> None:
    story.register(1)
    said: list[str] = []
    with pytest.raises(ScanImpossible, match=r"nothing was built: scan.mode of model.yaml is require"):
        start_promotion(blind, "flights", 1, say=said.append)
    assert said == ["scanner: downloading the vulnerability database"]
    assert blind.registry.standing("flights").promotion is None


def test_a_flow_that_was_started_otherwise_says_it_too_and_holds_nothing_against_the_release(
    blind: ControlPlane,
) -> None:
    with pytest.raises(ScanImpossible) as refused:
        ready_scanner.fn(blind, parse_spec(SPEC, "model.yaml"))
    assert _blame(refused.value) is State.FAILED
