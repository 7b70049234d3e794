"""The Kubernetes platform's own behaviour, over a fake API server by real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import wiring
from flows.adapters.kubernetes import KubernetesPlatform, read_skeletons
from flows.adapters.kubernetes.platform import MESH_SECONDS
from flows.domain.cluster.manifests import PINNED_ANNOTATION, ROUTED_ANNOTATION, Cluster
from flows.domain.errors import ReleaseExists, ReleaseNotReady, RouteConflict
from flows.domain.routes import Match, Mirror, Routes
from flows.settings import Settings
from tests.platform.fake_kubernetes import FakeKubernetes, Thing, healthy, serve
from tests.platform.kubernetes_world import (
    Clock,
    a_release,
    a_spec,
    kubeconfig,
    kubernetes_platform,
    put_servers,
)


@pytest.fixture
def fake() -> FakeKubernetes:
    return FakeKubernetes()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def platform(
    fake: FakeKubernetes, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubernetesPlatform]:
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv, clock) as platform:
        yield platform


def minimum(fake: FakeKubernetes, resource: str, name: str) -> tuple[int, str | None]:
    thing = fake.thing(resource, name)
    assert thing is not None
    spec = thing["spec"]
    pinned = (thing["metadata"].get("annotations") or {}).get(PINNED_ANNOTATION)
    return spec.get("minReplicas", spec.get("minReplicaCount")), pinned


# -- servers


def split_in(thing: Thing) -> Thing:
    """The counted entry of a VirtualService."""
    (entry,) = [entry for entry in thing["spec"]["http"] if entry["name"] == "modelserveai-split"]
    found: Thing = entry
    return found


def test_a_start_creates_everything_of_a_release_with_the_deployment_as_owner(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.start(a_release(2), a_spec())
    deployment = fake.thing("deployments", "flights-v2")
    assert deployment is not None
    for resource in ("services", "poddisruptionbudgets", "destinationrules", "horizontalpodautoscalers"):
        thing = fake.thing(resource, "flights-v2")
        assert thing is not None, resource
        assert thing["metadata"]["ownerReferences"][0]["uid"] == deployment["metadata"]["uid"]
        assert thing["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "modelserveai"
    assert fake.thing("scaledobjects", "flights-v2") is None
    assert platform.running() == {"flights-v2"}
    assert platform.url(a_release(2)) == "http://flights-v2.modelserve.svc.cluster.local:8080"
    writes = [call for call in fake.calls if call.verb in ("patch", "create")]
    assert {call.manager for call in writes} == {"modelserveai"}


def test_a_second_start_changes_nothing_and_keeps_foreign_fields(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.start(a_release(), a_spec())

    def annotate(thing: Thing) -> None:
        thing["metadata"].setdefault("annotations", {})["team.example/owner"] = "ada"
        thing["spec"]["template"]["spec"]["priorityClassName"] = "important"
        thing["spec"]["replicas"] = 3

    fake.edit("deployments", "flights-v1", annotate)
    before = fake.thing("deployments", "flights-v1")
    platform.start(a_release(), a_spec())
    after = fake.thing("deployments", "flights-v1")
    assert before is not None
    assert after is not None
    assert (after["metadata"], after["spec"]) == (before["metadata"], before["spec"])


def test_without_an_autoscaler_the_deployment_has_its_number_of_servers(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.start(a_release(), a_spec(autoscaling="none", replicas=3))
    deployment = fake.thing("deployments", "flights-v1")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 3
    assert fake.thing("horizontalpodautoscalers", "flights-v1") is None


def test_a_release_never_has_two_autoscalers(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    platform.start(a_release(1), a_spec(autoscaling="hpa"))
    platform.start(a_release(2), a_spec(autoscaling="keda"))
    names = {
        resource: {key[3] for key in fake.objects if key[1] == resource}
        for resource in ("horizontalpodautoscalers", "scaledobjects")
    }
    assert names == {"horizontalpodautoscalers": {"flights-v1"}, "scaledobjects": {"flights-v2"}}


def test_a_stop_removes_what_is_ours_and_nothing_else(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    fake.put("services", {"metadata": {"name": "flights-v9", "labels": {}}, "spec": {}})
    platform.start(a_release(1), a_spec())
    platform.start(a_release(2), a_spec(autoscaling="keda", scale_to_zero=True))
    platform.stop(a_release(2))
    platform.stop(a_release(2))
    platform.stop(a_release(9))
    assert platform.running() == {"flights-v1"}
    assert {key[3] for key in fake.objects} == {"flights-v1", "flights-v1-aside", "flights-v9"}


def test_a_stop_finishes_what_an_earlier_one_left(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    platform.start(a_release(), a_spec())
    fake.objects.pop(("apps", "deployments", "modelserve", "flights-v1"))
    platform.stop(a_release())
    assert not fake.objects


def test_a_foreign_deployment_of_the_same_name_is_left_alone(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    fake.put("deployments", {"metadata": {"name": "flights-v1", "labels": {"app": "else"}}, "spec": {}})
    with pytest.raises(
        ReleaseNotReady, match=r"Deployment flights-v1 that is not ours .* rename it or delete"
    ):
        platform.start(a_release(), a_spec())
    platform.stop(a_release())
    assert fake.thing("deployments", "flights-v1") is not None


def test_a_release_name_with_other_content_is_refused(platform: KubernetesPlatform) -> None:
    platform.start(a_release(), a_spec())
    with pytest.raises(ReleaseExists, match="releases are immutable, register a new version"):
        platform.start(a_release(sha256="f" * 64), a_spec())


def test_settings_reach_the_cluster(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ("registry", "redis", "prometheus", "prefect", "gateway")
    settings = Settings(
        mode="kubernetes",
        artifacts_uri="s3://artifacts",
        session_header="x-session-id",
        gateway_timeout_seconds=30,
        image_tags_allowed=True,
        **{f"{name}_url": f"http://{name}.example" for name in addresses},  # type: ignore[arg-type]
    )
    with serve(fake):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", fake.url, {"token": "good"})))
        platform = wiring.platform(settings)
        assert isinstance(platform, KubernetesPlatform)
        platform.start(a_release(image="registry.example/flights:v1"), a_spec(autoscaling="keda"))
        platform.route("flights", Routes({"flights-v1": 100}))
        platform.close()
    rule = fake.thing("destinationrules", "flights-v1")
    scaled = fake.thing("scaledobjects", "flights-v1")
    service = fake.thing("virtualservices", "flights")
    assert rule is not None
    assert scaled is not None
    assert service is not None
    balancer = rule["spec"]["trafficPolicy"]["loadBalancer"]
    assert balancer == {"consistentHash": {"httpHeaderName": "x-session-id"}}
    assert service["spec"]["http"][-1]["timeout"] == "30s"
    trigger = scaled["spec"]["triggers"][0]
    assert trigger["metadata"]["serverAddress"] == "http://prometheus.example"


# -- why a release is not ready


def pod(fake: FakeKubernetes, status: Thing, name: str = "flights-v1-abc") -> None:
    labels = {"modelserve.ai/release": "flights-v1"}
    fake.put("pods", {"metadata": {"name": name, "labels": labels}, "status": status})


def container(state: Thing, **more: Any) -> Thing:
    return {"containerStatuses": [{"name": "server", "ready": False, "state": state, **more}]}


def never(fake: FakeKubernetes, deployment: Thing) -> None:
    del fake
    deployment["status"] = {"observedGeneration": deployment["metadata"]["generation"]}


WAITING = {
    "ImagePullBackOff": 'Back-off pulling image "registry.example/flights"',
    "InvalidImageName": 'couldn\'t parse image name "???"',
    "ErrImageNeverPull": "Container image is not present with pull policy of Never",
    "CreateContainerConfigError": 'secret "modelserve-server" not found',
}


@pytest.mark.parametrize("reason", WAITING)
def test_a_pod_that_cannot_start_is_reported_at_once(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock, reason: str
) -> None:
    fake.kubelet = never
    pod(fake, container({"waiting": {"reason": reason, "message": WAITING[reason]}}))
    with pytest.raises(ReleaseNotReady) as caught:
        platform.start(a_release(), a_spec())
    assert f"flights-v1-abc: {reason}: {WAITING[reason]}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert clock.now < 10


def test_a_crash_loop_is_reported_with_exit_code_and_last_log_lines(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    fake.kubelet = never
    ended = {"terminated": {"reason": "Error", "exitCode": 3}}
    pod(fake, container({"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended, restartCount=2))
    fake.logs["flights-v1-abc"] = "\n".join(f"line {n}" for n in range(20)) + "\nmodel.pt: bad magic number"
    with pytest.raises(ReleaseNotReady) as caught:
        platform.start(a_release(), a_spec())
    message = str(caught.value)
    assert "CrashLoopBackOff: container server ended with exit code 3 (Error), 2 restarts" in message
    assert message.endswith("its log says: model.pt: bad magic number")
    assert clock.now < 10


def test_one_crash_is_given_another_chance(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    pod(fake, container({"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended, restartCount=1))
    reads = iter([never, never, healthy])
    fake.kubelet = lambda fake, thing: next(reads, healthy)(fake, thing)
    platform.start(a_release(), a_spec())


def test_running_out_of_memory_names_the_setting(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    fake.kubelet = never
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    pod(fake, container({"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended, restartCount=4))
    with pytest.raises(
        ReleaseNotReady, match=r"\(OOMKilled\), 4 restarts; raise resources.memory in model.yaml"
    ):
        platform.start(a_release(), a_spec())


def test_a_quota_is_reported_at_once(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    message = 'pods "flights-v1-" is forbidden: exceeded quota: compute, requested: cpu=1, used: cpu=9'
    fake.kubelet = lambda _, deployment: deployment.update(status=refusal(message))
    with pytest.raises(
        ReleaseNotReady, match=r"no pod may be created: .*exceeded quota: compute.*raise the quota"
    ):
        platform.start(a_release(), a_spec())
    assert clock.now < 10


def test_an_unschedulable_pod_gets_the_time_that_a_node_takes(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    fake.kubelet = never
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod(fake, {"phase": "Pending", "conditions": [unscheduled]})
    with pytest.raises(
        ReleaseNotReady, match=r"no node after \d+ s; flights-v1-abc: Unschedulable: 0/3 nodes"
    ):
        platform.start(a_release(), a_spec(start_seconds=60))
    assert clock.now > 600, "the node group must have had time to grow"


def test_the_time_that_an_image_takes_is_not_the_servers(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    pod(fake, {"phase": "Pending", **container({"waiting": {"reason": "ContainerCreating"}})})
    fake.kubelet = lambda fake, thing: (never if clock.now < 300 else healthy)(fake, thing)
    platform.start(a_release(), a_spec(start_seconds=60))
    assert 300 <= clock.now < 310


def test_a_pod_that_never_begins_is_reported_with_the_kubelets_last_complaint(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    fake.kubelet = never
    pod(fake, {"phase": "Pending", **container({"waiting": {"reason": "ContainerCreating"}})})
    for at, kind, reason in (
        ("2026-01-01T00:00:09Z", "Warning", "FailedMount"),
        ("2026-01-01T00:00:01Z", "Warning", "FailedCreatePodSandBox"),
        ("2026-01-01T00:01:00Z", "Normal", "Pulling"),
    ):
        event = {"type": kind, "reason": reason, "message": f"{reason} because", "lastTimestamp": at}
        involved = {"involvedObject": {"name": "flights-v1-abc"}}
        fake.put("events", {"metadata": {"name": reason.lower()}, **involved, **event})
    with pytest.raises(
        ReleaseNotReady, match=r"not started after \d+ s; flights-v1-abc: FailedMount: FailedMount because"
    ):
        platform.start(a_release(), a_spec(start_seconds=60))
    assert clock.now > 600


def test_a_server_that_runs_again_after_old_crashes_is_waited_for(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    """A rollback starts its target: what it went through last month is no reason to refuse."""
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    pod(fake, container({"running": {}}, lastState=ended, restartCount=5))
    reads = iter([never, never, healthy])
    fake.kubelet = lambda fake, thing: next(reads, healthy)(fake, thing)
    platform.start(a_release(), a_spec())


@pytest.mark.parametrize(
    ("message", "step"),
    [
        (
            'pods "a" is forbidden: violates PodSecurity "restricted:latest": seccompProfile',
            "correct the pod",
        ),
        (
            'pods "a" is forbidden: error looking up service account: serviceaccount "b" not found',
            "apply k8s",
        ),
    ],
)
def test_a_refused_pod_names_the_next_step(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock, message: str, step: str
) -> None:
    fake.kubelet = lambda _, deployment: deployment.update(status=refusal(message))
    with pytest.raises(ReleaseNotReady, match=f"no pod may be created: .*; {step}"):
        platform.start(a_release(), a_spec())
    assert clock.now < 10


def test_a_webhook_that_is_away_for_a_moment_is_waited_for(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    message = 'Internal error occurred: failed calling webhook "namespace.sidecar-injector.istio.io"'
    reads = iter([refusal(message), refusal(message)])

    def kubelet(fake: FakeKubernetes, deployment: Thing) -> None:
        healthy(fake, deployment)
        deployment["status"] = next(reads, deployment["status"])

    fake.kubelet = kubelet
    platform.start(a_release(), a_spec())


def refusal(message: str) -> Thing:
    return {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": message}]}


def test_a_failing_probe_is_reported_in_the_kubelets_words(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    fake.kubelet = never
    pod(
        fake,
        {
            "phase": "Running",
            "conditions": [],
            "containerStatuses": [{"name": "server", "ready": False, "state": {"running": {}}}],
        },
    )
    fake.put(
        "events",
        {
            "metadata": {"name": "one"},
            "involvedObject": {"name": "flights-v1-abc"},
            "reason": "Unhealthy",
            "message": "Startup probe failed: HTTP probe: statuscode: 503",
        },
    )
    fake.put(
        "events",
        {
            "metadata": {"name": "two"},
            "involvedObject": {"name": "other"},
            "reason": "Unhealthy",
            "message": "not this one",
        },
    )
    with pytest.raises(
        ReleaseNotReady, match=r"not ready after 60 s; flights-v1-abc: Startup probe failed.*503"
    ):
        platform.start(a_release(), a_spec(start_seconds=60))
    assert 60 < clock.now < 120


def test_a_deployment_that_vanishes_while_it_starts(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    def vanish(fake: FakeKubernetes, deployment: Thing) -> None:
        never(fake, deployment)
        fake.objects.pop(("apps", "deployments", "modelserve", "flights-v1"), None)

    fake.kubelet = vanish
    with pytest.raises(ReleaseNotReady, match="was deleted while it started"):
        platform.start(a_release(), a_spec())


# -- traffic


def test_a_route_survives_the_round_trip(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    put_servers(fake, "flights-v1", "flights-v2", "flights-v3")
    routes = Routes(
        {"flights-v1": 90, "flights-v2": 10, "flights-v3": 0},
        matches=(
            Match("header", "x-experiment-arm", "b", "flights-v2"),
            Match("cookie", "flights.arm", "a+1", "flights-v1"),
        ),
        mirror=Mirror("flights-v3", 12.5),
    )
    platform.route("flights", routes)
    assert platform.routes("flights") == routes
    assert platform.routes("other") == Routes()


def test_an_unchanged_route_is_not_written(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    put_servers(fake, "flights-v1")
    platform.route("flights", Routes({"flights-v1": 100}))
    fake.calls.clear()
    platform.route("flights", Routes({"flights-v1": 100}))
    assert not [call for call in fake.calls if call.verb in ("create", "patch", "update")]


def test_an_empty_route_answers_503_with_a_problem(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    put_servers(fake, "flights-v1")
    platform.route("flights", Routes({"flights-v1": 100}))
    platform.route("flights", Routes())
    assert platform.routes("flights") == Routes()
    thing = fake.thing("virtualservices", "flights")
    assert thing is not None
    (entry,) = thing["spec"]["http"]
    assert entry["directResponse"]["status"] == 503
    assert "no release in service" in entry["directResponse"]["body"]["string"]


def test_fields_of_others_stay_where_they_are(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    put_servers(fake, "flights-v1", "flights-v2")
    platform.route("flights", Routes({"flights-v1": 100}))
    maintenance = {"name": "maintenance", "match": [{"headers": {"x-drill": {"exact": "1"}}}]}
    last = {"name": "last", "redirect": {"uri": "/elsewhere"}}

    def edit(thing: Thing) -> None:
        thing["metadata"]["labels"]["team"] = "ada"
        thing["spec"]["hosts"] = ["models.example.com"]
        thing["spec"]["exportTo"] = ["."]
        split = split_in(thing)
        split["timeout"] = "5s"
        split["corsPolicy"] = {"allowMethods": ["POST"]}
        thing["spec"]["http"] = [maintenance, *thing["spec"]["http"], last]

    fake.edit("virtualservices", "flights", edit)
    platform.route("flights", Routes({"flights-v1": 75, "flights-v2": 25}))
    thing = fake.thing("virtualservices", "flights")
    assert thing is not None
    assert thing["metadata"]["labels"]["team"] == "ada"
    assert thing["spec"]["hosts"] == ["models.example.com"]
    assert thing["spec"]["exportTo"] == ["."]
    assert thing["spec"]["http"][0] == maintenance
    assert thing["spec"]["http"][-1] == last
    split = split_in(thing)
    assert split["timeout"] == "5s"
    assert split["corsPolicy"] == {"allowMethods": ["POST"]}
    assert platform.routes("flights") == Routes({"flights-v1": 75, "flights-v2": 25})


def test_weights_edited_by_hand_are_read_back(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    put_servers(fake, "flights-v1", "flights-v2")
    platform.route("flights", Routes({"flights-v1": 90, "flights-v2": 10}))

    def edit(thing: Thing) -> None:
        split = split_in(thing)
        split["route"][0]["weight"], split["route"][1]["weight"] = 40, 60

    fake.edit("virtualservices", "flights", edit)
    assert platform.routes("flights") == Routes({"flights-v1": 40, "flights-v2": 60})


def test_a_mangled_route_is_an_error_to_read_and_can_be_overwritten(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.start(a_release(1), a_spec())
    platform.route("flights", Routes({"flights-v1": 100}))

    def edit(thing: Thing) -> None:
        split_in(thing)["route"][0]["destination"]["host"] = "somewhere.else"

    fake.edit("virtualservices", "flights", edit)
    with pytest.raises(RouteConflict, match="edited into something else"):
        platform.routes("flights")
    platform.start(a_release(1), a_spec())
    platform.route("flights", Routes({"flights-v1": 100}))
    assert platform.routes("flights") == Routes({"flights-v1": 100})


def test_a_virtual_service_of_somebody_else_is_left_alone(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    put_servers(fake, "flights-v1")
    foreign = {"metadata": {"name": "flights"}, "spec": {"http": [{"name": "theirs"}]}}
    fake.put("virtualservices", foreign)
    with pytest.raises(RouteConflict, match="belongs to somebody else"):
        platform.route("flights", Routes({"flights-v1": 100}))
    thing = fake.thing("virtualservices", "flights")
    assert thing is not None
    assert thing["spec"] == foreign["spec"]


# -- make before break


@pytest.mark.parametrize("late", [0.0, 3.0, 3600.0])
def test_nothing_is_deleted_before_the_mesh_has_the_new_route(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock, late: float
) -> None:
    """istiod pushes clusters before routes, up to ten seconds late: what is gone by then is an empty 503."""
    for version in (1, 2):
        platform.start(a_release(version), a_spec())
    platform.route("flights", Routes({"flights-v1": 50, "flights-v2": 50}))
    clock.now += 100
    writes: list[tuple[str, float]] = []
    fake.before_write = lambda _fake, resource, _name: writes.append((resource, clock.now))
    platform.route("flights", Routes({"flights-v1": 100}))
    clock.now += late
    begun = clock.now
    platform.stop(a_release(2))
    (routed,) = {at for resource, at in writes if resource == "virtualservices"}
    deleted = [at for resource, at in writes if resource in ("services", "destinationrules", "deployments")]
    assert deleted
    assert min(deleted) - routed >= MESH_SECONDS
    assert clock.now - begun <= MESH_SECONDS, "and what is long known is not waited for again"


def test_who_says_when_the_route_was_written_may_be_wrong(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    """A clock that is an hour ahead, or somebody's hand: the servers are removed all the same."""
    platform.start(a_release(1), a_spec())
    platform.route("flights", Routes({"flights-v1": 100}))
    for value in ("3600", "yesterday"):
        platform.start(a_release(2), a_spec())
        fake.edit(
            "virtualservices",
            "flights",
            lambda it, v=value: it["metadata"]["annotations"].update({ROUTED_ANNOTATION: v}),
        )
        begun = clock.now
        platform.stop(a_release(2))
        assert clock.now - begun == MESH_SECONDS
        assert fake.thing("deployments", "flights-v2") is None


