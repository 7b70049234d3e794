"""The contract of every `Platform`, over Kubernetes: a fake API server by real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.adapters.kubernetes import Api, KubernetesPlatform, connect
from flows.domain.release import Release
from tests.platform import test_contract
from tests.platform.conftest import Harness
from tests.platform.fake_kubernetes import FakeKubernetes, Thing, healthy
from tests.platform.kubernetes_world import Clock, a_release, a_spec, kubernetes_platform

globals().update({name: test for name, test in vars(test_contract).items() if name.startswith("test_")})


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Releases in `broken` get a pod whose image cannot be pulled; all others are healthy."""
    broken: set[str] = set()

    def kubelet(fake: FakeKubernetes, deployment: Thing) -> None:
        name = deployment["metadata"]["name"]
        if name not in broken:
            healthy(fake, deployment)
            return
        deployment["status"] = {}
        state = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
        fake.put(
            "pods",
            {
                "metadata": {"name": f"{name}-pod", "labels": {"modelserve.ai/release": name}},
                "status": {"containerStatuses": [{"name": "server", "ready": False, "state": state}]},
            },
        )

    def a_broken(model: str, version: int) -> Release:
        release = a_release(version, model)
        broken.add(release.name)
        return release

    fake = FakeKubernetes(kubelet=kubelet)
    apis: list[Api] = []

    def again() -> KubernetesPlatform:
        apis.append(Api(connect, fake.namespace, sleep=Clock().sleep))
        clock = Clock()
        return KubernetesPlatform(apis[-1], sleep=clock.sleep, now=clock)

    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv) as platform:
        yield Harness(
            platform=platform,
            again=again,
            healthy=lambda model, version: a_release(version, model),
            broken=a_broken,
            spec=a_spec,
        )
        for api in apis:
            api.close()
