"""The one-machine stack: start, stop and look at its parts.

`up` is idempotent: it recognises a stack that is up, starts what is missing, and brings the release servers
of earlier runs back. `down` leaves no process behind, also when supervisord was killed before.

Belongs here: the parts of the one-machine stack and their supervision. May not: know models or releases
beyond the names of their servers. The ways in are `up`, `down` and `status`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path

from flows.adapters.stack import moving
from flows.adapters.stack.parts import Part, all_parts
from flows.adapters.stack.processes import check_ports, members, reap
from flows.adapters.stack.releases import bring_back
from flows.adapters.stack.supervision import LIVING_STATES, Supervisor
from flows.domain.errors import DependencyDown, ModelServeError
from flows.settings import Settings

__all__ = ["PartStatus", "Supervisor", "beside", "down", "status", "up"]

Say = Callable[[str], None]
"""Takes one line of progress."""
Bootstrap = Callable[[Settings], None]
"""Runs when the Prefect server is healthy and before the worker starts."""

TRIES = 3
"""How often a part may end while it is waited for. Once up, it is brought back for as long as it takes."""

LATE_SECONDS = 300
"""How long a part that lives is waited for beyond its time: on a busy machine it is late, not broken."""
STILL_SECONDS = 5
"""How often a part that is not healthy yet is mentioned."""


@dataclass(frozen=True)
class PartStatus:
    """One line of `modelserve status`: a part of the stack, or a release's server."""

    name: str
    state: str
    """supervisord's word (RUNNING, STARTING, BACKOFF, ...), or `DOWN`."""
    healthy: bool
    pid: int | None
    seconds: float
    """How long it has been in this state; 0 when down."""
    url: str
    log: Path


