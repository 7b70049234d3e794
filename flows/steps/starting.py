"""Start a flow run on the Prefect server: a promotion, or any Prefect deployment to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.client.schemas.objects import State as RunState
from prefect.exceptions import ObjectNotFound

from flows.domain.errors import DependencyDown, PromotionRunning
from flows.domain.promotion import Promotion, unpreceded
from flows.domain.spec import parse_spec
from flows.steps.restore import let_stay
from flows.wiring import ControlPlane

LOOK_SECONDS = 0.5
"""How often a flow run is looked at."""
STARTED_BY = "modelserve.started-by"
"""A label of a run: which call has created it."""


@dataclass(frozen=True)
class Started:
    """A promotion's flow run."""

    model: str
    version: int
    run: UUID
    url: str
    pool: str
    """The Prefect work pool whose workers may take it."""
    joined: bool = False
    """Somebody else has started it before."""


def start_promotion(
    plane: ControlPlane,
    model: str,
    version: int,
    hotfix: tuple[str, str] | None = None,
    *,
    say: Callable[[str], None] = print,
) -> Started:
    """Create the flow run, or join the one that lives: a release is promoted by one run at a time.

    A first release that serves everybody and is still being watched becomes the stable, unproven.
    `hotfix`: who wants shorter steps, and why; a run that lives keeps its pace, so that none is joined then.
    Raises at once what would end it at once: unknown release, another promotion, a scan that cannot be as the
    policy wants it.
    """
    release = plane.registry.release(model, version)
    standing = plane.registry.standing(model)
    is_open, waits = standing.promotion, unpreceded(standing)
    if is_open is not None and (hotfix if is_open.version == version else not waits):
        raise PromotionRunning(
            f"{model} v{is_open.version} is being promoted ({is_open.state}, {is_open.weight} %); "
            f"wait for it, or end it with 'modelserve abort {model}'"
        )
    anew = is_open is None or is_open.version != version
    if anew and plane.settings.mode == "local":  # on a cluster another machine scans
        spec = parse_spec(plane.registry.spec(model, version), f"{release.name}/model.yaml")
        plane.scanner.ready(spec.scan, say)
    if is_open is not None and is_open.version != version:
        reason = f"v{version} is to follow; nothing precedes this release, so it stays, unproven"
        if not let_stay(plane, is_open, reason):
            raise PromotionRunning(f"{model} v{is_open.version} was being decided just now; try again")
        say(f"{model} v{is_open.version} serves on as the stable, unproven: v{version} is compared with it")
        is_open = None
    with prefect_client() as client:
        try:
            deployment = client.read_deployment_by_name("promote/promote")
        except ObjectNotFound as error:
            raise DependencyDown("the Prefect server has no 'promote'; run 'modelserve up' again") from error
        run, joined = _living(client, is_open), True
        if run is None:
            newest = plane.registry.promotions(model, last=1)
            after = newest[0].id if newest else "nothing"
            parameters: dict[str, object] = {"model": model, "version": version}
            if hotfix is not None:
                parameters |= {"hotfix_by": hotfix[0], "hotfix_reason": hotfix[1]}
            run, joined = _create(client, deployment.id, parameters, f"{model} v{version} after {after}")
        if joined and hotfix is not None:
            raise PromotionRunning(
                f"the promotion of {model} v{version} waits for a worker already, with the pace that it was "
                "asked with; cancel that run in the Prefect UI to ask for another"
            )
    return Started(
        model,
        version,
        run.id,
        plane.settings.run_url(run.id),
        run.work_pool_name or plane.settings.work_pool,
        joined,
    )


def _living(client: SyncPrefectClient, promotion: Promotion | None) -> FlowRun | None:
    """The run that drives the open promotion, unless it has ended or is unknown to this server."""
    if promotion is None:
        return None
    try:
        run = client.read_flow_run(UUID(promotion.run))
    except (ObjectNotFound, ValueError):  # ValueError: a promotion without Prefect
        return None
    return None if run.state is None or run.state.is_final() else run


def _create(
    client: SyncPrefectClient, deployment: UUID, parameters: dict[str, object], key: str
) -> tuple[FlowRun, bool]:
    """Create a run, or find (True) the one that another call with this key has created and that lives.

    A run that waits for a worker has not opened its promotion yet, so Prefect has to know them apart.
    """
    ours = uuid4().hex
    while True:
        run = client.create_flow_run_from_deployment(
            deployment, parameters=parameters, idempotency_key=key, labels={STARTED_BY: ours}
        )
        if run.state is None or not run.state.is_final():
            return run, run.labels.get(STARTED_BY) != ours
        key = f"{key}, {run.id}"  # it ended before its promotion began


def heard_of_workers(client: SyncPrefectClient, pool: str) -> str:
    """A sentence: when a worker of the pool was last heard of."""
    workers = client.read_workers_for_work_pool(pool)
    heard = [worker.last_heartbeat_time for worker in workers if worker.last_heartbeat_time is not None]
    if not heard:
        return f"no worker of pool {pool!r} has ever been heard of"
    last = max(heard)
    ago = (datetime.now(UTC) - last).total_seconds()
    if any(worker.status == WorkerStatus.ONLINE for worker in workers):
        return f"a worker of pool {pool!r} was heard of {ago:.0f} s ago; it may be busy with other runs"
    return (
        f"no worker of pool {pool!r} has been heard of since {last.astimezone():%H:%M:%S} ({ago:.0f} s ago)"
    )


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
