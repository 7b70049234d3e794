"""Calls to the Kubernetes API: plain objects in and out, one typed error for each way to fail.

Objects are dictionaries, never typed models: a typed model would drop the fields that it does not know,
and those belong to somebody else. Reads and idempotent writes are repeated when the server is busy or
silent; credentials are read again when they have expired.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

import httpx2
from lightkube import Client
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import GenericNamespacedResource, create_api_info
from lightkube.types import CascadeType, PatchType

from flows.adapters.kubernetes.connection import NAME
from flows.domain.cluster.manifests import Manifest
from flows.domain.errors import DependencyDown

TRANSIENT = frozenset({429, 500, 502, 503, 504})
LONGEST_PAUSE_SECONDS = 10.0
RESOURCES = {
    "Deployment": ("apps", "v1", "deployments"),
    "Service": ("", "v1", "services"),
    "Pod": ("", "v1", "pods"),
    "Event": ("", "v1", "events"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": ("autoscaling", "v2", "horizontalpodautoscalers"),
    "VirtualService": ("networking.istio.io", "v1", "virtualservices"),
    "DestinationRule": ("networking.istio.io", "v1", "destinationrules"),
    "ScaledObject": ("keda.sh", "v1alpha1", "scaledobjects"),
    "InterceptorRoute": ("http.keda.sh", "v1beta1", "interceptorroutes"),
}
"""Everything this adapter touches: kind → group, version, plural. The Role in k8s/base grants the same."""

Answer = TypeVar("Answer")


class Conflict(Exception):
    """409: the object exists already, or changed since it was read."""


class Missing(Exception):
    """404: the object, or the whole kind, is not there."""


@cache
def _resource(kind: str) -> type[GenericNamespacedResource]:
    group, version, plural = RESOURCES[kind]
    info = create_api_info(group, version, kind, plural)
    return type(kind, (GenericNamespacedResource,), {"_api_info": info})


class Api:
    """One namespace of one cluster, as the field manager `modelserveai`.

    `attempts` bounds the tries of one call; the wait between them doubles from `pause_seconds`, or is what
    the server asks for in `Retry-After`. Every call raises DependencyDown when it fails for good.
    """

    def __init__(
        self,
        connector: Callable[[], Client],
        namespace: str,
        attempts: int = 5,
        pause_seconds: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connector = connector
        self._client: Client | None = None
        self._namespace = namespace
        self._attempts = attempts
        self._pause_seconds = pause_seconds
        self._sleep = sleep

    def close(self) -> None:
        """Give the connections back; the next call opens new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def get(self, kind: str, name: str) -> Manifest | None:
        """The object, or None when there is none."""

        def call(client: Client) -> Manifest:
            return dict(client.get(_resource(kind), name, namespace=self._namespace))

        try:
            return self._call("get", kind, name, call)
        except Missing:
            return None

    def find(
        self,
        kind: str,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> list[Manifest]:
        """The objects that carry all of these labels and field values."""

        def call(client: Client) -> list[Manifest]:
            found = client.list(
                _resource(kind),
                namespace=self._namespace,
                labels=dict(labels or {}),
                fields=dict(fields or {}),
            )
            return [dict(item) for item in found]

        try:
            return self._call("list", kind, "", call)
        except Missing:
            return []

    def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: create the object, or set exactly the fields that the manifest names."""

        def call(client: Client) -> Manifest:
            return dict(
                client.patch(
                    _resource(manifest["kind"]),
                    manifest["metadata"]["name"],
                    manifest,
                    namespace=self._namespace,
                    patch_type=PatchType.APPLY,
                    force=True,
                )
            )

        try:
            return self._call("apply", manifest["kind"], manifest["metadata"]["name"], call)
        except Missing as error:
            raise self._no_such_kind(manifest["kind"]) from error

    def create(self, manifest: Manifest) -> Manifest:
        """Raises Conflict when the object is there already."""

        def call(client: Client) -> Manifest:
            resource = _resource(manifest["kind"])
            return dict(client.create(resource(**manifest), namespace=self._namespace))

        try:
            return self._call("create", manifest["kind"], manifest["metadata"]["name"], call)
        except Missing as error:
            raise self._no_such_kind(manifest["kind"]) from error

    def _no_such_kind(self, kind: str) -> DependencyDown:
        group, version, plural = RESOURCES[kind]
        return DependencyDown(
            f"{NAME} knows no {plural}.{group or 'core'}/{version} in the namespace {self._namespace}; "
            "install the add-ons (infra/addons) and k8s/base first"
        )

    def merge(self, kind: str, name: str, patch: Manifest) -> Manifest:
        """JSON merge patch. Raises Conflict when the object is gone.

        With `metadata.resourceVersion` in the patch also when it has changed since.
        """

        def call(client: Client) -> Manifest:
            return dict(
                client.patch(
                    _resource(kind), name, patch, namespace=self._namespace, patch_type=PatchType.MERGE
                )
            )

        try:
            return self._call("patch", kind, name, call)
        except Missing as error:
            raise Conflict(f"{kind} {name} was deleted meanwhile") from error

    def delete(self, kind: str, name: str) -> None:
        """Nothing happens when the object is gone already. What it owns is removed in the background."""

        def call(client: Client) -> None:
            client.delete(_resource(kind), name, namespace=self._namespace, cascade=CascadeType.BACKGROUND)

        try:
            self._call("delete", kind, name, call)
        except Missing:
            return

    def log_tail(self, pod: str, container: str, lines: int) -> list[str]:
        """The last lines that the container wrote; empty when the kubelet has none to give."""

        def call(client: Client) -> list[str]:
            found = client.log(
                pod, namespace=self._namespace, container=container, tail_lines=lines, newlines=False
            )
            return list(found)

        try:
            return self._call("read the log of", "Pod", pod, call, attempts=1)
        except (Missing, DependencyDown):
            return []

    def _call(
        self,
        verb: str,
        kind: str,
        name: str,
        call: Callable[[Client], Answer],
        attempts: int | None = None,
    ) -> Answer:
        """Try until it works, or until it is clear that it will not."""
        what = f"{verb} {kind} {name}".rstrip()
        tries = attempts or self._attempts
        renewed = False
        attempt = 0
        while True:
            attempt += 1
            try:
                if self._client is None:
                    self._client = self._connector()
                return call(self._client)
            except httpx2.HTTPStatusError as error:
                status = error.response.status_code
                if status == 404:
                    raise Missing(what) from error
                if status == 409:
                    raise Conflict(f"{what}: {_reason(error)}") from error
                if status == 401 and not renewed:
                    # The token or certificate was rotated: read the configuration again, once.
                    renewed = True
                    self.close()
                    continue
                if status not in TRANSIENT:
                    raise _refusal(what, status, error) from error
                failure: Exception = error
                problem, pause = f"answered {status} ({_reason(error)})", _retry_after(error)
            except httpx2.TransportError as error:
                failure = error
                problem, pause = f"does not answer ({type(error).__name__} {error})".strip(), None
            except (KeyError, ValueError) as error:
                failure = error
                problem, pause = "answered with something that is not its own JSON", None
            if attempt >= tries:
                raise DependencyDown(
                    f"{NAME} {problem}: could not {what} in {tries} tries; traffic stays as it is, "
                    "check the cluster and run the command again"
                ) from failure
            backoff = self._pause_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            self._sleep(min(backoff if pause is None else pause, LONGEST_PAUSE_SECONDS))


def _refusal(what: str, status: int, error: httpx2.HTTPStatusError) -> DependencyDown:
    if status == 401:
        return DependencyDown(
            f"{NAME} refused our credentials (401) for: {what}; the token has expired or was revoked, "
            "renew the kubeconfig or check the service account"
        )
    if status == 403:
        return DependencyDown(
            f"{NAME} forbids: {what} ({_reason(error)}); grant it as in k8s/base/flows/role.yaml"
        )
    return DependencyDown(f"{NAME} rejected: {what} ({status}: {_reason(error)})")


def _reason(error: httpx2.HTTPStatusError) -> str:
    """The API's own sentence on one line."""
    if isinstance(error, ApiError) and error.status.message:
        return " ".join(error.status.message.split())
    return " ".join(error.response.text.split())[:200] or error.response.reason_phrase


def _retry_after(error: httpx2.HTTPStatusError) -> float | None:
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
