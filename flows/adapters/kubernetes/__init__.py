"""Kubernetes with Istio behind the `Platform` port."""

from flows.adapters.kubernetes.api import Api
from flows.adapters.kubernetes.connection import connect
from flows.adapters.kubernetes.platform import KubernetesPlatform
from flows.adapters.kubernetes.skeletons import read_skeletons

__all__ = ["Api", "KubernetesPlatform", "connect", "read_skeletons"]
