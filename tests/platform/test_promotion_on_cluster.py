"""One good and one bad promotion on a cluster: flow runs in job pods, servers, Istio's split and counters.

Releases are registered and published from here as the workflow `cd` does it; flow runs in the cluster promote
them and judge what Prometheus counts of the gateway's requests. The tests tell one story, in their order, on
a cluster that has no release yet. k8s/README.md says how to make one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.adapters.registry import Registry
from flows.domain.promotion import Promotion, State
from tests.platform.promotion_world import MODEL, World, model_folder, read_settings, some_rows
from tests.platform.real_kubernetes import admin

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

GOOD, SICK = 2, 3
"""What the demo promotes and rejects as well: version 3 refuses flights that its training never saw."""
WITHOUT_PLATFORM = (
    "this cluster has no Prefect, Istio and Prometheus to promote with: MODELSERVE_TEST_CLUSTER names the "
    "file that .github/tools/make_cluster.py writes when it has installed them"
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster with nodes: set KUBECONFIG")
    with admin() as administrator:
        file = os.environ.get("MODELSERVE_TEST_CLUSTER")
        if not file:
            # Where a workflow has made the cluster, nothing may be left out.
            (pytest.fail if os.environ.get("GITHUB_ACTIONS") else pytest.skip)(WITHOUT_PLATFORM)
        yield World(administrator, read_settings(Path(file)))


@pytest.fixture(scope="module")
def registry(world: World) -> Registry:
    return Registry(world.settings["MODELSERVE_REGISTRY_URL"])


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions, trained on flights of 2013, with the rows that users will send."""
    folder = tmp_path_factory.mktemp("trained")
    assert world.run("-m", "serving.models.flights.train", "--output", str(folder)).returncode == 0
    return folder


@pytest.fixture(scope="module")
def published(world: World, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every version in registry and artifact store, its image scanned and in the cluster's registry."""
    model = model_folder(tmp_path_factory.mktemp("model") / MODEL)
    for version in (1, GOOD, SICK):
        artifact = trained / f"{MODEL}-v{version}" / "model.pt"
        done = world.modelserve("register", str(model), str(artifact), "--version", str(version))
        assert done.returncode == 0, done.stdout
        done = world.run(".github/tools/publish_release.py", MODEL, str(version))
        assert re.search(r"^image=\S+@sha256:[0-9a-f]{64}$", done.stdout, re.MULTILINE), done.stdout


@pytest.fixture(scope="module")
def users(world: World, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from serving.models.flights import data, train

    live = data.between(data.prepared(trained), train.LIVE_SINCE, train.LIVE_UNTIL)
    world.deploy_users(some_rows(live, tmp_path_factory.mktemp("rows") / "rows.parquet").read_bytes())
    yield
    world.remove_users()


def last(registry: Registry) -> Promotion:
    return max(registry.promotions(MODEL), key=lambda one: one.started_at)


@pytest.mark.usefixtures("published", "users")
def test_the_first_release_serves_everybody(world: World, registry: Registry) -> None:
    """Nobody to compare with: it is watched under all of the traffic."""
    assert world.modelserve("promote", MODEL, "1", "--watch").returncode == 0
    assert last(registry).state is State.PROMOTED
    world.only_this_one_is_asked(1, others=())
    assert world.counted_by_the_mesh(1) > 0


@pytest.mark.usefixtures("published", "users")
def test_a_good_release_is_promoted_with_everybody_on_it(world: World, registry: Registry) -> None:
    assert world.modelserve("promote", MODEL, str(GOOD), "--watch").returncode == 0
    promotion, standing = last(registry), registry.standing(MODEL)
    assert (promotion.version, promotion.state) == (GOOD, State.PROMOTED)
    assert standing.stable is not None
    assert (standing.stable.version, standing.canary) == (GOOD, None)
    # Real evidence at every step before the last, of both releases.
    windows = [window.content for window in registry.windows(promotion) if not window.watching]
    assert {window["weight"] for window in windows} == {10, 50}
    assert sum(window["canary"]["requests"] for window in windows if window["canary"]) > 0
    assert sum(window["stable"]["requests"] for window in windows if window["stable"]) > 0
    world.only_this_one_is_asked(GOOD, others=(1,))
    assert world.counted_by_the_mesh(GOOD) > 0


@pytest.mark.usefixtures("published", "users")
def test_a_sick_release_is_rejected_and_the_stable_has_its_traffic_back(
    world: World, registry: Registry
) -> None:
    done = world.modelserve("promote", MODEL, str(SICK), "--watch")
    assert done.returncode == 1, "the exit code is what a workflow sees of a rejection"
    promotion, standing = last(registry), registry.standing(MODEL)
    assert (promotion.version, promotion.state) == (SICK, State.REJECTED), promotion.reason
    assert standing.stable is not None
    assert (standing.stable.version, standing.canary) == (GOOD, None)
    # It was the users' requests that spoke against it, as the mesh has counted them.
    assert world.counted_by_the_mesh(SICK) > 0
    world.until(lambda: world.counted(SICK, ',class="5"') > 0, "its failures are counted")
    world.only_this_one_is_asked(GOOD, others=(1, SICK))


@pytest.mark.usefixtures("published", "users")
def test_the_verdicts_are_the_same_when_the_stored_windows_are_judged_again(
    world: World, registry: Registry
) -> None:
    judged = [one for one in registry.promotions(MODEL) if registry.windows(one)]
    assert {one.version for one in judged} == {1, GOOD, SICK}
    for promotion in judged:
        done = world.modelserve("explain", str(promotion.id), "--replay")
        assert done.returncode == 0, done.stdout
        assert " 0 different" in done.stdout
