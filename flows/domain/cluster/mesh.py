"""A model's `Routes` in Istio's words, and back.

Only entries of `spec.http` that carry our name prefix are written; everything else in a VirtualService
belongs to somebody else and stays as it is, in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flows.domain.cluster.manifests import (
    MANAGED_BY,
    MANAGER,
    MODEL_LABEL,
    PORT,
    Cluster,
    Manifest,
    aside_name,
)
from flows.domain.cluster.skeleton import fill
from flows.domain.errors import RouteConflict
from flows.domain.release import parse_release_name
from flows.domain.routes import PREDICTIONS, Match, Mirror, Routes

PREFIX = "modelserveai-"
SPLIT = PREFIX + "split"
ELSEWHERE = PREFIX + "elsewhere"
EMPTY = PREFIX + "empty"
FEEDBACK = PREFIX + "feedback"
NO_SUCH_VERSION = PREFIX + "no-such-version"
VERSION = PREFIX + "version-"
MATCH = PREFIX + "match-"
VERSION_HEADER = "x-model-version"
_ANY_VERSION = {VERSION_HEADER: {"regex": ".*"}}
COOKIE_SECONDS = 30 * 24 * 3600
"""How long a visitor of an A/B test keeps the release that he was given first."""
NOT_REACHED = "connect-failure,refused-stream"
AWAKE: Mapping[str, Any] = {"attempts": 2, "retry_on": NOT_REACHED, "backoff": None}
ASLEEP: Mapping[str, Any] = {"attempts": 8, "retry_on": f"{NOT_REACHED},503", "backoff": "250ms"}
"""The interceptor lets a request go as soon as the first server is ready, and its own proxy learns of that
server from istiod some 0.1 to 1 s later: until then it answers 503 (no healthy upstream), and nobody has been
asked. Eight tries, 0.25 to 2.5 s apart, bridge that; a body above Envoy's 1 MiB is not tried again."""
OWN_FIELDS = frozenset(
    {"name", "match", "rewrite", "route", "directResponse", "headers", "mirror", "mirrorPercentage"}
)
"""The fields of our entries that follow from `Routes`; others (timeouts, retries, faults) may be tuned."""


def virtual_service(model: str, entries: list[Manifest], cluster: Cluster, skeleton: Any) -> Manifest:
    """A model's VirtualService as it is when it does not exist yet."""
    manifest: Manifest = fill(
        skeleton,
        {
            "model": model,
            "namespace": cluster.namespace,
            "gateway": cluster.gateway,
            "labels": {
                "app.kubernetes.io/name": model,
                "app.kubernetes.io/part-of": "modelserve",
                MANAGED_BY: MANAGER,
                MODEL_LABEL: model,
            },
            "entries": entries,
        },
    )
    return manifest


def entries_of(
    model: str,
    routes: Routes,
    cluster: Cluster,
    skeleton: Any,
    sleepers: Mapping[str, float],
) -> list[Manifest]:
    """Our entries of `spec.http`, first match first: outcomes, version header, A/B matches, the split of
    predictions, and that of everything else, which is not counted.

    `sleepers` maps the releases that are entered through the interceptor to the seconds that their first
    request may have to wait.
    """
    hosts = _Hosts(cluster, sleepers)

    def entry(name: str, match: Manifest, releases: Sequence[str]) -> Manifest:
        wait = cluster.request_seconds + max((sleepers.get(release, 0.0) for release in releases), default=0)
        uri = {"uri": {"prefix": f"/models/{model}/"}}
        retries = ASLEEP if any(release in sleepers for release in releases) else AWAKE
        values = {"entry": name, "match": [uri | match], "timeout": f"{int(wait)}s", **retries}
        filled: Manifest = fill(skeleton, values)
        return filled

    if not routes.weights:
        return [_empty(model, entry(EMPTY, {}, []))]
    entries = [_feedback(model, routes, entry, hosts)]
    for release in routes.weights:
        version = str(parse_release_name(release)[1])
        exact = {"headers": {VERSION_HEADER: {"exact": version}}}
        entries.append(
            entry(f"{VERSION}{version}", exact, [release])
            | {"route": [hosts.destination(release, 100, aside=True)]}
        )
    entries.append(_no_such_version(model, entry(NO_SUCH_VERSION, {"headers": _ANY_VERSION}, [])))
    for number, match in enumerate(routes.matches, start=1):
        entries.append(
            entry(f"{MATCH}{number}", {"headers": _header(match)}, [match.release])
            | {"route": [hosts.destination(match.release, 100)]}
        )
    cookies = {match.release: match for match in routes.matches if match.source == "cookie"}
    split = entry(SPLIT, {"uri": {"regex": f"/models/{model}/{PREDICTIONS}"}}, list(routes.weights))
    split["rewrite"] = {"uriRegexRewrite": {"match": f"^/models/{model}/", "rewrite": "/"}}
    split["route"] = [
        hosts.destination(release, weight, _cookie(model, cookies.get(release)))
        for release, weight in routes.weights.items()
    ]
    if routes.mirror is not None:
        # Never through the interceptor: Envoy renames the host of a copy, and a mirrored release is awake.
        split["mirror"] = {"host": cluster.host(routes.mirror.release), "port": {"number": PORT}}
        split["mirrorPercentage"] = {"value": float(routes.mirror.percent)}
    elsewhere = entry(ELSEWHERE, {}, list(routes.weights))
    elsewhere["route"] = [
        hosts.destination(release, weight, aside=True) for release, weight in routes.weights.items()
    ]
    return [*entries, split, elsewhere]


