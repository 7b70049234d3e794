"""What the Prefect server must know before the first promotion: pool, deployments, automations.

Idempotent: it may run at every start, from several places. The automations are the second net under a
promotion; what each of them covers, and what the sweep covers instead, is written beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.adapters import stack
from flows.adapters.registry import Registry
from flows.adapters.stack import moving
from flows.domain.errors import DependencyDown
from flows.settings import Settings

PROMOTE_RUNS: dict[str, str | list[str]] = {
    "prefect.resource.role": "flow",
    "prefect.resource.name": "promote",
}
"""Events of promotion runs. (A match on the role `deployment` never fires.)"""

HEARTBEAT_LOST_SECONDS = 90
"""Three missed heartbeats of 30 s, the shortest interval that Prefect allows."""


def bring_up(settings: Settings, say: Callable[[str], None]) -> None:
    """Start the local stack, with everything that the Prefect server and the registry must know.

    What the scanner must know is fetched meanwhile: the first promotion that needs it waits for it.
    """
    stack.up(settings, say, bootstrap=prepare_services)
    if not settings.image_repository:
        stack.beside(
            settings, "scanner", [settings.python, "-m", "flows.terminal.cli", "prepare", "--database"]
        )
        say("scanner: the vulnerability database is brought up to date in the background")


def prepare_services(settings: Settings) -> None:
    """Bring the registry's schema up to date and tell the Prefect server about the flows."""
    registry = Registry(settings.registry_url)
    registry.migrate()
    if old := moving.moved_from(settings):
        registry.move_bundles(old.as_uri(), settings.state.as_uri())
    bootstrap(settings)
    moving.settled(settings)


def bootstrap(settings: Settings) -> None:
    """Create the work pool, apply prefect.yaml, create or update the automations.

    Raises DependencyDown with the last line of `prefect deploy` when that fails.
    """
    with get_client(sync_client=True) as client:
        _work_pool(client, settings.work_pool)
        _deploy(settings)
        rollback = client.read_deployment_by_name("rollback/rollback")
        for automation in automations(rollback.id):
            _apply(client, automation)


def _work_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
        return
    except ObjectNotFound:
        pass
    template = ProcessWorker.get_default_base_job_template()
    # A worker that is killed would otherwise take its flows along at their next line of output.
    template["variables"]["properties"]["stream_output"]["default"] = False
    client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


def _deploy(settings: Settings) -> None:
    home = settings.repository
    variables = {
        "MODELSERVE_HOME": str(home),
        "MODELSERVE_WORK_POOL": settings.work_pool,
        "MODELSERVE_SWEEPS_BY_PREFECT": str(settings.mode == "local").lower(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=home,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise DependencyDown(f"'prefect deploy --all' failed: {' '.join(last)}; see {Path('prefect.yaml')}")


def automations(rollback_deployment: UUID) -> list[AutomationCore]:
    """The automations that roll back what a dead promotion run has left behind.

    They may fire on a run that has just completed; the rollback looks at the registry before it acts.
    """

    def roll_back(reason: str) -> RunDeployment:
        return RunDeployment(
            source="selected",
            deployment_id=rollback_deployment,
            job_variables=None,
            # Not `flow_run.id`: it is no text, and the template fails in silence.
            parameters={"run": "{{ event.resource.id }}", "reason": reason},
        )

    ended_badly = AutomationCore(
        name="modelserve: a promotion run ended badly",
        description="Restores traffic after a promotion run crashed, failed, timed out or was cancelled.",
        trigger=EventTrigger(
            expect={
                "prefect.flow-run.Crashed",
                "prefect.flow-run.Failed",
                "prefect.flow-run.TimedOut",
                "prefect.flow-run.Cancelled",
            },
            match_related=PROMOTE_RUNS,
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[roll_back("its flow run sent {{ event.event }}")],
    )
    # Rolls back directly and not through the Crashed event it causes: after a restart of the server the
    # ordering of events held that one back for 15 minutes.
    heartbeat_lost = AutomationCore(
        name="modelserve: a promotion run lost its heartbeat",
        description="Worker and flow died together: nobody else would notice.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=PROMOTE_RUNS,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=HEARTBEAT_LOST_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, name="Crashed", message="No heartbeat for 90 s.", force=True
            ),
            roll_back("its flow run lost its heartbeat"),
        ],
    )
    return [ended_badly, heartbeat_lost]


def _apply(client: SyncPrefectClient, automation: AutomationCore) -> None:
    found = client.read_automations_by_name(automation.name)
    if not found:
        client.create_automation(automation)
        return
    client.update_automation(found[0].id, automation)
    for double in found[1:]:
        client.delete_automation(double.id)
