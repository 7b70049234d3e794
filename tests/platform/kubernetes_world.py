"""Builds the Kubernetes platform over the fake API server; imported by the suites, no conftest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.adapters.kubernetes import Api, KubernetesPlatform, connect
from flows.domain.cluster.manifests import Cluster
from flows.domain.release import Release
from flows.domain.spec import ModelSpec
from tests.platform.fake_kubernetes import FakeKubernetes, serve

DIGEST = "sha256:" + "5" * 64


def kubeconfig(path: Path, server: str, user: dict[str, Any]) -> Path:
    """Write a kubeconfig with one context."""
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": server}}],
                "users": [{"name": "test", "user": user}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return path


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@contextmanager
def kubernetes_platform(
    fake: FakeKubernetes,
    folder: Path,
    setenv: Callable[[str, str], None],
    clock: Clock | None = None,
    cluster: Cluster | None = None,
    timeout_seconds: float = 10,
    user: dict[str, Any] | None = None,
) -> Iterator[KubernetesPlatform]:
    """The platform as wiring makes it, against `fake`; time is a `Clock`, so nothing really waits."""
    clock = clock or Clock()
    with serve(fake):
        path = kubeconfig(folder / "kubeconfig", fake.url, user or {"token": "good"})
        setenv("KUBECONFIG", str(path))
        cluster = cluster or Cluster()
        api = Api(lambda: connect(timeout_seconds=timeout_seconds), cluster.namespace, sleep=clock.sleep)
        try:
            yield KubernetesPlatform(api, cluster, clock=clock, sleep=clock.sleep, now=clock)
        finally:
            api.close()


def a_release(version: int = 1, model: str = "flights", **changes: Any) -> Release:
    values: dict[str, Any] = {
        "model": model,
        "version": version,
        "bundle": f"s3://models/{model}/{version}",
        "sha256": f"{version:064x}",
        "image": f"registry.example/{model}@{DIGEST}",
    }
    return Release(**(values | changes))


def a_spec(model: str = "flights", **resources: Any) -> ModelSpec:
    column = {"name": "x", "type": "number"}
    return ModelSpec.model_validate(
        {"name": model, "signature": {"inputs": [column], "outputs": [column]}, "resources": resources}
    )


def put_servers(fake: FakeKubernetes, *names: str) -> None:
    """Deployments of ours that serve already, without everything else that a start makes."""
    for name in names:
        model, _, version = name.rpartition("-v")
        labels = {
            "app.kubernetes.io/managed-by": "modelserveai",
            "modelserve.ai/model": model,
            "modelserve.ai/release": name,
            "modelserve.ai/version": version,
            "modelserve.ai/entry": "direct",
        }
        fake.put("deployments", {"metadata": {"name": name, "labels": labels}, "spec": {"replicas": 1}})