def merge(existing: Sequence[Manifest], ours: Sequence[Manifest]) -> list[Manifest]:
    """`existing` entries with ours put in the place where ours stood, at the end when there were none."""
    former = {entry["name"]: entry for entry in existing if is_ours(entry)}
    updated = []
    for entry in ours:
        kept = {key: value for key, value in former.get(entry["name"], {}).items() if key not in OWN_FIELDS}
        if kept.get("retries", {}).get("retryOn") in (AWAKE["retry_on"], ASLEEP["retry_on"]):
            del kept["retries"]  # ours, of a time when the releases slept, or did not
        updated.append({**entry, **kept})
    position = next((index for index, entry in enumerate(existing) if is_ours(entry)), len(existing))
    before = [entry for entry in existing[:position] if not is_ours(entry)]
    after = [entry for entry in existing[position:] if not is_ours(entry)]
    return before + updated + after


def is_ours(entry: Manifest) -> bool:
    return str(entry.get("name", "")).startswith(PREFIX)


def routes_of(model: str, entries: Sequence[Manifest]) -> Routes:
    """What a VirtualService's entries say; empty when none is ours.

    Raises RouteConflict when somebody edited our entries into something that is no route of ours.
    """
    split = next((entry for entry in entries if entry.get("name") == SPLIT), None)
    if split is None:
        return Routes()
    try:
        weights = {_release_in(part): int(part.get("weight", 100)) for part in split["route"]}
        if not weights:
            raise ValueError("it routes to nobody")
        matches = tuple(_match_in(entry) for entry in entries if str(entry.get("name", "")).startswith(MATCH))
        mirror = None
        if "mirror" in split:
            percent = float(split.get("mirrorPercentage", {"value": 100})["value"])
            mirror = Mirror(_release_of_host(split["mirror"]["host"]), percent)
        return Routes(weights, matches, mirror)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RouteConflict(
            f"the VirtualService of {model} was edited into something else ({error}); "
            f"remove its entry {SPLIT!r} or put it right, then promote or roll back again"
        ) from error


class _Hosts:
    """Where a release is entered: at its own Service, or at the interceptor under the release's name."""

    def __init__(self, cluster: Cluster, sleepers: Mapping[str, float]) -> None:
        self._cluster = cluster
        self._sleepers = sleepers

    def destination(
        self, release: str, weight: int, cookie: str | None = None, aside: bool = False
    ) -> Manifest:
        host = self._cluster.host(aside_name(release) if aside else release)
        headers: Manifest = {}
        if release in self._sleepers:
            headers["request"] = {"set": {"Host": host}}
            host = self._cluster.interceptor_host
        if cookie is not None:
            headers["response"] = {"add": {"Set-Cookie": cookie}}
        target: Manifest = {"destination": {"host": host, "port": {"number": PORT}}, "weight": weight}
        return target | ({"headers": headers} if headers else {})


def _header(match: Match) -> Manifest:
    if match.source == "cookie":
        pair = f"{re.escape(match.key)}={re.escape(match.value)}"
        return {"cookie": {"regex": rf"^(.*;\s*)?{pair}(;.*)?$"}}
    return {match.key.lower(): {"exact": match.value}}


def _match_in(entry: Manifest) -> Match:
    release = _release_in(entry["route"][0])
    (header, condition), *_ = entry["match"][0]["headers"].items()
    if "exact" in condition:
        return Match("header", header, condition["exact"], release)
    pair = condition["regex"].removeprefix(r"^(.*;\s*)?").removesuffix(r"(;.*)?$")
    key, value = re.sub(r"\\(.)", r"\1", pair).split("=", 1)
    return Match("cookie", key, value, release)


def _cookie(model: str, match: Match | None) -> str | None:
    """The split is what a visitor meets first: it hands out the cookie that keeps him on his release."""
    if match is None:
        return None
    return (
        f"{match.key}={match.value}; Path=/models/{model}/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax"
    )


def _release_in(part: Manifest) -> str:
    rewritten = part.get("headers", {}).get("request", {}).get("set", {}).get("Host")
    return _release_of_host(rewritten or part["destination"]["host"])


def _release_of_host(host: str) -> str:
    name = host.split(".", 1)[0]
    parse_release_name(name)
    return name


def _feedback(
    model: str, routes: Routes, entry: Callable[[str, Manifest, Sequence[str]], Manifest], hosts: _Hosts
) -> Manifest:
    """Outcomes are no calls of the model: any release stores them, and no release answers for them."""
    keeper = max(routes.weights, key=lambda release: routes.weights[release])
    made = entry(FEEDBACK, {"uri": {"exact": f"/models/{model}/feedback"}}, [keeper])
    return made | {
        "rewrite": {"uri": "/feedback"},
        "route": [hosts.destination(keeper, 100, aside=True)],
    }


def _no_such_version(model: str, entry: Manifest) -> Manifest:
    """Another version than the one asked for would be a wrong answer without a sign."""
    detail = f"The route of {model} holds no such version ({VERSION_HEADER})."
    return _answered(entry, HTTPStatus.NOT_FOUND, "No such version", detail, {})


def _empty(model: str, entry: Manifest) -> Manifest:
    detail = f"The model {model} has no release in service. Try again later."
    later = {"Retry-After": "30"}
    return _answered(entry, HTTPStatus.SERVICE_UNAVAILABLE, "No release is serving", detail, later)


def _answered(
    entry: Manifest, status: HTTPStatus, title: str, detail: str, headers: Mapping[str, str]
) -> Manifest:
    """The gateway answers by itself, in the words of the server's own errors."""
    for field in ("rewrite", "retries", "timeout"):
        entry.pop(field, None)
    problem = {"type": "about:blank", "title": title, "status": status.value, "detail": detail}
    return entry | {
        "directResponse": {"status": status.value, "body": {"string": json.dumps(problem)}},
        "headers": {"response": {"set": {"Content-Type": "application/problem+json", **headers}}},
    }
