"""Supervision: every process of the stack is a child of one supervisord, told what to do over a unix socket.

Programs are files in the state folder, so they outlive supervisord: after a restart the release servers
that existed before exist again. Each program is a small shell script (environment and command, runnable by
hand) and a supervisord section that starts it. Nothing is started by itself: `up` decides the order.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import shlex
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.adapters.stack.files import MARK, render, write
from flows.adapters.stack.rpc import call
from flows.domain.errors import DependencyDown
from flows.domain.logs import cause
from flows.settings import PREFIX, Settings

LIVING_STATES = frozenset({"STARTING", "RUNNING"})
PATIENCE_SECONDS = 60
"""How long the flows of a worker have to put the traffic back."""
AGAIN_SECONDS = 2
LOG_BYTES = 16_384
STOPPED_STATES = frozenset({"STOPPED", "EXITED", "FATAL", "BACKOFF", "UNKNOWN"})


@dataclass(frozen=True)
class ProgramState:
    """What supervisord says about one program. `state` is its word: RUNNING, STARTING, BACKOFF, ..."""

    name: str
    state: str
    pid: int
    seconds: float
    """Since it was started, or since it stopped."""
    exit_status: int


class Starts:
    """How often a program has ended since this began to look, which is once less than it was started."""

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        self._supervisor, self._name = supervisor, name
        self._pid = self._ended = 0

    def ended(self) -> int:
        """Look once more; a start between two looks counts once, however many there were."""
        state = self._supervisor.state(self._name)
        if state is not None and state.pid != self._pid:
            self._ended += 1 if self._pid else 0
            self._pid = state.pid
        return self._ended


class Supervisor:
    """One supervisord, found through its socket. Safe to use from several processes at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._socket = settings.sockets / "supervisor.sock"
        self._log_offsets: dict[str, int] = {}

    @property
    def mark(self) -> Mapping[str, str]:
        """Environment variables by which the stack's processes are found."""
        return {MARK: str(self._settings.state)}

    # -- supervisord itself ---------------------------------------------------------------------------

    def alive(self) -> bool:
        try:
            return bool(self._rpc("getState")["statecode"] == 1)
        except (OSError, xmlrpc.client.Error, http.client.HTTPException):
            return False

    def launch(self) -> None:
        """Start supervisord in the background and wait until it answers."""
        settings = self._settings
        config = settings.state / "supervisord.conf"
        write(
            config,
            render(
                "supervisord.conf.j2",
                state=escape(settings.state),
                logs=escape(settings.logs),
                sockets=escape(settings.sockets),
                user="root" if os.geteuid() == 0 else "",
            ),
        )
        self._socket.unlink(missing_ok=True)
        finished = subprocess.run(
            [settings.python, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(config)],
            env={**_neutral(os.environ), **self.mark},
            cwd=settings.state,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        deadline = time.monotonic() + 20
        while not self.alive():
            if finished.returncode != 0 or time.monotonic() > deadline:
                reason = " ".join(finished.stderr.split()) or f"see {settings.logs / 'supervisord.log'}"
                raise DependencyDown(f"supervisord did not start: {reason}")
            time.sleep(0.05)

    def pid(self) -> int:
        return int(self._call("getPID"))

    def shutdown(self) -> None:
        self._call("shutdown")

    # -- programs -------------------------------------------------------------------------------------

    def define(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        stop_seconds: float = 10,
        stop_signal: str = "TERM",
        user: str = "",
    ) -> None:
        """Write the program's files. It is not known to a running supervisord before `load`.

        A program that ends is started again, for as long as it takes: a full disk or a database that is away
        ends one day. After an end within a second of its start, the next try is a second later each time.
        """
        settings = self._settings
        script = settings.programs_folder / f"{name}.sh"
        exports = [
            f"export {variable}={shlex.quote(value)}" for variable, value in sorted(environment.items())
        ]
        lines = ["#!/bin/sh", *exports, f"exec {shlex.join(command)}", ""]
        text = "\n".join(lines)
        # A script may carry addresses with credentials: only its user may read it.
        write(script, text, mode=0o755 if user else 0o700)
        write(
            settings.programs_folder / f"{name}.conf",
            render(
                "program.conf.j2",
                name=name,
                digest=hashlib.sha256(text.encode()).hexdigest()[:16],
                script=escape(shlex.quote(str(script))),
                folder=escape(folder or settings.state),
                log=escape(self.log(name)),
                stop_signal=stop_signal,
                stop_seconds=max(1, round(stop_seconds)),
                user=user,
            ),
        )

    def load(self, names: Sequence[str]) -> None:
        """Make supervisord know these programs as their files say now; a changed one is stopped first."""
        with self.lock():
            _, changed, _ = self._call("reloadConfig")[0]
            known = {state.name for state in self.states()}
            for name in names:
                if name in changed and name in known:
                    self._halt(name)
                    self._call("removeProcessGroup", name)
                    known.discard(name)
                if name not in known:
                    self._call("addProcessGroup", name)

    def start(self, name: str) -> None:
        """Start it and return at once; nothing happens when it runs."""
        with contextlib.suppress(FileNotFoundError):
            self._log_offsets[name] = self.log(name).stat().st_size
        try:
            self._rpc("startProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise DependencyDown(f"supervisord cannot start {name}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException) as error:
            raise self._down(error) from error

    def starts(self, name: str) -> Starts:
        """Count its ends from now on."""
        return Starts(self, name)

    def stop(self, name: str, with_children: bool = False) -> None:
        """Stop it and wait.

        `with_children` is for a Prefect worker: its flows are told to stop first and get their time (they
        put the traffic back), and the worker, which may swallow a signal, is told again until it goes.
        """
        if with_children:
            self._stop_patiently(name)
        self._halt(name)

    def remove(self, name: str) -> None:
        """Stop the program and forget it, files included."""
        if alive := self.alive():
            self._halt(name)  # before the turn: it may take its time to drain
        with self.lock():
            if alive and name in {state.name for state in self.states()}:
                self._call("removeProcessGroup", name)
            for suffix in ("conf", "sh"):
                (self._settings.programs_folder / f"{name}.{suffix}").unlink(missing_ok=True)

    def states(self) -> list[ProgramState]:
        states = []
        for info in self._call("getAllProcessInfo"):
            since = info["start"] if info["pid"] else info["stop"]
            seconds = float(info["now"] - since) if since else 0.0
            states.append(
                ProgramState(info["name"], info["statename"], info["pid"], seconds, info["exitstatus"])
            )
        return states

    def state(self, name: str) -> ProgramState | None:
        return next((state for state in self.states() if state.name == name), None)

    def defined(self) -> frozenset[str]:
        """Names of all programs that have files, whether or not supervisord runs."""
        return frozenset(file.stem for file in self._settings.programs_folder.glob("*.conf"))

    def log(self, name: str) -> Path:
        return self._settings.logs / f"{name}.log"

    def cause(self, name: str) -> str:
        """The line of the program's log that says why it ended, since its last start; empty for no log."""
        try:
            with self.log(name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begun = self._log_offsets.get(name, 0)
                file.seek(max(begun if begun <= size else 0, size - LOG_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return cause(text.splitlines())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time changes what supervisord knows."""
        with (self._settings.programs_folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _stop_patiently(self, name: str) -> None:
        state = self.state(name)
        if state is None or not state.pid:
            return
        # One signal each: a second one would interrupt the flow while it puts the traffic back. So the
        # worker, which passes its own signals on, hears of it when the flows have gone.
        told: set[int] = set()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (flows := children(state.pid)) and time.monotonic() < deadline:
            for flow in flows:
                if flow.pid not in told:
                    told.add(flow.pid)
                    with contextlib.suppress(psutil.Error):
                        flow.terminate()
            time.sleep(0.1)
        with contextlib.suppress(xmlrpc.client.Fault):
            self._rpc("stopProcess", name, False)
        next_signal = time.monotonic() + AGAIN_SECONDS
        while time.monotonic() < deadline:
            state = self.state(name)
            if state is None or state.state in STOPPED_STATES:
                return
            if time.monotonic() >= next_signal:
                with contextlib.suppress(xmlrpc.client.Fault):
                    self._rpc("signalProcess", name, "TERM")
                next_signal = time.monotonic() + AGAIN_SECONDS
            time.sleep(0.1)

    def _halt(self, name: str) -> None:
        try:
            self._rpc("stopProcess", name, True)
        except xmlrpc.client.Fault as fault:
            if "NOT_RUNNING" not in fault.faultString and "BAD_NAME" not in fault.faultString:
                raise DependencyDown(f"supervisord cannot stop {name}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException) as error:
            raise self._down(error) from error

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return self._rpc(method, *arguments)
        except xmlrpc.client.Fault as fault:
            raise DependencyDown(f"supervisord refused {method}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException) as error:
            raise self._down(error) from error

    def _rpc(self, method: str, *arguments: Any) -> Any:
        return call(self._socket, f"supervisor.{method}", *arguments)

    def _down(self, error: Exception) -> DependencyDown:
        return DependencyDown(f"the local stack is not up ({error}); start it with `modelserve up`")


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _neutral(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what this shell happens to say to our programs: each gets its own settings."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith((PREFIX, "PREFECT_", "SERVING_"))
    }


def escape(value: Path | str) -> str:
    """A value for supervisord's configuration, where `%` starts an expansion."""
    return str(value).replace("%", "%%")
