"""Against a real Kubernetes API: the contract, conflicts and field owners; real pods where there are nodes.

`KUBECONFIG=… pytest -m cluster tests/platform` uses a cluster, with real pods where it has nodes;
`KUBEBUILDER_ASSETS=… pytest -m cluster tests/platform` starts etcd and kube-apiserver from that folder.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flows.adapters.kubernetes import Api, KubernetesPlatform, connect, read_skeletons
from flows.domain.cluster.manifests import Cluster
from flows.domain.errors import DependencyDown, ReleaseNotReady
from flows.domain.release import Release, parse_release_name
from flows.domain.routes import Routes
from flows.domain.spec import ModelSpec
from tests.manifests.validate import OVERLAYS, everything
from tests.platform import test_contract
from tests.platform.conftest import Harness
from tests.platform.kubernetes_world import DIGEST, a_release, a_spec
from tests.platform.real_kubernetes import Kubelet, Sandbox, admin, kubelet, runnable_release, sandbox

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

globals().update({name: test for name, test in vars(test_contract).items() if name.startswith("test_")})

NewPlatform = Callable[..., KubernetesPlatform]
WITHOUT_IMAGE = (
    "this cluster has nodes that run real pods, and nobody here knows how to put an image onto them: set "
    "MODELSERVE_TEST_RELEASE to a JSON file with model, version, sha256 and image of a release that they can "
    "pull (python -m tests.platform.make_release FOLDER --repository HOST/NAME)"
)


@pytest.fixture(scope="session")
def real() -> Iterator[Sandbox]:
    with admin() as administrator, sandbox(administrator) as made:
        yield made


@pytest.fixture(scope="session")
def runnable(real: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Release | None:
    """What the nodes can run; None when there are no nodes."""
    if not real.has_nodes:
        return None
    release = runnable_release(real.admin, tmp_path_factory.mktemp("release"))
    if release is None:
        pytest.skip(WITHOUT_IMAGE)
    return release


@pytest.fixture(scope="session")
def played(real: Sandbox) -> Iterator[Kubelet]:
    with kubelet(real) as kubelet_:
        yield kubelet_


@pytest.fixture
def new_platform(real: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewPlatform]:
    """Makes adapters with the flows' own identity and the Role that ships."""
    monkeypatch.setenv("KUBECONFIG", str(real.kubeconfig))
    apis: list[Api] = []

    def make(**changes: Any) -> KubernetesPlatform:
        cluster = Cluster(namespace=real.namespace, tags_allowed=True, node_seconds=120)
        apis.append(Api(connect, real.namespace))
        return KubernetesPlatform(
            apis[-1], dataclasses.replace(cluster, **changes), read_skeletons(), poll_seconds=0.5
        )

    yield make
    for api in apis:
        api.close()


@pytest.fixture
def platform(real: Sandbox, new_platform: NewPlatform) -> Iterator[KubernetesPlatform]:
    """Empty at the start of each test."""
    platform = new_platform()
    yield platform
    for name in platform.running():
        platform.stop(Release(*parse_release_name(name), "", ""))
    for group, plural in (("networking.istio.io/v1", "virtualservices"), ("", "pods")):
        real.admin.call("DELETE", real.path(group, plural) + "?gracePeriodSeconds=0")


