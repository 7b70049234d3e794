"""Lines of programs' logs, as a person reads them: ours are JSON, those of others are as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

COMPLAINT = re.compile(r"error|fatal|panic|cannot|failed|refused|exception|denied", re.IGNORECASE)
WORST = ("critical", "error")
FATAL = "cannot start: "
"""What our servers say before they end, with the reason; what else they say is of less interest."""
LINES = 3
FRAME = frozenset({"at", "level", "logger", "message", "exception", "model", "version", "release"})
"""Keys that are shown in a place of their own, or are the same on every line of a server's log."""


def readable(line: str) -> str:
    """One line of a log: `03:00:12 error message (key value)` for JSON of ours, anything else unchanged.

    An exception follows on lines of its own.
    """
    record = _record(line)
    if record is None:
        return line.rstrip()
    details = ", ".join(f"{key} {value}" for key, value in record.items() if key not in FRAME)
    words = [_clock(record.get("at")), str(record.get("level", "")), str(record["message"])]
    if details:
        words.append(f"({details})")
    text = " ".join(word for word in words if word)
    exception = record.get("exception")
    return f"{text}\n{exception}" if exception else text


def cause(lines: Iterable[str]) -> str:
    """Of what a program said before it ended, why it did, on one line; empty when it said nothing.

    A program that is started again says everything again, at another time: that is no news. What our servers
    end with wins, then the last error of our own JSON, then the last few complaints, then the last line. Of
    an exception its last line.
    """
    said = [line.strip() for line in lines if line.strip()]
    records = [record for line in said if (record := _record(line)) is not None]
    worst = [record for record in records if record.get("level") in WORST]
    fatal = [record for record in worst if str(record["message"]).startswith(FATAL)]
    if worst:
        return _sentence((fatal or worst)[-1]).removeprefix(FATAL)
    complaints = [line for line in said if COMPLAINT.search(line)] or said[-1:]
    # What ends a program of others ("panic") is seldom why: that stands a line or two before.
    told = dict.fromkeys(
        line if (record := _record(line)) is None else _sentence(record) for line in complaints
    )
    return " | ".join([*told][-LINES:])


def _sentence(record: dict[str, Any]) -> str:
    """The message, and the exception's last line where the message does not hold it already."""
    message = str(record["message"]).strip()
    ends = [line.strip() for line in str(record.get("exception", "")).splitlines() if line.strip()]
    if not ends or ends[-1] in message:
        return message
    return f"{message}: {ends[-1]}"


def _record(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "message" in content else None


def _clock(at: object) -> str:
    try:
        return f"{datetime.fromisoformat(str(at)).astimezone():%H:%M:%S}"
    except ValueError:
        return ""