# -- size during a promotion


@pytest.mark.parametrize(
    ("autoscaling", "resource"), [("hpa", "horizontalpodautoscalers"), ("keda", "scaledobjects")]
)
def test_the_stable_keeps_its_size_while_a_promotion_runs(
    platform: KubernetesPlatform, fake: FakeKubernetes, autoscaling: str, resource: str
) -> None:
    spec = a_spec(autoscaling=autoscaling, replicas=1, max_replicas=8)
    platform.start(a_release(1), spec)
    platform.route("flights", Routes({"flights-v1": 100}))
    assert minimum(fake, resource, "flights-v1") == (1, None)
    fake.edit("deployments", "flights-v1", lambda thing: thing["spec"].update(replicas=6))  # grown under load

    platform.start(a_release(2), spec)
    assert minimum(fake, resource, "flights-v1") == (6, "1")
    platform.route("flights", Routes({"flights-v1": 50, "flights-v2": 50}))
    fake.edit("deployments", "flights-v2", lambda thing: thing["spec"].update(replicas=4))
    platform.route("flights", Routes({"flights-v1": 0, "flights-v2": 100}))
    platform.start(a_release(1), spec)  # what a rollback does first
    assert minimum(fake, resource, "flights-v1") == (6, "1")

    platform.settle("flights")
    platform.settle("flights")
    assert minimum(fake, resource, "flights-v1") == (1, None)
    assert minimum(fake, resource, "flights-v2") == (1, None)