def as_any_model(platform: KubernetesPlatform) -> KubernetesPlatform:
    """Let one image play every model of the contract: it knows its own name, so ours is left out."""
    skeletons = read_skeletons()
    (container,) = skeletons["deployment"]["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "SERVING_BUNDLE", "value": "/bundle"}]
    platform._skeletons = skeletons
    return platform


def spec_for(real: Sandbox, model: str, **resources: Any) -> ModelSpec:
    small = {"cpu": "100m", "memory": "512Mi", "start_seconds": 180 if real.has_nodes else 10}
    return a_spec(model, **(small | resources))


@pytest.fixture
def harness(
    real: Sandbox,
    runnable: Release | None,
    played: Kubelet,
    platform: KubernetesPlatform,
    new_platform: NewPlatform,
) -> Harness:
    def broken(model: str, version: int) -> Release:
        played.broken.add(f"{model}-v{version}")
        return a_release(version, model, image=f"registry.invalid/none@{DIGEST}")

    def healthy(model: str, version: int) -> Release:
        """A release that becomes ready: by the played kubelet, or because the nodes really run it."""
        played.mend(f"{model}-v{version}")
        if runnable is None:
            return a_release(version, model)
        return dataclasses.replace(runnable, model=model, version=version)

    return Harness(
        platform=as_any_model(platform) if real.has_nodes else platform,
        again=new_platform,
        healthy=healthy,
        broken=broken,
        spec=lambda model: spec_for(real, model),
    )


def test_concurrent_writers_lose_nothing(real: Sandbox, played: Kubelet, harness: Harness) -> None:
    """Real 409s: somebody labels the VirtualService as fast as he can while we shift traffic."""
    del played
    platform = harness.platform
    for version in (1, 2):
        platform.start(harness.healthy("flights", version), harness.spec("flights"))
    platform.route("flights", Routes({"flights-v1": 100}))
    path = real.path("networking.istio.io/v1", "virtualservices", "flights")
    over = threading.Event()
    written = 0

    def scribble() -> None:
        nonlocal written
        while not over.wait(0.02):
            written += 1
            real.admin.call("PATCH", path, {"metadata": {"labels": {"scribble": str(written)}}})

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for weight in range(0, 101, 10):
            platform.route("flights", Routes({"flights-v1": 100 - weight, "flights-v2": weight}))
    finally:
        over.set()
        thread.join()
    assert platform.routes("flights") == Routes({"flights-v1": 0, "flights-v2": 100})
    assert real.admin.call("GET", path)["metadata"]["labels"]["scribble"] == str(written)


def test_server_side_apply_keeps_foreign_fields_and_names_its_manager(
    real: Sandbox, harness: Harness
) -> None:
    # Without an autoscaler: one with real measurements may change the size.
    release, spec = harness.healthy("flights", 1), spec_for(real, "flights", autoscaling="none")
    harness.platform.start(release, spec)
    deployment = real.path("apps/v1", "deployments", release.name)
    before = real.admin.call("GET", deployment)
    # The second start writes the Service again; servers that serve are left as they are.
    paths = (deployment, real.path("", "services", release.name))
    for path in paths:
        real.admin.call("PATCH", path, {"metadata": {"annotations": {"team.example/owner": "ada"}}})
    harness.platform.start(release, spec)
    for path in paths:
        found = real.admin.call("GET", path)
        assert found["metadata"]["annotations"]["team.example/owner"] == "ada"
        managers = {(entry["manager"], entry["operation"]) for entry in found["metadata"]["managedFields"]}
        assert ("modelserveai", "Apply") in managers
    found = real.admin.call("GET", deployment)
    # Not the generation: a Deployment's rises with its annotations too.
    assert found["spec"] == before["spec"], "nothing that the second start did may roll the servers"


def test_the_size_that_an_autoscaler_has_chosen_is_kept(real: Sandbox, harness: Harness) -> None:
    release, spec = harness.healthy("flights", 1), harness.spec("flights")
    harness.platform.start(release, spec)
    path = real.path("apps/v1", "deployments", release.name)
    real.admin.call("PATCH", f"{path}/scale", {"spec": {"replicas": 2}})
    harness.platform.start(release, spec)
    assert real.admin.call("GET", path)["spec"]["replicas"] == 2


def test_the_size_is_pinned_and_restored(real: Sandbox, harness: Harness) -> None:
    for version in (1, 2):
        harness.platform.start(harness.healthy("flights", version), harness.spec("flights"))
    harness.platform.route("flights", Routes({"flights-v1": 50, "flights-v2": 50}))
    path = real.path("autoscaling/v2", "horizontalpodautoscalers", "flights-v1")
    assert "modelserve.ai/pinned-from" in real.admin.call("GET", path)["metadata"]["annotations"]
    platform = harness.platform
    assert isinstance(platform, KubernetesPlatform)
    platform.settle("flights")
    settled = real.admin.call("GET", path)
    assert settled["spec"]["minReplicas"] == 1
    assert "modelserve.ai/pinned-from" not in settled["metadata"].get("annotations", {})


def test_a_sleeping_model_can_be_started_and_stopped(real: Sandbox, harness: Harness) -> None:
    spec = spec_for(real, "flights", autoscaling="keda", scale_to_zero=True)
    release = harness.healthy("flights", 1)
    harness.platform.start(release, spec)
    assert real.admin.exists(real.path("http.keda.sh/v1beta1", "interceptorroutes", release.name))
    harness.platform.stop(release)
    assert not real.admin.exists(real.path("keda.sh/v1alpha1", "scaledobjects", release.name))


def test_the_flows_may_do_nothing_beyond_their_role(real: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(real.kubeconfig))
    api = Api(connect, "kube-system")
    try:
        with pytest.raises(DependencyDown, match=r"forbids: list Deployment.*modelserve-flows"):
            api.find("Deployment")
    finally:
        api.close()


def test_the_api_server_accepts_every_manifest(real: Sandbox) -> None:
    """Server-side dry run with strict fields: defaults, admission and, where installed, the real CRDs."""
    served = _served_kinds(real)
    sent, refused = 0, []
    for source, things in everything().items():
        for thing in things:
            found = served.get((thing["apiVersion"], thing["kind"]))
            if found is None or thing["kind"] == "Namespace":
                continue
            sent += 1
            plural, namespaced = found
            name = thing["metadata"]["name"]
            thing["metadata"]["name"] = f"dry-run-{sent}"
            thing["metadata"].pop("namespace", None)
            if namespaced:
                thing["metadata"]["namespace"] = real.namespace
            prefix = "/api/v1" if thing["apiVersion"] == "v1" else f"/apis/{thing['apiVersion']}"
            place = f"{prefix}/namespaces/{real.namespace}" if namespaced else prefix
            path = f"{place}/{plural}?dryRun=All&fieldValidation=Strict"
            answer = real.admin.http.post(path, json=thing)
            if answer.is_error:
                refused.append(f"{source}: {thing['kind']} {name}: {answer.json().get('message')}")
    assert refused == []
    assert sent > 50 * len(OVERLAYS)


def _served_kinds(real: Sandbox) -> dict[tuple[str, str], tuple[str, bool]]:
    """Version and kind → plural, and whether it lives in namespaces."""
    versions = {"v1": "/api/v1"}
    for group in real.admin.call("GET", "/apis")["groups"]:
        for version in group["versions"]:
            versions[version["groupVersion"]] = f"/apis/{version['groupVersion']}"
    return {
        (version, resource["kind"]): (resource["name"], resource["namespaced"])
        for version, path in versions.items()
        for resource in real.admin.call("GET", path)["resources"]
        if "/" not in resource["name"]
    }


# -- real pods on real nodes


NO_NODES = "this API server has no nodes (KUBEBUILDER_ASSETS); real pods need a cluster (KUBECONFIG)"


@pytest.fixture
def release(runnable: Release | None) -> Release:
    if runnable is None:
        pytest.skip(NO_NODES)
    return runnable


@pytest.fixture
def nodes(real: Sandbox) -> None:
    if not real.has_nodes:
        pytest.skip(NO_NODES)


def test_a_real_pod_serves(real: Sandbox, release: Release, platform: KubernetesPlatform) -> None:
    platform.start(release, spec_for(real, release.model))
    proxy = real.path("", "services", f"{release.name}:http") + "/proxy"
    answer = real.admin.http.get(f"{proxy}/healthz")
    assert answer.status_code == 200
    ready = real.admin.http.get(f"{proxy}/readyz")
    assert ready.status_code == 200
    metrics = real.admin.http.get(f"{proxy}/metrics").text
    assert f'model="{release.model}"' in metrics
    platform.stop(release)


def test_a_real_pod_that_crashes_is_reported_with_its_log(
    real: Sandbox, release: Release, platform: KubernetesPlatform
) -> None:
    """The server refuses a bundle whose digest is another one, and says so in its log."""
    release = dataclasses.replace(release, sha256="0" * 64)
    with pytest.raises(ReleaseNotReady, match=r"CrashLoopBackOff|ended with exit code") as caught:
        platform.start(release, spec_for(real, release.model))
    assert "its log says" in str(caught.value)


@pytest.mark.usefixtures("nodes", "platform")
def test_a_real_pod_without_a_node_says_so(real: Sandbox, new_platform: NewPlatform) -> None:
    platform = new_platform(node_seconds=5)
    with pytest.raises(ReleaseNotReady, match=r"no node after \d+ s; flights-v6.*Unschedulable"):
        platform.start(a_release(6), spec_for(real, "flights", cpu="1000", start_seconds=5))


@pytest.mark.usefixtures("nodes")
def test_a_real_image_that_is_not_there(real: Sandbox, platform: KubernetesPlatform) -> None:
    release = a_release(7, image=f"registry.invalid/none@{DIGEST}")
    with pytest.raises(ReleaseNotReady, match=r"ImagePullBackOff.*is the image pushed"):
        platform.start(release, spec_for(real, "flights"))


@pytest.mark.usefixtures("nodes")
def test_a_real_quota_is_reported(real: Sandbox, platform: KubernetesPlatform) -> None:
    path = real.path("", "resourcequotas")
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    real.admin.call("POST", path, quota)
    try:
        # Until its controller has counted, the quota refuses pods with another sentence.
        until = time.monotonic() + 60
        while not real.admin.call("GET", f"{path}/none").get("status", {}).get("hard"):
            assert time.monotonic() < until, "no controller counts the quota"
            time.sleep(0.2)
        with pytest.raises(ReleaseNotReady, match=r"no pod may be created: .*exceeded quota"):
            platform.start(a_release(8), spec_for(real, "flights"))
    finally:
        real.admin.call("DELETE", f"{path}/none")