def up(
    settings: Settings,
    say: Say,
    *,
    bootstrap: Bootstrap | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Start every part (or `only` these and what they need); return when all are healthy.

    Raises PortTaken before anything is started, DependencyDown when a part does not become healthy. What
    this call has started is then stopped again, unless models are served: then all that runs stays, the
    supervisor goes on trying, and so does the next call. A stack that was up before is left up.
    """
    begun = time.monotonic()
    parts = _chosen(all_parts(settings), only)
    for folder in (settings.logs, settings.programs_folder, settings.releases_folder):
        folder.mkdir(parents=True, exist_ok=True)
    _make_socket_folder(settings.sockets)
    with _turn(settings, say):
        _up(settings, parts, say, bootstrap)
    say(f"the stack is up after {time.monotonic() - begun:.1f} s")


def _up(settings: Settings, parts: list[Part], say: Say, bootstrap: Bootstrap | None) -> None:
    supervisor = Supervisor(settings)
    fresh = not supervisor.alive()
    if fresh and (orphans := members(settings.state)):
        say(f"stopping {reap(orphans)} processes that an earlier stack left behind")
    running = set() if fresh else {s.name for s in supervisor.states() if s.state in LIVING_STATES}
    missing = [part for part in parts if part.name not in running]
    check_ports((port, getattr(settings.ports, port)) for part in missing for port in part.ports)
    if old := moving.moved_from(settings):
        say(f"this state folder was {old} when it was last up: what names it so is rewritten")
        moving.rewrite(settings, old)
    try:
        _write(supervisor, missing)
        if fresh:
            supervisor.launch()
        supervisor.load([part.name for part in missing])
        _start(settings, supervisor, parts, say, bootstrap)
    except ModelServeError as error:
        if not fresh:
            raise
        if not any(settings.releases_folder.glob("*.json")):
            _down(settings, _silence)
            raise
        raise DependencyDown(
            f"{error}; what serves goes on, the rest is still being tried: see 'modelserve status', and run "
            "'modelserve up' again"
        ) from error
    except BaseException:  # Ctrl-C, or a fault of ours
        if fresh:
            _down(settings, _silence)
        raise


def beside(settings: Settings, name: str, command: Sequence[str]) -> None:
    """Run a program to its own end beside the stack, with a log of its own; `down` ends it too."""
    with (settings.logs / f"{name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            ["setsid", "--fork", *command],  # nobody's child: whoever has called need not stay for it
            env={**os.environ, **settings.environment(), **Supervisor(settings).mark},
            cwd=settings.repository,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )


def down(settings: Settings, say: Say | None = None) -> None:
    """Stop everything in order: flows first, then releases, then what they use. Data stays."""
    tell = say or _silence
    if settings.state.exists():
        with _turn(settings, tell):
            _down(settings, tell)
    tell("nothing of the stack is running")


def _down(settings: Settings, tell: Say) -> None:
    supervisor = Supervisor(settings)
    if supervisor.alive():
        parts = {part.name: part for part in _known(settings)}
        phases: dict[int, list[str]] = {}
        for state in supervisor.states():
            phase = parts[state.name].stop_phase if state.name in parts else 1
            phases.setdefault(phase, []).append(state.name)
        for phase in sorted(phases):
            names = sorted(phases[phase])
            tell(f"stopping {', '.join(names)}")
            with ThreadPoolExecutor(len(names)) as pool:
                with_children = [name in parts and parts[name].with_children for name in names]
                list(pool.map(supervisor.stop, names, with_children))
        pid = supervisor.pid()
        supervisor.shutdown()
        _wait_for_end(settings, pid)
    if left := members(settings.state):
        tell(f"stopping {len(left)} processes that were left behind")
        reap(left)


@contextlib.contextmanager
def _turn(settings: Settings, say: Say) -> Iterator[None]:
    """One `up` or `down` of a stack at a time; a second one waits and says so."""
    with (settings.state / ".turn").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another `up` or `down` of this stack to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_socket_folder(folder: Path) -> None:
    """Ours alone: it may lie in the temporary folder, where anybody could have made it before."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise DependencyDown(f"{folder} belongs to somebody else; set another MODELSERVE_STATE")


def _silence(line: str) -> None:
    """Progress that nobody wants to see."""


def status(settings: Settings) -> list[PartStatus]:
    """Every part and every release's server, running or not."""
    supervisor = Supervisor(settings)
    states = {state.name: state for state in supervisor.states()} if supervisor.alive() else {}
    lines = []
    parts = {part.name: part for part in _known(settings)}
    for name in [*parts, *sorted(supervisor.defined() - set(parts))]:
        state = states.get(name)
        part = parts.get(name)
        running = state is not None and state.state in LIVING_STATES
        lines.append(
            PartStatus(
                name=name,
                state=state.state if state else "DOWN",
                healthy=running and (part is None or part.healthy()),
                pid=state.pid or None if state else None,
                seconds=state.seconds if state else 0,
                url=part.url if part else "",
                log=supervisor.log(name),
            )
        )
    return lines


def _known(settings: Settings) -> list[Part]:
    """All parts; none when a program is not even installed, since then no stack can be up."""
    try:
        return all_parts(settings)
    except DependencyDown:
        return []


def _chosen(parts: list[Part], only: Collection[str] | None) -> list[Part]:
    if only is None:
        return parts
    by_name = {part.name: part for part in parts}
    wanted: set[str] = set()
    queue = list(only)
    while queue:
        name = queue.pop()
        if name not in by_name:
            raise ValueError(f"{name!r} is not a part of the stack: {', '.join(sorted(by_name))}")
        if name not in wanted:
            wanted.add(name)
            queue.extend(by_name[name].needs)
    return [part for part in parts if part.name in wanted]


def _write(supervisor: Supervisor, parts: list[Part]) -> None:
    for part in parts:
        part.configure()
        supervisor.define(
            part.name,
            part.command,
            part.environment,
            folder=part.folder,
            stop_seconds=part.stop_seconds,
            stop_signal=part.stop_signal,
            user=part.user,
        )


def _start(
    settings: Settings, supervisor: Supervisor, parts: list[Part], say: Say, bootstrap: Bootstrap | None
) -> None:
    """Start all parts at once, each as soon as what it needs is there; the first failure ends the wait."""
    ready: dict[str, Future[None]] = {}
    failed = threading.Event()

    def begin(part: Part) -> None:
        try:
            for need in part.needs:
                ready[need].result()
            supervisor.start(part.name)
            _await(settings, supervisor, part, say, failed)
            part.provide()
            if part.name == "prefect" and bootstrap is not None:
                bootstrap(settings)
        except BaseException:
            failed.set()
            raise

    def releases() -> None:
        # Better with them, and without them all the same: users are waiting.
        wait([ready[need] for need in {"postgres", "redis"} & set(ready)])
        bring_back(settings, supervisor, say)

    with ThreadPoolExecutor(len(parts) + 1) as pool:
        try:
            for part in parts:  # what a part needs comes before it in the list
                ready[part.name] = pool.submit(begin, part)
            ready["releases"] = pool.submit(releases)
            failures = [error for done in as_completed(ready.values()) if (error := done.exception())]
        except BaseException:  # Ctrl-C: nobody waits for the parts any more
            failed.set()
            raise
    if failures:
        raise failures[0]


def _await(settings: Settings, supervisor: Supervisor, part: Part, say: Say, failed: threading.Event) -> None:
    begun = time.monotonic()
    mentioned = begun
    starts = supervisor.starts(part.name)
    told = False
    while not part.healthy():
        if failed.is_set():
            raise DependencyDown(f"{part.name} was not waited for, since another part failed")
        now = time.monotonic()
        patience = settings.start_timeout_seconds
        ended = starts.ended()
        late = now - begun > patience
        if ended >= TRIES or (late and (ended or now - begun > patience + LATE_SECONDS)):
            raise DependencyDown(
                f"{part.name} did not become healthy in {now - begun:.0f} s; "
                f"its log {supervisor.log(part.name)} says: {supervisor.cause(part.name) or '(nothing)'}"
            )
        if late and not told:
            told = True
            say(f"{part.name}: late ({now - begun:.0f} s); it lives, and gets {LATE_SECONDS} s more")
        if now - mentioned >= STILL_SECONDS:
            mentioned = now
            say(f"{part.name}: starting, {now - begun:.0f} s")
        time.sleep(0.1)
    where = f" at {part.url}" if part.url else ""
    say(f"{part.name}: ready{where} after {time.monotonic() - begun:.1f} s")


def _wait_for_end(settings: Settings, pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not any(process.pid == pid for process in members(settings.state)):
            return
        time.sleep(0.05)
