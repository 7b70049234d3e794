"""Kubernetes with Istio behind the `Platform` port."""

from flows.adapters.kubernetes.api import Api, connect
from flows.adapters.kubernetes.platform import KubernetesPlatform, read_skeletons

__all__ = ["Api", "KubernetesPlatform", "connect", "read_skeletons"]
