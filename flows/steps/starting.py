"""Start a flow run on the Prefect server: a promotion, or any Prefect deployment to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State as RunState
from prefect.exceptions import ObjectNotFound

from flows.domain.errors import DependencyDown, PromotionRunning
from flows.domain.spec import parse_spec
from flows.wiring import ControlPlane

LOOK_SECONDS = 0.5
"""How often a flow run is looked at."""


@dataclass(frozen=True)
class Started:
    """A promotion's flow run."""

    model: str
    version: int
    run: UUID
    url: str


def start_promotion(
    plane: ControlPlane, model: str, version: int, say: Callable[[str], None] = print
) -> Started:
    """Create the flow run. Raises at once what would end it at once.

    That is an unknown release, another promotion, or a scan that cannot be as the policy wants it.
    """
    release = plane.registry.release(model, version)
    is_open = plane.registry.standing(model).promotion
    if is_open is not None and is_open.version != version:
        raise PromotionRunning(
            f"{model} v{is_open.version} is being promoted ({is_open.state}, {is_open.weight} %); "
            f"wait for it, or end it with 'modelserve abort {model}'"
        )
    if plane.settings.mode == "local":  # on a cluster another machine scans
        spec = parse_spec(plane.registry.spec(model, version), f"{release.name}/model.yaml")
        plane.scanner.ready(spec.scan, say)
    with prefect_client() as client:
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
    with prefect_client() as client:
        found = client.read_deployment_by_name(deployment)
        run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = client.read_flow_run(run.id).state
            if state is not None and state.is_final():
                return state
            time.sleep(LOOK_SECONDS)
    raise DependencyDown(f"the flow run of {deployment} did not end within {seconds:g} s; see the Prefect UI")


@contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """Raises DependencyDown instead of a traceback when the server is away."""
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        raise DependencyDown(
            f"the Prefect server does not answer ({type(error).__name__}); see 'modelserve status'"
        ) from error
