"""Release servers of an earlier run: they come back when the stack does, since routes still name them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from flows.adapters.stack.programs import answers
from flows.adapters.stack.supervision import LIVING_STATES, Supervisor
from flows.settings import Settings


def bring_back(settings: Settings, supervisor: Supervisor, say: Callable[[str], None]) -> None:
    """Start the servers that the records name and wait until they are ready.

    One that does not become ready is said, not raised: the stack is needed to do something about it.
    """
    records = [json.loads(file.read_text()) for file in sorted(settings.releases_folder.glob("*.json"))]
    urls = {record["release"]: record["url"] for record in records}
    living = {state.name for state in supervisor.states() if state.state in LIVING_STATES}
    missing = (set(urls) & supervisor.defined()) - living
    if not missing:
        return
    supervisor.load(sorted(missing))
    for name in sorted(missing):
        supervisor.start(name)
    begun = time.monotonic()
    while missing and time.monotonic() - begun < settings.start_timeout_seconds:
        for name in sorted(missing):
            if answers(f"{urls[name]}/readyz"):
                missing.discard(name)
                say(f"{name}: ready again after {time.monotonic() - begun:.1f} s")
        time.sleep(0.1)
    for name in sorted(missing):
        say(
            f"{name}: not ready; its log {supervisor.log(name)} says: {supervisor.cause(name) or '(nothing)'}"
        )
