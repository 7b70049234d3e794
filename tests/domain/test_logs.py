"""A log is read by people: one line with the cause, said once, however often a program tried."""

from __future__ import annotations

import json

import pytest

from flows.domain.logs import cause, readable


def line(message: str, at: str, level: str = "error", **more: object) -> str:
    content = {
        "at": at,
        "level": level,
        "logger": "serving",
        "message": message,
        "model": "m",
        "version": "3",
    }
    return json.dumps({**content, **more})


TRIES = [f"2026-11-22T03:00:0{second}.000Z" for second in range(4)]


def test_what_each_start_says_again_is_said_once() -> None:
    lines = [line("cannot start: model.pt is no TorchScript file", at) for at in TRIES]
    assert cause(lines) == "model.pt is no TorchScript file"


def test_the_exception_is_named_and_its_frames_are_not() -> None:
    traceback = "Traceback (most recent call last):\n  File \"handler.py\", line 3\nKeyError: 'weight'"
    lines = [line("the handler could not be loaded", TRIES[0], exception=traceback)]
    assert cause(lines) == "the handler could not be loaded: KeyError: 'weight'"


def test_the_reason_of_a_server_outweighs_what_its_parent_says_of_its_end() -> None:
    lines = [line("cannot start: no model.pt", TRIES[0]), line("worker 1 ended with exit code 3", TRIES[1])]
    assert cause(lines) == "no model.pt"


def test_an_error_outweighs_what_is_said_after_it() -> None:
    lines = [line("out of memory", TRIES[0]), line("shutting down: failed", TRIES[1], level="info")]
    assert cause(lines) == "out of memory"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], ""),
        (["", "  "], ""),
        (["starting", "listening"], "listening"),
        (
            ["Traceback (most recent call last):", "ModuleNotFoundError: No module named 'joblib'", "bye"],
            "ModuleNotFoundError: No module named 'joblib'",
        ),
        (
            ["FATAL: data directory has wrong ownership", "HINT: chown"],
            "FATAL: data directory has wrong ownership",
        ),
        (
            ["ready", "error: data: not a directory", "panic: no log", "panic: no log"],
            "error: data: not a directory | panic: no log",
        ),
        (['{"message": 3'], '{"message": 3'),
        (['["an error"]'], '["an error"]'),
    ],
)
def test_programs_of_others_are_quoted_as_they_are(lines: list[str], told: str) -> None:
    assert cause(lines) == told


def test_a_line_of_ours_reads_as_a_sentence() -> None:
    shown = readable(line("slow", TRIES[0], "warning", seconds=2.5, exception="Traceback\nKeyError: 1"))
    first, *rest = shown.splitlines()
    assert first.endswith("warning slow (seconds 2.5)")
    assert rest == ["Traceback", "KeyError: 1"]
    assert readable("[2026-11-22] warning serving:x:65532\n") == "[2026-11-22] warning serving:x:65532"
