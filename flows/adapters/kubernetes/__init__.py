"""Kubernetes with Istio behind the `Platform` port.

Belongs here: calls of the Kubernetes API and what its answers mean. May not: say what an object looks like
(`flows.domain.cluster`). The way in is `KubernetesPlatform`.
"""

from flows.adapters.kubernetes.api import Api
from flows.adapters.kubernetes.connection import connect
from flows.adapters.kubernetes.platform import KubernetesPlatform
from flows.adapters.kubernetes.skeletons import read_skeletons

__all__ = ["Api", "KubernetesPlatform", "connect", "read_skeletons"]
