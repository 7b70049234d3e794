"""Finds the cluster and our credentials for it, as kubectl would."""

from __future__ import annotations

import os
from typing import Any

import httpx2
import yaml
from lightkube import Client, KubeConfig
from lightkube.config.kubeconfig import SERVICE_ACCOUNT
from lightkube.core.exceptions import ConfigError

from flows.domain.cluster.manifests import MANAGER
from flows.domain.errors import DependencyDown

NAME = "the Kubernetes API"
UNUSABLE = (ConfigError, OSError, ValueError, yaml.YAMLError, AttributeError, LookupError, TypeError)
"""What a kubeconfig that is missing, no YAML or of another form makes the library raise."""


def connect(context: str | None = None, timeout_seconds: float = 10) -> Client:
    """A client from `KUBECONFIG`, else from the pod's service account, else from `~/.kube/config`.

    Raises DependencyDown when there is no usable configuration.
    """
    try:
        return Client(
            config=_configuration(context),
            timeout=httpx2.Timeout(timeout_seconds),
            field_manager=MANAGER,
            trust_env=False,
        )
    except UNUSABLE as error:
        words = " ".join(str(error).split())
        raise DependencyDown(
            f"{NAME} cannot be reached: no usable credentials ({words}); set KUBECONFIG or run in the cluster"
        ) from error


def _configuration(context: str | None) -> Any:
    """`KUBECONFIG` wins over the pod's own account, as it does for kubectl."""
    if not os.environ.get("KUBECONFIG") and os.path.exists(os.path.join(SERVICE_ACCOUNT, "token")):
        return KubeConfig.from_service_account().get()
    configuration = _merged(os.environ.get("KUBECONFIG") or "~/.kube/config")
    for user in configuration.users.values():
        # The newest version of the exec protocol answers in the same form as the one the library knows.
        if user and user.exec and user.exec.apiVersion == "client.authentication.k8s.io/v1":
            user.exec.apiVersion = "client.authentication.k8s.io/v1beta1"
    return configuration.get(context)


def _merged(names: str) -> KubeConfig:
    """One kubeconfig, or several with a colon between them: what is named first counts."""
    first, *others = [KubeConfig.from_file(name) for name in names.split(os.pathsep) if name]
    for other in others:
        first.clusters = {**other.clusters, **first.clusters}
        first.users = {**other.users, **first.users}
        first.contexts = {**other.contexts, **first.contexts}
        first.current_context = first.current_context or other.current_context
    return first