def test_a_sleeping_stable_is_awake_before_the_canary_starts(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    spec = a_spec(autoscaling="keda", scale_to_zero=True, start_seconds=30)
    platform.start(a_release(1), spec)
    platform.route("flights", Routes({"flights-v1": 100}))
    platform.settle("flights")
    assert minimum(fake, "scaledobjects", "flights-v1") == (0, None)
    fake.edit("deployments", "flights-v1", lambda thing: thing["spec"].update(replicas=0))
    awake: list[int] = []

    def watch(fake: FakeKubernetes, resource: str, name: str) -> None:
        if (resource, name) == ("deployments", "flights-v2"):
            stable = fake.thing("deployments", "flights-v1")
            assert stable is not None
            awake.append(stable["spec"]["replicas"])

    fake.before_write = watch
    platform.start(a_release(2), spec)
    assert awake
    assert min(awake) == 1
    assert minimum(fake, "scaledobjects", "flights-v1") == (1, "0")
    assert minimum(fake, "scaledobjects", "flights-v2") == (1, "0"), (
        "a canary must not fall asleep at weight 0"
    )
    platform.settle("flights")
    assert minimum(fake, "scaledobjects", "flights-v1") == (0, None)


def test_a_sleeping_stable_is_woken_for_a_canary_that_was_here_before(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    """The previous release is promoted again: it is part of the route, with no share."""
    spec = a_spec(autoscaling="keda", scale_to_zero=True)
    for version in (1, 2):
        platform.start(a_release(version), spec)
    platform.route("flights", Routes({"flights-v1": 0, "flights-v2": 100}))
    platform.settle("flights")
    fake.edit("deployments", "flights-v2", lambda thing: thing["spec"].update(replicas=0))
    platform.start(a_release(1), spec)
    stable = fake.thing("deployments", "flights-v2")
    assert stable is not None
    assert stable["spec"]["replicas"] == 1
    assert minimum(fake, "scaledobjects", "flights-v2") == (1, "0")


def test_a_sleeping_release_is_woken_by_its_own_start(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    spec = a_spec(autoscaling="keda", scale_to_zero=True)
    platform.start(a_release(1), spec)
    platform.settle("flights")
    fake.edit("deployments", "flights-v1", lambda thing: thing["spec"].update(replicas=0))
    platform.start(a_release(1), spec)
    thing = fake.thing("deployments", "flights-v1")
    assert thing is not None
    assert thing["spec"]["replicas"] == 1


def test_a_rollback_does_not_wait_for_more_servers_than_the_model_asks_for(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    platform.start(a_release(1), a_spec(replicas=2, max_replicas=10))
    fake.edit("deployments", "flights-v1", lambda thing: thing["spec"].update(replicas=10))

    def nearly(fake: FakeKubernetes, deployment: Thing) -> None:
        healthy(fake, deployment)
        deployment["status"].update(updatedReplicas=9, availableReplicas=9)

    fake.kubelet = nearly
    clock.now = 0
    platform.start(a_release(1), a_spec(replicas=2, max_replicas=10))
    assert clock.now == 0


@pytest.mark.parametrize("autoscaling", ["hpa", "keda", "none"])
def test_started_means_as_many_servers_as_the_model_asks_for(
    platform: KubernetesPlatform, fake: FakeKubernetes, autoscaling: str
) -> None:
    """A Deployment that leaves its number to an autoscaler has one server until that one looks at it."""
    spec = a_spec(autoscaling=autoscaling, replicas=3, max_replicas=10)
    ready = {"count": 0}

    def one_after_the_other(fake: FakeKubernetes, deployment: Thing) -> None:
        healthy(fake, deployment)
        ready["count"] = min(ready["count"] + 1, deployment["spec"]["replicas"])
        deployment["status"].update(updatedReplicas=ready["count"], availableReplicas=ready["count"])

    fake.kubelet = one_after_the_other
    platform.start(a_release(1), spec)
    assert ready["count"] == 3


@pytest.mark.parametrize("autoscaling", ["hpa", "keda"])
def test_who_takes_over_from_everybody_is_as_large_as_who_gives(
    platform: KubernetesPlatform, fake: FakeKubernetes, autoscaling: str
) -> None:
    spec = a_spec(autoscaling=autoscaling, replicas=2, max_replicas=10)
    platform.start(a_release(2), spec)
    platform.route("flights", Routes({"flights-v2": 100}))
    fake.edit("deployments", "flights-v2", lambda thing: thing["spec"].update(replicas=7))  # grown under load

    platform.start(a_release(1), spec, takes_over=True)

    thing = fake.thing("deployments", "flights-v1")
    assert thing is not None
    assert thing["spec"]["replicas"] == thing["status"]["availableReplicas"] == 7


def test_nobody_waits_for_ever_for_a_taker_as_large_as_the_giver(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    """The cluster is full: what the model asks for is there, and users leave the broken release."""
    spec = a_spec(replicas=2, max_replicas=10, start_seconds=30)
    platform.start(a_release(2), spec)
    platform.route("flights", Routes({"flights-v2": 100}))
    fake.edit("deployments", "flights-v2", lambda thing: thing["spec"].update(replicas=7))

    def full(fake: FakeKubernetes, deployment: Thing) -> None:
        healthy(fake, deployment)
        if deployment["metadata"]["name"] == "flights-v1":
            deployment["status"].update(updatedReplicas=4, availableReplicas=4)

    fake.kubelet = full
    clock.now = 0
    platform.start(a_release(1), spec, takes_over=True)
    assert 30 <= clock.now < 40


def test_servers_that_serve_are_not_replaced_by_a_newer_skeleton(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release is made once. A rollback after an upgrade finds its target as warm as it was left."""
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv) as platform:
        platform.start(a_release(), a_spec())
    before = fake.thing("deployments", "flights-v1")
    newer = read_skeletons()
    newer["deployment"]["spec"]["template"]["spec"]["dnsPolicy"] = "Default"
    monkeypatch.setattr("flows.adapters.kubernetes.platform.read_skeletons", lambda: newer)
    fake.calls.clear()
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv) as platform:
        platform.start(a_release(), a_spec())
        assert fake.thing("deployments", "flights-v1") == before
        fake.edit("deployments", "flights-v1", lambda thing: thing["spec"].update(replicas=0))
        platform.start(a_release(), a_spec())
    after = fake.thing("deployments", "flights-v1")
    assert after is not None
    assert after["spec"]["template"]["spec"]["dnsPolicy"] == "Default", "nobody was served by the old ones"


def test_a_sleeper_is_entered_through_the_interceptor_under_its_own_name(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.start(a_release(1), a_spec(autoscaling="keda", scale_to_zero=True))
    platform.route("flights", Routes({"flights-v1": 100}))
    thing = fake.thing("virtualservices", "flights")
    assert thing is not None
    split = split_in(thing)
    (destination,) = split["route"]
    assert destination["destination"]["host"] == Cluster().interceptor_host
    assert destination["headers"]["request"]["set"]["Host"] == "flights-v1.modelserve.svc.cluster.local"
    assert split["timeout"] == "240s", "the first request must be allowed to wait for the cold start"
    assert platform.routes("flights") == Routes({"flights-v1": 100})


def test_a_rollback_waits_for_its_target_only(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock
) -> None:
    """The release that serves harm may be asleep or broken: nobody waits for it on the way back."""
    spec = a_spec(autoscaling="keda", scale_to_zero=True)
    for version in (1, 2):
        platform.start(a_release(version), spec)
    platform.route("flights", Routes({"flights-v1": 0, "flights-v2": 100}))
    fake.edit("deployments", "flights-v2", lambda thing: thing["spec"].update(replicas=0))

    def only_the_first(fake: FakeKubernetes, deployment: Thing) -> None:
        (healthy if deployment["metadata"]["name"] == "flights-v1" else never)(fake, deployment)

    fake.kubelet = only_the_first
    clock.now = 0
    platform.start(a_release(1), spec)
    assert clock.now == 0
