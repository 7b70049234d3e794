"""Runs the outside programs of the image build, and turns their failures into one line each."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.domain.errors import ImageFailed

NO_SPACE = "no space left on device"
LOGGED = re.compile(r'level=(?:error|fatal) msg="(?P<message>.*)"$')
"""The form in which skopeo and buildah log."""
CUT_OFF = "read/write on closed pipe"
"""All that buildah says when the disk fills up while it stores a layer."""


def run(
    arguments: Sequence[str | Path],
    *,
    what: str,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return its standard output, stripped.

    `what` starts the message of the `ImageFailed` that any failure becomes; `timeout` is in seconds.
    """
    program = str(arguments[0])
    try:
        done = subprocess.run(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except FileNotFoundError as error:
        raise ImageFailed(f"{what}: {program} is not installed; install it and try again") from error
    except subprocess.TimeoutExpired as error:
        raise ImageFailed(f"{what}: {program} gave no result within {timeout:.0f} s") from error
    if done.returncode != 0:
        raise ImageFailed(f"{what}: {_reason(program, done.stderr, done.returncode)}")
    return done.stdout.strip()


def _reason(program: str, output: str, code: int) -> str:
    """The line of a program's output that says why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any(NO_SPACE in line.lower() for line in lines):
        return f"no space left on the disk of the image cache (said by {program}); free some and try again"
    if any(CUT_OFF in line for line in lines):
        return f"{program} could not store a layer: probably no space left on the disk; free some and retry"
    # pip says first what is wrong and then what to read; the others say last why they stop.
    first = [line for line in lines if line.startswith("ERROR: ")][:1]
    last = [line for line in lines if line.startswith(("Error", "E:", "error")) or LOGGED.search(line)]
    line = (first or last or lines or [f"exit code {code} without a word"])[-1]
    logged = LOGGED.search(line)
    if logged is not None:
        line = logged["message"].replace('\\"', '"')
    return f"{program} says: {line if len(line) <= 400 else '… ' + line[-400:]}"
