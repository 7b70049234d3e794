"""What the platform does when the API server, the network, the credentials or other people misbehave."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.adapters.kubernetes import Api, KubernetesPlatform, connect
from flows.domain.cluster.manifests import Cluster
from flows.domain.errors import DependencyDown, ModelServeError, RouteConflict
from flows.domain.routes import Routes
from tests.platform.fake_kubernetes import FakeKubernetes, Thing, serve
from tests.platform.kubernetes_world import (
    Clock,
    a_release,
    a_spec,
    kubeconfig,
    kubernetes_platform,
    put_servers,
)

ALL_TO_ONE = Routes({"flights-v1": 100})
HALVES = Routes({"flights-v1": 50, "flights-v2": 50})


@pytest.fixture
def fake() -> FakeKubernetes:
    """A cluster in which two releases serve."""
    fake = FakeKubernetes()
    put_servers(fake, "flights-v1", "flights-v2")
    return fake


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def platform(
    fake: FakeKubernetes, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KubernetesPlatform]:
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv, clock, timeout_seconds=0.3) as platform:
        yield platform


def split_of(fake: FakeKubernetes) -> Thing:
    thing = fake.thing("virtualservices", "flights")
    assert thing is not None
    return dict(next(entry for entry in thing["spec"]["http"] if entry["name"] == "modelserveai-split"))


# -- other people's hands


def test_a_storm_of_foreign_writes_is_ridden_out(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    platform.route("flights", ALL_TO_ONE)
    left = 5

    def storm(fake: FakeKubernetes, resource: str, name: str) -> None:
        nonlocal left
        if resource == "virtualservices" and left:
            left -= 1
            fake.edit(resource, name, lambda thing: thing["metadata"]["labels"].update(gust=str(left)))

    fake.before_write = storm
    platform.route("flights", HALVES)
    assert left == 0
    assert platform.routes("flights") == HALVES
    thing = fake.thing("virtualservices", "flights")
    assert thing is not None
    assert thing["metadata"]["labels"]["gust"] == "0", "the last foreign write must have survived"
    assert sum(call.status == 409 for call in fake.calls) == 5


def test_an_endless_storm_ends_in_a_route_conflict(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.route("flights", ALL_TO_ONE)
    count = 0

    def storm(fake: FakeKubernetes, resource: str, name: str) -> None:
        nonlocal count
        count += 1
        fake.edit(resource, name, lambda thing: thing["metadata"]["labels"].update(gust=str(count)))

    fake.before_write = storm
    with pytest.raises(RouteConflict, match="somebody else keeps changing the VirtualService flights"):
        platform.route("flights", HALVES)
    fake.before_write = None
    assert platform.routes("flights") == ALL_TO_ONE, "traffic must stay where it was"


def test_a_writer_that_undoes_our_write_is_noticed(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.route("flights", ALL_TO_ONE)
    entries = fake.thing("virtualservices", "flights")["spec"]["http"]  # type: ignore[index]
    merge = fake.merge

    writes = 0

    def merge_and_undo(key: tuple[str, str, str, str], patch: Thing) -> tuple[int, Thing]:
        """Puts the old entries back right after each of our writes, as a badly set up GitOps tool does."""
        nonlocal writes
        writes += 1
        answer = merge(key, patch)
        fake.edit("virtualservices", "flights", lambda thing: thing["spec"].update(http=entries))
        return answer

    fake.merge = merge_and_undo  # type: ignore[method-assign]
    with pytest.raises(RouteConflict, match="writes did not last"):
        platform.route("flights", HALVES)
    assert writes == 8
    assert platform.routes("flights") == ALL_TO_ONE


def test_a_deleted_virtual_service_is_made_again(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    platform.route("flights", ALL_TO_ONE)
    fake.remove("virtualservices", "flights")
    assert platform.routes("flights") == Routes()
    platform.route("flights", HALVES)
    assert platform.routes("flights") == HALVES


def test_a_virtual_service_deleted_between_read_and_write(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    platform.route("flights", ALL_TO_ONE)
    once = True

    def delete(fake: FakeKubernetes, resource: str, name: str) -> None:
        nonlocal once
        if once:
            once = False
            fake.remove(resource, name)

    fake.before_write = delete
    platform.route("flights", HALVES)
    assert platform.routes("flights") == HALVES


def test_a_virtual_service_created_by_another_promotion_meanwhile(
    platform: KubernetesPlatform, fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeKubernetes()
    put_servers(other, "flights-v1")
    with kubernetes_platform(other, tmp_path, monkeypatch.setenv) as elsewhere:
        elsewhere.route("flights", ALL_TO_ONE)
    made = other.thing("virtualservices", "flights")
    assert made is not None
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", fake.url, {"token": "good"})))
    once = True

    def create(fake: FakeKubernetes, resource: str, _: str) -> None:
        nonlocal once
        if once:
            once = False
            fake.put(resource, made)

    fake.before_write = create
    platform.route("flights", HALVES)
    assert platform.routes("flights") == HALVES


# -- an API server in trouble


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(
    platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock, status: int
) -> None:
    fake.fail(status, times=3)
    platform.route("flights", ALL_TO_ONE)
    assert platform.routes("flights") == ALL_TO_ONE
    assert clock.naps
    assert clock.naps == sorted(clock.naps) or max(clock.naps) < 2.1, "waits must grow"


def test_retry_after_is_respected(platform: KubernetesPlatform, fake: FakeKubernetes, clock: Clock) -> None:
    fake.fail(429, times=2, retry_after=7, content_type="text/plain")
    platform.route("flights", ALL_TO_ONE)
    assert clock.naps[:2] == [7, 7]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_stays_broken_ends_in_one_line(
    platform: KubernetesPlatform, fake: FakeKubernetes, status: int
) -> None:
    fake.fail(status, times=100)
    with pytest.raises(DependencyDown) as caught:
        platform.route("flights", ALL_TO_ONE)
    message = str(caught.value)
    assert f"the Kubernetes API answered {status} (injected {status})" in message
    assert "could not get VirtualService flights in 5 tries" in message or "could not list" in message
    assert "\n" not in message


@pytest.mark.parametrize("content_type", [None, "text/html"])
def test_answers_that_are_not_the_apis_are_survived_and_reported(
    platform: KubernetesPlatform, fake: FakeKubernetes, content_type: str | None
) -> None:
    fake.fail(503, times=2, content_type=content_type)
    platform.route("flights", ALL_TO_ONE)
    fake.fail(503, times=100, content_type=content_type)
    with pytest.raises(DependencyDown, match="the Kubernetes API answered"):
        platform.routes("flights")


def test_a_silent_server_times_out_and_is_asked_again(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    fake.hang(0.8, times=1)
    platform.route("flights", ALL_TO_ONE)
    assert platform.routes("flights") == ALL_TO_ONE


def test_a_write_whose_answer_was_lost_is_not_done_twice(
    platform: KubernetesPlatform, fake: FakeKubernetes
) -> None:
    """The write lands, the answer does not: the repetition meets its own change and recognises it."""
    platform.route("flights", ALL_TO_ONE)
    merge = fake.merge
    lost = False

    def merge_without_answer(key: tuple[str, str, str, str], patch: Thing) -> tuple[int, Thing]:
        nonlocal lost
        status, thing = merge(key, patch)
        if not lost:
            lost = True
            return 504, {"kind": "Status", "message": "etcd is slow", "code": 504}
        return status, thing

    fake.merge = merge_without_answer  # type: ignore[method-assign]
    platform.route("flights", HALVES)
    assert lost
    assert platform.routes("flights") == HALVES


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = kubeconfig(tmp_path / "config", f"http://127.0.0.1:{port}", {"token": "good"})
    monkeypatch.setenv("KUBECONFIG", str(path))
    api = Api(connect, "modelserve", sleep=Clock().sleep)
    with pytest.raises(DependencyDown, match=r"does not answer \(ConnectError .*traffic stays as it is"):
        KubernetesPlatform(api, Cluster()).routes("flights")
    api.close()


# -- credentials


def test_a_rotated_token_is_picked_up(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tokens = {"old"}
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv, user={"token": "old"}) as platform:
        platform.route("flights", ALL_TO_ONE)
        fake.tokens = {"new"}
        kubeconfig(tmp_path / "kubeconfig", fake.url, {"token": "new"})
        platform.route("flights", HALVES)
        assert platform.routes("flights") == HALVES


def test_a_service_accounts_token_is_read_again_when_it_was_rotated(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    fake.tokens = {"first"}
    user = {"tokenFile": str(token)}
    with kubernetes_platform(fake, tmp_path, monkeypatch.setenv, user=user) as platform:
        platform.route("flights", ALL_TO_ONE)
        token.write_text("second")
        fake.tokens = {"second"}
        platform.route("flights", HALVES)
    assert sum(call.status == 401 for call in fake.calls) == 1


def test_an_expired_token_is_said_plainly(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    fake.tokens = {"another"}
    with pytest.raises(DependencyDown, match=r"refused our credentials \(401\).*renew the kubeconfig"):
        platform.route("flights", ALL_TO_ONE)
    assert len(fake.calls) == 2, "one renewal, no hammering"


@pytest.mark.parametrize(
    ("resource", "verb"),
    [("virtualservices", "create"), ("deployments", "patch"), ("deployments", "list"), ("pods", "list")],
)
def test_a_forbidden_verb_names_verb_object_and_role(
    platform: KubernetesPlatform, fake: FakeKubernetes, resource: str, verb: str
) -> None:
    everything = {"get", "list", "create", "patch", "delete"}
    if resource == "pods":
        fake.kubelet = lambda _, thing: thing.update(status={})
    fake.rules = [
        {
            "apiGroups": [group],
            "resources": [plural],
            "verbs": everything - ({verb} if plural == resource else set()),
        }
        for group, plural in fake.installed
    ]

    def promote() -> None:
        platform.start(a_release(), a_spec())
        platform.route("flights", ALL_TO_ONE)

    with pytest.raises(DependencyDown) as caught:
        promote()
    assert f'cannot {verb} resource "{resource}"' in str(caught.value)
    assert "grant it as in k8s/base/flows/role.yaml" in str(caught.value)
    assert sum(call.status == 403 for call in fake.calls) == 1, "asking again does not help"


def test_a_cluster_without_istio_is_said_plainly(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    fake.installed = {pair for pair in fake.installed if pair[0] != "networking.istio.io"}
    with pytest.raises(
        DependencyDown, match=r"knows no virtualservices.networking.istio.io/v1 .*install the add-ons"
    ):
        platform.route("flights", ALL_TO_ONE)


def test_without_any_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    api = Api(connect, "modelserve", sleep=Clock().sleep)
    with pytest.raises(DependencyDown, match="no usable credentials"):
        api.find("Pod")


@pytest.mark.parametrize("content", ["", "{", "[]", "clusters: 5", "a: [1", "clusters: []\ncontexts: []\n"])
def test_a_kubeconfig_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    api = Api(connect, "modelserve", sleep=Clock().sleep)
    with pytest.raises(DependencyDown, match="no usable credentials") as caught:
        api.find("Pod")
    assert "\n" not in str(caught.value)


def test_several_kubeconfigs_as_kubectl_reads_them(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.tokens = {"good"}
    with serve(fake):
        good = kubeconfig(tmp_path / "good", fake.url, {"token": "good"})
        other = kubeconfig(tmp_path / "other", "http://127.0.0.1:1", {"token": "bad"})
        monkeypatch.setenv("KUBECONFIG", f"{good}:{other}")
        api = Api(connect, fake.namespace, sleep=Clock().sleep)
        assert len(api.find("Deployment")) == 2
        api.close()


def test_every_error_is_one_of_ours(platform: KubernetesPlatform, fake: FakeKubernetes) -> None:
    """422 and the like: nothing of the client library reaches the caller."""
    for status in (400, 405, 410, 422):
        fake.fail(status, times=1)
        with pytest.raises(ModelServeError, match="rejected"):
            platform.routes("flights")
