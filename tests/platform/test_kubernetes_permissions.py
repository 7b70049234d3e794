"""The flows' Role grants the calls that the adapter makes, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.adapters.kubernetes import KubernetesPlatform
from flows.domain.errors import ReleaseNotReady
from flows.domain.routes import Mirror, Routes
from tests.manifests.validate import OVERLAYS, base, built
from tests.platform.fake_kubernetes import KINDS, FakeKubernetes, Thing, healthy
from tests.platform.kubernetes_world import a_release, a_spec, kubernetes_platform

Rules = list[dict[str, Any]]


@pytest.fixture(scope="module", params=OVERLAYS)
def rules(request: pytest.FixtureRequest) -> Rules:
    return rules_in(built(request.param))


def rules_in(things: list[dict[str, Any]]) -> Rules:
    (role,) = [
        thing
        for thing in things
        if thing["kind"] == "Role" and thing["metadata"]["name"] == "modelserve-releases"
    ]
    return list(role["rules"])


@pytest.fixture
def fake(rules: Rules) -> FakeKubernetes:
    """A cluster that enforces the Role as it ships."""
    return FakeKubernetes(rules=rules)


@pytest.fixture
def platform(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubernetesPlatform]:
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv) as platform:
        yield platform


def everything(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    """Each thing that the platform can do, on each kind of release, in trouble too."""
    hpa = a_spec(autoscaling="hpa")
    sleeper = a_spec("digits", autoscaling="keda", scale_to_zero=True)
    for spec, model in ((hpa, "flights"), (sleeper, "digits")):
        first, second = a_release(1, model), a_release(2, model)
        platform.start(first, spec)
        platform.route(model, Routes({first.name: 100}))
        platform.settle(model)
        fake.edit("deployments", first.name, lambda thing: thing["spec"].update(replicas=0))
        platform.start(second, spec)
        platform.route(model, Routes({first.name: 50, second.name: 50}, mirror=Mirror(second.name, 10)))
        platform.start(first, spec)
        platform.routes(model)
        platform.url(first)
        platform.running()
        conflict(platform, fake, model)
        platform.stop(second)
    trouble(platform, fake)


def conflict(platform: KubernetesPlatform, fake: FakeKubernetes, model: str) -> None:
    """Somebody else touches the autoscaler while it is unpinned, so that it has to be read again."""
    touched: set[str] = set()

    def touch(fake: FakeKubernetes, resource: str, name: str) -> None:
        if resource in ("horizontalpodautoscalers", "scaledobjects") and name not in touched:
            touched.add(name)
            fake.edit(resource, name, lambda thing: thing["metadata"]["labels"].update(touched="yes"))

    fake.before_write = touch
    platform.settle(model)
    fake.before_write = None
    assert touched


def trouble(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    def stuck(_: FakeKubernetes, deployment: Thing) -> None:
        deployment["status"] = {}

    for state in (
        {"running": {}},
        {"waiting": {"reason": "CrashLoopBackOff"}, "terminated": {"exitCode": 1, "reason": "Error"}},
    ):
        labels = {"modelserve.ai/release": "flights-v3"}
        container = {"name": "server", "ready": False, "state": state, "restartCount": 5}
        status = {"phase": "Running", "containerStatuses": [container]}
        fake.put("pods", {"metadata": {"name": "flights-v3-x", "labels": labels}, "status": status})
        fake.kubelet = stuck
        with pytest.raises(ReleaseNotReady):
            platform.start(a_release(3), a_spec(start_seconds=10))
    fake.kubelet = healthy
    platform.stop(a_release(3))


def test_the_role_is_enough(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    everything(platform, fake)
    assert [call for call in fake.calls if call.status == 403] == []


def test_the_role_is_not_more_than_enough(
    platform: KubernetesPlatform, fake: FakeKubernetes, rules: Rules
) -> None:
    everything(platform, fake)
    granted = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    # A server-side apply of an absent object is a patch on the wire, and needs `create` as well.
    applied = {
        (call.group, call.resource, "create")
        for call in fake.calls
        if call.verb == "patch" and call.status == 201
    }
    assert granted == fake.verbs() | applied


def test_a_cluster_without_keda_needs_none_of_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {pair for pair in KINDS if not pair[0].endswith("keda.sh")}
    fake = FakeKubernetes(rules=rules_in(base()), installed=installed)
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv) as platform:
        for version in (1, 2):
            platform.start(a_release(version), a_spec())
        platform.route("flights", Routes({"flights-v1": 50, "flights-v2": 50}))
        platform.settle("flights")
        platform.stop(a_release(2))
    assert [call for call in fake.calls if call.status == 403] == []
    assert {call.verb for call in fake.calls if call.group.endswith("keda.sh")} == {"list"}


def test_nothing_is_granted_outside_of_the_servers_namespace() -> None:
    for overlay in OVERLAYS:
        things = built(overlay)
        assert not [thing for thing in things if thing["kind"] in ("ClusterRole", "ClusterRoleBinding")]
        bound = {
            (thing["metadata"]["namespace"], subject["name"])
            for thing in things
            if thing["kind"] == "RoleBinding"
            for subject in thing["subjects"]
        }
        assert bound == {("modelserve", "modelserve-flows"), ("modelserve-system", "modelserve-worker")}
