"""Follow a promotion in a terminal, and cancel it in order."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State as RunState
from prefect.states import Cancelling
from rich.console import Console
from rich.markup import escape

from flows.console.tables import COLOURS, event_line
from flows.domain.judge.windows import Window
from flows.domain.promotion import WITHOUT_PROOF, State, unpreceded
from flows.steps.starting import LOOK_SECONDS, Started, heard_of_workers, prefect_client
from flows.wiring import ControlPlane

CANCEL_SECONDS = 60
WAITS_SECONDS, AGAIN_SECONDS = 10, 60
"""A run that no worker has taken for so long is mentioned, and then again and again."""
SILENT_SECONDS = 30
"""A first release that nobody has called for so long since it serves everybody is left to the background."""
FAILED, UNPROVEN = 1, 3
"""Exit codes; 2 is that of a wrong command line."""


def follow(plane: ControlPlane, started: Started, console: Console) -> int:
    """Print what happens until the run has ended; what the command exits with.

    Ctrl-C cancels the run, waits until the traffic is back, and says so. A first release that serves
    everybody is not taken out by that, since nobody else would answer: it is watched in the background, as is
    one that nobody calls.
    """
    tail = _Tail(plane, started.model, console)
    try:
        state = _until_final(started, tail, None, lambda: _unheard(plane, started))
        if state is None:
            _left(started, console, "nobody has called it yet: ")
            return 0
    except KeyboardInterrupt:
        if _serves_alone(plane, started):
            _left(started, console, "")
            return 0
        console.print("cancelling: the traffic goes back, please wait …")
        with prefect_client() as client:
            client.set_flow_run_state(started.run, Cancelling(), force=True)
        _until_final(started, tail, CANCEL_SECONDS)
        route = plane.registry.standing(started.model).route
        weights = ", ".join(f"{name} {weight} %" for name, weight in route.weights.items()) or "nobody"
        console.print(f"cancelled; traffic goes to {weights}", markup=False)
        return FAILED
    ended = _ended(plane, started)
    if ended is not None:
        console.print(f"[bold {COLOURS.get(ended[0], 'red')}]{ended[0]}[/]: {escape(ended[1])}")
        return exit_code(ended[0])
    message = state.message if state else "no answer from the Prefect server"
    console.print(f"[bold red]failed[/]: {escape(message or '')}")
    return FAILED


def exit_code(state: State) -> int:
    """What a promotion that has ended like this makes of the command that follows it."""
    if state is State.PROMOTED:
        return 0
    return UNPROVEN if state in WITHOUT_PROOF else FAILED


def _serves_alone(plane: ControlPlane, started: Started) -> bool:
    standing = plane.registry.standing(started.model)
    ours = standing.promotion is not None and standing.promotion.run == str(started.run)
    return ours and unpreceded(standing)


def _unheard(plane: ControlPlane, started: Started) -> bool:
    """The only release serves everybody, and is seen to have had no request so far."""
    if not _serves_alone(plane, started):
        return False
    promotion = plane.registry.promotion_of_run(str(started.run))
    stored = plane.registry.windows(promotion) if promotion is not None else []
    windows = [Window.from_json(one.content) for one in stored]
    seen = [window for window in windows if window.observed]
    silent = bool(seen) and not any(window.canary.requests for window in seen)
    return silent and seen[-1].end - windows[0].start >= SILENT_SECONDS


def _left(started: Started, console: Console, why: str) -> None:
    name = f"{started.model} v{started.version}"
    console.print(
        f"{name} has answered its samples and serves everybody; {why}it is watched in the background "
        f"('modelserve history {started.model}'; 'modelserve abort {started.model}' takes it out)",
        markup=False,
    )


class _Tail:
    """Prints a model's events, each once, from now on."""

    def __init__(self, plane: ControlPlane, model: str, console: Console) -> None:
        self._plane, self._model, self._console = plane, model, console
        self._last = plane.registry.last_event()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    def show(self) -> None:
        for event in self._plane.registry.events(self._model, after=self._last):
            self._last = event.id
            self._console.print(event_line(event), markup=False)


def _until_final(
    started: Started, tail: _Tail, seconds: float | None, enough: Callable[[], bool] = lambda: False
) -> RunState | None:
    """Show what happens; the run's final state, or None after `seconds` and when `enough` says so."""
    begun = time.monotonic()
    deadline = None if seconds is None else begun + seconds
    mention = begun + WAITS_SECONDS
    with prefect_client() as client:
        while deadline is None or time.monotonic() < deadline:
            state = client.read_flow_run(started.run).state
            tail.show()
            if state is not None and state.is_final():
                return state
            if enough():
                return None
            waits = state is not None and (state.is_scheduled() or state.is_pending())
            if state is not None and waits and time.monotonic() > mention:
                mention = time.monotonic() + AGAIN_SECONDS
                tail.say(_waiting(client, state, started, time.monotonic() - begun))
            time.sleep(LOOK_SECONDS)
    return None


def _waiting(client: SyncPrefectClient, state: RunState, started: Started, seconds: float) -> str:
    workers = heard_of_workers(client, started.pool)
    return f"the run waits, {seconds:.0f} s: it is {state.name}, and {workers}; see 'modelserve status'"


def _ended(plane: ControlPlane, started: Started) -> tuple[State, str] | None:
    promotion = plane.registry.newest_promotion_of_run(str(started.run))
    return None if promotion is None else (promotion.state, promotion.reason or "")
