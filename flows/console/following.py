"""Start a promotion on the Prefect server and follow it in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State as RunState
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from rich.console import Console

from flows.console.tables import event_line
from flows.domain.errors import DependencyDown, PromotionRunning
from flows.domain.promotion import State
from flows.wiring import ControlPlane

LOOK_SECONDS = 0.5
CANCEL_SECONDS = 60


@dataclass(frozen=True)
class Started:
    """A promotion's flow run."""

    model: str
    version: int
    run: UUID
    url: str


def start_promotion(plane: ControlPlane, model: str, version: int) -> Started:
    """Create the flow run. Raises at once what would end it at once: unknown release, another promotion."""
    plane.registry.release(model, version)
    is_open = plane.registry.standing(model).promotion
    if is_open is not None and is_open.version != version:
        raise PromotionRunning(
            f"{model} v{is_open.version} is being promoted ({is_open.state}, {is_open.weight} %); "
            f"wait for it, or end it with 'modelserve abort {model}'"
        )
    with _client() as client:
        try:
            deployment = client.read_deployment_by_name("promote/promote")
        except ObjectNotFound as error:
            raise DependencyDown("the Prefect server has no 'promote'; run 'modelserve up' again") from error
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"model": model, "version": version}
        )
    url = f"{plane.settings.prefect_ui_url}/runs/flow-run/{run.id}"
    return Started(model, version, run.id, url)


def run_flow(deployment: str, parameters: dict[str, object], seconds: float) -> RunState:
    """Run a Prefect deployment to its end; its final state. Raises DependencyDown after `seconds`."""
    with _client() as client:
        found = client.read_deployment_by_name(deployment)
        run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = client.read_flow_run(run.id).state
            if state is not None and state.is_final():
                return state
            time.sleep(LOOK_SECONDS)
    raise DependencyDown(f"the flow run of {deployment} did not end within {seconds:g} s; see the Prefect UI")


def follow(plane: ControlPlane, started: Started, console: Console) -> bool:
    """Print what happens until the run has ended; True when the release was promoted.

    Ctrl-C cancels the run, waits until the traffic is back, and says so.
    """
    tail = _Tail(plane, started.model, console)
    try:
        state = _until_final(started, tail, None)
    except KeyboardInterrupt:
        console.print("cancelling: the traffic goes back, please wait …")
        with _client() as client:
            client.set_flow_run_state(started.run, Cancelling(), force=True)
        _until_final(started, tail, CANCEL_SECONDS)
        route = plane.registry.standing(started.model).route
        weights = ", ".join(f"{name} {weight} %" for name, weight in route.weights.items()) or "nobody"
        console.print(f"cancelled; traffic goes to {weights}")
        return False
    ended = _ended(plane, started)
    if ended is not None:
        console.print(f"[bold]{ended[0]}[/]: {ended[1]}")
        return ended[0] is State.PROMOTED
    message = state.message if state else "no answer from the Prefect server"
    console.print(f"[bold red]failed[/]: {message}")
    return False


class _Tail:
    """Prints a model's events, each once, from now on."""

    def __init__(self, plane: ControlPlane, model: str, console: Console) -> None:
        self._plane, self._model, self._console = plane, model, console
        self._last = plane.registry.last_event()

    def show(self) -> None:
        for event in self._plane.registry.events(self._model, after=self._last):
            self._last = event.id
            self._console.print(event_line(event), markup=False)


def _until_final(started: Started, tail: _Tail, seconds: float | None) -> RunState | None:
    """Show what happens; the run's final state, or None after `seconds`."""
    deadline = None if seconds is None else time.monotonic() + seconds
    with _client() as client:
        while deadline is None or time.monotonic() < deadline:
            state = client.read_flow_run(started.run).state
            tail.show()
            if state is not None and state.is_final():
                return state
            time.sleep(LOOK_SECONDS)
    return None


def _ended(plane: ControlPlane, started: Started) -> tuple[State, str] | None:
    for promotion in reversed(plane.registry.promotions(started.model)):
        if promotion.run == str(started.run):
            return promotion.state, promotion.reason or ""
    return None


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    """Raises DependencyDown instead of a traceback when the server is away."""
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        raise DependencyDown(
            f"the Prefect server does not answer ({type(error).__name__}); see 'modelserve status'"
        ) from error
