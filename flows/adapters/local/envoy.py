"""A model's `Routes` in Envoy's words, and back. Pure: dictionaries in, dictionaries out.

Every route entry of a model carries a name that starts with `<model>/`, so that entries of other models,
and entries that somebody added by hand, stay where they are. Reading back looks only at what Envoy acts on
(clusters, weights, matchers), never at notes beside it: an edit by hand shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flows.domain.errors import RouteConflict
from flows.domain.release import parse_release_name
from flows.domain.routes import ASIDE, PREDICTIONS, Match, Mirror, Routes

Entry = dict[str, Any]

VERSION_HEADER = "x-model-version"
ASIDE_SUFFIX = "@aside"
"""Copies, outcomes, requests that name their release and all that is no prediction go through a cluster of
its own, so that what counts as a release's traffic are the predictions that the split has sent to it."""
MILLION = 1_000_000
COOKIE_SECONDS = 30 * 24 * 3600
"""How long a visitor of an A/B test keeps the release that the split gave him first."""
COOKIE_BEFORE, COOKIE_AFTER = r"(.*;\s*)?", r"(;.*)?"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
HTTP_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def cluster(name: str, host: str, port: int) -> Entry:
    """The upstream of one release; `name` is the release's, or that with the mirror suffix."""
    endpoint = {"address": {"socket_address": {"address": host, "port_value": port}}}
    return {
        "@type": CLUSTER,
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        # The server sheds load itself, with a reason; the gateway's limits are only a far fence.
        "circuit_breakers": {
            "thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": HTTP_OPTIONS,
                # Shorter than the servers' keep-alive: a request never meets a connection being closed.
                "common_http_protocol_options": {"idle_timeout": "30s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def cluster_port(entry: Mapping[str, Any]) -> int:
    endpoint = entry["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    return int(endpoint["address"]["socket_address"]["port_value"])


def entries_of(model: str, routes: Routes, timeout_seconds: float, shown: Sequence[str] = ()) -> list[Entry]:
    """The model's route entries, first match first: outcomes, version header, A/B matches, the split of
    predictions, that of the other paths for users and of those in `shown`, and a 404 for the rest."""
    if not routes.weights:
        return [_nobody(model)]
    public = "|".join([PREDICTIONS, ASIDE, *(re.escape(path.strip("/")) for path in shown)])

    def entry(kind: str, conditions: list[Entry], action: Entry) -> Entry:
        return {
            "name": f"{model}/{kind}",
            "match": {"safe_regex": {"regex": f"/models/{model}/({public})"}}
            | ({"headers": conditions} if conditions else {}),
            "route": {
                **action,
                "regex_rewrite": {"pattern": {"regex": f"^/models/{model}/"}, "substitution": "/"},
                "timeout": f"{timeout_seconds:g}s",
                # Only when no connection was made: the server has seen nothing, so nothing happens twice.
                "retry_policy": {"retry_on": "connect-failure", "num_retries": 1},
            },
        }

    entries = [_feedback(model, routes, timeout_seconds)]
    for release in routes.weights:
        version = str(parse_release_name(release)[1])
        pinned = [_exactly(VERSION_HEADER, version)]
        entries.append(entry(f"version/{version}", pinned, {"cluster": release + ASIDE_SUFFIX}))
    entries.append(_no_such_version(model))
    for number, match in enumerate(routes.matches, start=1):
        entries.append(entry(f"match/{number}", [_condition(match)], {"cluster": match.release}))
    cookies = {match.release: match for match in routes.matches if match.source == "cookie"}
    shares = [
        {"name": release, "weight": weight} | _cookie(model, cookies.get(release))
        for release, weight in routes.weights.items()
    ]
    action: Entry = {"weighted_clusters": {"clusters": shares}}
    if routes.mirror is not None:
        share = {"numerator": round(routes.mirror.percent * MILLION / 100), "denominator": "MILLION"}
        action["request_mirror_policies"] = [
            {
                "cluster": routes.mirror.release + ASIDE_SUFFIX,
                "runtime_fraction": {"default_value": share},
            }
        ]
    split = entry("split", [], action)
    split["match"] = {"safe_regex": {"regex": f"/models/{model}/{PREDICTIONS}"}}
    asides = [
        {"name": release + ASIDE_SUFFIX, "weight": weight} for release, weight in routes.weights.items()
    ]
    elsewhere = entry("elsewhere", [], {"weighted_clusters": {"clusters": asides}})
    return [*entries, split, elsewhere, _not_for_users(model)]


def routes_in(model: str, entries: Iterable[Mapping[str, Any]]) -> Routes:
    """What route entries, as Envoy shows them, say about one model; empty when there are none.

    Raises RouteConflict when they were edited into something that is no route of ours.
    """
    ours = {str(entry["name"]).removeprefix(f"{model}/"): entry for entry in entries if is_of(model, entry)}
    split = ours.get("split")
    if split is None:
        return Routes()
    try:
        action = split["route"]
        weights = {
            share["name"]: int(share.get("weight", 0)) for share in action["weighted_clusters"]["clusters"]
        }
        matches = tuple(_match_in(entry) for kind, entry in ours.items() if kind.startswith("match/"))
        return Routes(weights, matches, _mirror_in(action))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RouteConflict(
            f"the gateway's route of {model} was edited into something else ({error}); "
            "put it right or set it again with a promotion or rollback"
        ) from error


def is_of(model: str, entry: Mapping[str, Any]) -> bool:
    return str(entry.get("name", "")).startswith(f"{model}/")


def replaced(entries: Sequence[Entry], model: str, ours: Sequence[Entry]) -> list[Entry]:
    """`entries` with the model's own ones replaced. Ours come first: the last entry catches everything."""
    return [*ours, *(entry for entry in entries if not is_of(model, entry))]


def clusters_named_in(entries: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of all clusters that these route entries send anything to."""
    names: set[str] = set()
    for entry in entries:
        action = entry.get("route", {})
        names.update(share["name"] for share in action.get("weighted_clusters", {}).get("clusters", []))
        names.update(policy["cluster"] for policy in action.get("request_mirror_policies", []))
        if "cluster" in action:
            names.add(action["cluster"])
    return names


def _exactly(header: str, value: str) -> Entry:
    return {"name": header, "string_match": {"exact": value}}


def _condition(match: Match) -> Entry:
    if match.source != "cookie":
        return _exactly(match.key, match.value)
    pair = f"{re.escape(match.key)}={re.escape(match.value)}"
    return {
        "name": "cookie",
        "string_match": {"safe_regex": {"regex": f"{COOKIE_BEFORE}{pair}{COOKIE_AFTER}"}},
    }


def _match_in(entry: Mapping[str, Any]) -> Match:
    condition = entry["match"]["headers"][0]
    value = condition["string_match"]
    release = str(entry["route"]["cluster"])
    if "exact" in value:
        return Match("header", condition["name"], value["exact"], release)
    pair = value["safe_regex"]["regex"].removeprefix(COOKIE_BEFORE).removesuffix(COOKIE_AFTER)
    key, wanted = re.sub(r"\\(.)", r"\1", pair).split("=", 1)
    return Match("cookie", key, wanted, release)


def _mirror_in(action: Mapping[str, Any]) -> Mirror | None:
    policies = action.get("request_mirror_policies", [])
    if not policies:
        return None
    share = policies[0]["runtime_fraction"]["default_value"]
    per = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": MILLION}[share.get("denominator", "HUNDRED")]
    percent = share.get("numerator", 0) * 100 / per
    return Mirror(policies[0]["cluster"].removesuffix(ASIDE_SUFFIX), percent)


def _cookie(model: str, match: Match | None) -> Entry:
    """The split is what a visitor meets first: it hands out the cookie that keeps him on his release."""
    if match is None:
        return {}
    path = f"Path=/models/{model}/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax"
    value = f"{match.key}={match.value}; {path}".replace("%", "%%")
    return {
        "response_headers_to_add": [
            {"header": {"key": "set-cookie", "value": value}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
        ]
    }


def _feedback(model: str, routes: Routes, timeout_seconds: float) -> Entry:
    """Outcomes are no calls of the model: any release stores them, and no release answers for them."""
    keeper = max(routes.weights, key=lambda release: routes.weights[release])
    return {
        "name": f"{model}/feedback",
        "match": {"path": f"/models/{model}/feedback"},
        "route": {
            "cluster": keeper + ASIDE_SUFFIX,
            "prefix_rewrite": "/feedback",
            "timeout": f"{timeout_seconds:g}s",
        },
    }


def _nobody(model: str) -> Entry:
    return {
        "name": f"{model}/nobody",
        "match": {"prefix": f"/models/{model}/"},
        "direct_response": {
            "status": 503,
            "body": {"inline_string": f"the model {model} has no release in service; try again later"},
        },
        "response_headers_to_add": [{"header": {"key": "retry-after", "value": "30"}}],
    }


def _not_for_users(model: str) -> Entry:
    return {
        "name": f"{model}/not for users",
        "match": {"prefix": f"/models/{model}/"},
        "direct_response": {
            "status": 404,
            "body": {"inline_string": f"the gateway has no such path of {model}"},
        },
    }


def _no_such_version(model: str) -> Entry:
    """Another version than the one asked for would be a wrong answer without a sign."""
    return {
        "name": f"{model}/no such version",
        "match": {
            "prefix": f"/models/{model}/",
            "headers": [{"name": VERSION_HEADER, "present_match": True}],
        },
        "direct_response": {
            "status": 404,
            "body": {"inline_string": f"the route of {model} holds no such version ({VERSION_HEADER})"},
        },
    }
