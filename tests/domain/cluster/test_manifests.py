"""Rendering: what is refused, what depends on the spec, and that a route survives the trip to Istio."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.adapters.kubernetes import read_skeletons
from flows.domain.cluster import mesh
from flows.domain.cluster.manifests import Cluster, release_manifests
from flows.domain.cluster.skeleton import fill
from flows.domain.errors import ImageFailed, RouteConflict, SpecInvalid
from flows.domain.release import Release
from flows.domain.routes import Match, Mirror, Routes
from flows.domain.spec import ModelSpec

SKELETONS = read_skeletons()
IMAGE = "registry.example/flights@sha256:" + "1" * 64


def render(image: str | None = IMAGE, cluster: Cluster | None = None, **resources: Any) -> dict[str, Any]:
    """Kind → manifest."""
    column = {"name": "x", "type": "number"}
    spec = ModelSpec.model_validate(
        {"name": "flights", "signature": {"inputs": [column], "outputs": [column]}, "resources": resources}
    )
    release = Release("flights", 2, "s3://b", "2" * 64, image)
    things = release_manifests(release, spec, cluster or Cluster(), SKELETONS)
    return {thing["kind"]: thing for thing in things}


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"scale_to_zero": True}, "scale_to_zero needs resources.autoscaling: keda"),
        ({"pool": "gpu"}, "resources.gpu must be at least 1 in the pool 'gpu'"),
        ({"gpu": 1}, "resources.pool must be 'gpu' when resources.gpu is 1"),
        (
            {"autoscaling": "keda", "scale_to_zero": True, "start_seconds": 500},
            "start_seconds is 500, but the first request to a sleeping model is held for 180 s at most",
        ),
    ],
)
def test_a_spec_that_a_cluster_cannot_honour(resources: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecInvalid, match=re.escape(message)):
        render(**resources)


def test_an_image_that_is_not_pinned() -> None:
    with pytest.raises(ImageFailed, match="has no image yet"):
        render(image=None)
    with pytest.raises(ImageFailed, match="is not pinned by digest"):
        render(image="registry.example/flights:v2")
    tagged = render(image="localhost/flights:v2", cluster=Cluster(tags_allowed=True))
    (container,) = tagged["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "localhost/flights:v2"


def test_pools() -> None:
    cpu = render()["Deployment"]["spec"]["template"]["spec"]
    assert cpu["nodeSelector"] == {"modelserve.ai/pool": "cpu"}
    assert "tolerations" not in cpu
    gpu = render(pool="gpu", gpu=2)["Deployment"]["spec"]["template"]["spec"]
    assert gpu["nodeSelector"] == {"modelserve.ai/pool": "gpu"}
    assert gpu["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    ]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_a_fixed_number_is_in_the_deployment_and_an_autoscaled_one_is_not() -> None:
    assert render(autoscaling="none", replicas=3)["Deployment"]["spec"]["replicas"] == 3
    for autoscaling in ("hpa", "keda"):
        assert "replicas" not in render(autoscaling=autoscaling, replicas=3)["Deployment"]["spec"]


def test_longer_requests_mean_longer_drains() -> None:
    patient = Cluster(request_seconds=300)
    pod = render(cluster=patient)["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] > 300
    assert (
        render(drain_seconds=120)["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        > 120
    )


def test_a_session_header_makes_a_consistent_hash() -> None:
    rule = render(cluster=Cluster(session_header="x-session-id"))["DestinationRule"]
    balancer = rule["spec"]["trafficPolicy"]["loadBalancer"]
    assert balancer == {"consistentHash": {"httpHeaderName": "x-session-id"}}


# -- skeletons


def test_a_skeleton_keeps_types_and_drops_what_is_nothing() -> None:
    skeleton = {
        "a": "${number}",
        "b": "x-${number}-y",
        "c": "${nothing}",
        "d": [{"e": "${empty}"}],
        "f": None,
    }
    filled = fill(skeleton, {"number": 3, "nothing": None, "empty": {}})
    assert filled == {"a": 3, "b": "x-3-y", "d": [{}], "f": None}


def test_an_unknown_placeholder_is_an_error() -> None:
    with pytest.raises(KeyError, match="unknown"):
        fill({"a": "${unknown}"}, {})


# -- routes

names = st.integers(1, 99).map(lambda version: f"flights-v{version}")
tokens = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_|~-]{1,12}", fullmatch=True)


@st.composite
def some_routes(draw: st.DrawFn) -> Routes:
    releases = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(releases) - 1, max_size=len(releases) - 1)))
    bounds = [0, *cuts, 100]
    weights = {name: bounds[place + 1] - bounds[place] for place, name in enumerate(releases)}
    matches = tuple(
        Match(source, key.lower() if source == "header" else key, value, draw(st.sampled_from(releases)))
        for source, key, value in draw(
            st.lists(st.tuples(st.sampled_from(["header", "cookie"]), tokens, tokens), max_size=3)
        )
    )
    percent = draw(st.one_of(st.none(), st.floats(0.1, 100)))
    mirror = None if percent is None else Mirror(draw(st.sampled_from(releases)), percent)
    return Routes(weights, matches, mirror)


@given(some_routes(), st.booleans())
def test_every_route_survives_the_trip(routes: Routes, asleep: bool) -> None:
    sleepers = dict.fromkeys(routes.weights, 180.0) if asleep else {}
    entries = mesh.entries_of("flights", routes, Cluster(), SKELETONS["route"], sleepers)
    assert mesh.routes_of("flights", entries) == routes
    for entry in entries:
        if "route" in entry:
            assert sum(part["weight"] for part in entry["route"]) == 100


@given(some_routes(), some_routes(), st.lists(st.sampled_from(["theirs-1", "theirs-2"]), unique=True))
def test_merging_keeps_the_entries_of_others_in_order(old: Routes, new: Routes, theirs: list[str]) -> None:
    cluster, skeleton = Cluster(), SKELETONS["route"]
    before = mesh.entries_of("flights", old, cluster, skeleton, {})
    foreign = [{"name": name, "timeout": "1s"} for name in theirs]
    existing = [*foreign[:1], *before, *foreign[1:]]
    ours = mesh.entries_of("flights", new, cluster, skeleton, {})
    merged = mesh.merge(existing, ours)
    assert [entry for entry in merged if not mesh.is_ours(entry)] == foreign
    assert mesh.routes_of("flights", merged) == new
    assert mesh.merge(merged, ours) == merged


def retries(entries: list[Any]) -> set[tuple[int, str, str | None]]:
    return {
        (one["retries"]["attempts"], one["retries"]["retryOn"], one["retries"].get("backoff"))
        for one in entries
        if "route" in one
    }


def test_the_first_request_to_a_sleeper_is_asked_again_until_the_proxies_know_its_server() -> None:
    """The interceptor lets it go a moment before its own proxy has heard of the server: an empty 503 for the
    first one to ask. A server that is awake answers 503 for itself, and that reaches the judge."""
    routes, cluster, skeleton = Routes({"flights-v1": 100}), Cluster(), SKELETONS["route"]
    asleep = mesh.entries_of("flights", routes, cluster, skeleton, {"flights-v1": 180.0})
    awake = mesh.entries_of("flights", routes, cluster, skeleton, {})
    assert retries(asleep) == {(8, "connect-failure,refused-stream,503", "250ms")}
    assert retries(awake) == {(2, "connect-failure,refused-stream", None)}


def test_retries_follow_the_releases_unless_somebody_has_tuned_them() -> None:
    routes, cluster, skeleton = Routes({"flights-v1": 100}), Cluster(), SKELETONS["route"]
    asleep = mesh.entries_of("flights", routes, cluster, skeleton, {"flights-v1": 180.0})
    awake = mesh.entries_of("flights", routes, cluster, skeleton, {})
    assert retries(mesh.merge(asleep, awake)) == retries(awake)
    assert retries(mesh.merge(awake, asleep)) == retries(asleep)
    for entry in awake:
        entry["retries"] = {"attempts": 1, "retryOn": "reset"}
    assert retries(mesh.merge(awake, asleep)) == {(1, "reset", None)}


@pytest.mark.parametrize(
    ("cookie", "matches"),
    [
        ("arm=b", True),
        ("a=1; arm=b", True),
        ("arm=b; z=2", True),
        ("a=1;arm=b;z=2", True),
        ("arm=bb", False),
        ("charm=b", False),
        ("a=arm=b", False),
        ("", False),
    ],
)
def test_a_cookie_is_found_whole_or_not_at_all(cookie: str, matches: bool) -> None:
    routes = Routes({"flights-v1": 100}, (Match("cookie", "arm", "b", "flights-v1"),))
    entries = mesh.entries_of("flights", routes, Cluster(), SKELETONS["route"], {})
    (entry,) = [entry for entry in entries if entry["name"].startswith(mesh.MATCH)]
    regex = entry["match"][0]["headers"]["cookie"]["regex"]
    assert bool(re.fullmatch(regex, cookie)) is matches


@pytest.mark.parametrize(
    "change",
    [
        lambda split: split.update(route=[]),
        lambda split: split.pop("route"),
        lambda split: split["route"][0].update(weight=7),
        lambda split: split["route"][0]["destination"].update(host="elsewhere"),
        lambda split: split.update(mirror={"host": "nobody"}),
    ],
)
def test_what_somebody_made_of_our_entry_is_an_error_and_not_a_route(change: Any) -> None:
    routes = Routes({"flights-v1": 90, "flights-v2": 10})
    entries = mesh.entries_of("flights", routes, Cluster(), SKELETONS["route"], {})
    change(next(entry for entry in entries if entry["name"] == mesh.SPLIT))
    with pytest.raises(RouteConflict, match="was edited into something else"):
        mesh.routes_of("flights", entries)
