"""Waits until a release's servers are available, or says in the cluster's own words why they are not."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flows.adapters.kubernetes.api import Api
from flows.adapters.kubernetes.pods import (
    Trouble,
    awaits_node_or_image,
    is_available,
    trouble_in_events,
    trouble_of,
    unready_pod,
)
from flows.domain.cluster.manifests import RELEASE_LABEL, Cluster, Manifest
from flows.domain.errors import ReleaseNotReady
from flows.domain.logs import cause

log = logging.getLogger(__name__)

LOG_LINES = 50


class Readiness:
    """Looks at Deployments, pods, events and logs of one namespace; times are in seconds."""

    def __init__(
        self,
        api: Api,
        cluster: Cluster,
        poll_seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._api = api
        self._cluster = cluster
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._sleep = sleep

    def wait(self, name: str, start_seconds: float, replicas: int) -> None:
        """Until `replicas` servers are available.

        More may be wanted by an autoscaler; nobody waits for those here. The time that a pod waits
        for a node, and the node for the image, does not count as starting.
        """
        begun = self._clock()
        starting_since: float | None = None
        trouble: Trouble | None = None
        while True:
            deployment = self._api.get("Deployment", name)
            if deployment is None:
                raise ReleaseNotReady(f"the Deployment {name} was deleted while it started; start it again")
            if is_available(deployment, replicas):
                return
            pods = self._api.find("Pod", labels={RELEASE_LABEL: name})
            trouble = trouble_of(deployment, pods)
            now = self._clock()
            if awaits_node_or_image(pods):
                starting_since = None
            elif starting_since is None:
                starting_since = now
            if trouble is not None and trouble.hopeless:
                raise self._not_ready(name, trouble)
            if starting_since is not None and now - starting_since > start_seconds:
                waited = f"not ready after {start_seconds:g} s"
                raise self._not_ready(name, trouble or self._complaint(pods), waited)
            if now - begun > self._cluster.node_seconds + start_seconds:
                lacks = "no node" if trouble is not None and trouble.unscheduled else "not started"
                waited = f"{lacks} after {now - begun:.0f} s"
                raise self._not_ready(name, trouble or self._complaint(pods), waited)
            self._sleep(self._poll_seconds)

    def give_time(self, name: str, seconds: float, replicas: int) -> None:
        """Until `replicas` servers are available, but no longer than `seconds`: fewer are no error."""
        until = self._clock() + seconds
        while self._clock() < until:
            deployment = self._api.get("Deployment", name)
            if deployment is None or is_available(deployment, replicas):
                return
            self._sleep(self._poll_seconds)
        log.warning("%s has fewer than %d servers after %.0f s and is used as it is", name, replicas, seconds)

    def _complaint(self, pods: list[Manifest]) -> Trouble | None:
        pod = unready_pod(pods)
        if pod is None:
            return None
        events = self._api.find("Event", fields={"involvedObject.name": pod})
        return trouble_in_events(pod, events)

    def _not_ready(self, name: str, trouble: Trouble | None, waited: str | None = None) -> ReleaseNotReady:
        words = [waited] if waited else []
        words.append(
            trouble.reason
            if trouble
            else f"its pods say nothing; see `kubectl describe pod -l "
            f"{RELEASE_LABEL}={name} -n {self._cluster.namespace}`"
        )
        if trouble and trouble.pod and trouble.container:
            lines = self._api.log_tail(trouble.pod, trouble.container, LOG_LINES)
            if lines:
                words.append(f"its log says: {cause(lines)}")
        return ReleaseNotReady(f"{name} never became ready: {'; '.join(words)}")
