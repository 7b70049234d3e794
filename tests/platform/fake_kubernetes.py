"""A small Kubernetes API server over real HTTP, for what kmock leaves out.

It keeps objects, resource versions, generations and owners; knows server-side apply of absent objects,
merge patches that carry a resource version, selectors, bearer tokens and RBAC rules; and logs every call.
What a kubelet would do is scripted by the test. It validates nothing: schemas are checked elsewhere.
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Thing = dict[str, Any]
Key = tuple[str, str, str, str]
"""Group, plural, namespace, name."""

KINDS = {
    ("apps", "deployments"): "Deployment",
    ("", "services"): "Service",
    ("", "pods"): "Pod",
    ("", "events"): "Event",
    ("policy", "poddisruptionbudgets"): "PodDisruptionBudget",
    ("autoscaling", "horizontalpodautoscalers"): "HorizontalPodAutoscaler",
    ("networking.istio.io", "virtualservices"): "VirtualService",
    ("networking.istio.io", "destinationrules"): "DestinationRule",
    ("keda.sh", "scaledobjects"): "ScaledObject",
    ("http.keda.sh", "interceptorroutes"): "InterceptorRoute",
}
LIST_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "ownerReferences": "uid",
    "ports": "name",
}
"""Lists that server-side apply merges by key; all others are replaced whole, as in the real schemas."""


@dataclass(frozen=True)
class Call:
    verb: str
    group: str
    resource: str
    """With the subresource: `pods/log`."""
    namespace: str
    name: str
    manager: str | None
    status: int


@dataclass
class Fault:
    """What the server does instead of answering, `times` times, to calls of this verb and resource."""

    answer: Callable[[Handler], None]
    verb: str | None = None
    resource: str | None = None
    times: int = 1


@dataclass
class FakeKubernetes:
    namespace: str = "modelserve"
    installed: set[tuple[str, str]] = field(default_factory=lambda: set(KINDS))
    tokens: set[str] | None = None
    """Tokens that are accepted; None: anybody."""
    rules: Sequence[Thing] | None = None
    """RBAC rules in force; None: everything is allowed."""
    objects: dict[Key, Thing] = field(default_factory=dict, repr=False)
    calls: list[Call] = field(default_factory=list, repr=False)
    faults: list[Fault] = field(default_factory=list)
    before_write: Callable[[FakeKubernetes, str, str], None] | None = None
    """Called with resource and name before each write: the place for somebody else's hand."""
    kubelet: Callable[[FakeKubernetes, Thing], None] | None = None
    """Called with each Deployment that is about to be read; the default makes it available at once."""
    logs: dict[str, str] = field(default_factory=dict)
    url: str = ""
    _version: int = 100
    _applied: dict[tuple[Key, str], Thing] = field(default_factory=dict, repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock)

    # -- for tests

    def thing(self, resource: str, name: str) -> Thing | None:
        """A copy of the object as it is stored."""
        with self.lock:
            for (_, plural, _, known), thing in self.objects.items():
                if (plural, known) == (resource, name):
                    return copy.deepcopy(thing)
        return None

    def put(self, resource: str, thing: Thing) -> Thing:
        """Create or replace an object as somebody else would."""
        group = next(group for group, plural in KINDS if plural == resource)
        with self.lock:
            return self._store((group, resource, self.namespace, thing["metadata"]["name"]), thing)

    def edit(self, resource: str, name: str, change: Callable[[Thing], None]) -> None:
        with self.lock:
            for key, thing in self.objects.items():
                if (key[1], key[3]) == (resource, name):
                    edited = copy.deepcopy(thing)
                    change(edited)
                    self._store(key, edited)
                    return
        raise KeyError(f"{resource}/{name}")

    def remove(self, resource: str, name: str) -> None:
        with self.lock:
            for key in [key for key in self.objects if (key[1], key[3]) == (resource, name)]:
                self._delete(key)

    def fail(
        self,
        status: int,
        times: int = 1,
        *,
        verb: str | None = None,
        resource: str | None = None,
        retry_after: int | None = None,
        content_type: str | None = "application/json",
    ) -> None:
        """Answer the next `times` matching calls with this status."""

        def answer(handler: Handler) -> None:
            body = _status(status, f"injected {status}")
            if content_type != "application/json":
                body = b"Too many requests, please try again later."
            headers = {} if content_type is None else {"Content-Type": content_type}
            if retry_after is not None:
                headers["Retry-After"] = str(retry_after)
            handler.reply_bytes(status, body, headers)

        self.faults.append(Fault(answer, verb, resource, times))

    def hang(self, seconds: float, times: int = 1, *, resource: str | None = None) -> None:
        """Let the next matching calls wait without an answer, then drop the connection."""

        def answer(handler: Handler) -> None:
            threading.Event().wait(seconds)
            handler.close_connection = True

        self.faults.append(Fault(answer, None, resource, times))

    def verbs(self) -> set[tuple[str, str, str]]:
        """The distinct (group, resource, verb) of all calls so far."""
        return {(call.group, call.resource, call.verb) for call in self.calls}

    # -- storage

    def _store(self, key: Key, thing: Thing) -> Thing:
        former = self.objects.get(key)
        stored = copy.deepcopy(thing)
        meta = stored.setdefault("metadata", {})
        stored.setdefault("kind", KINDS[key[:2]])
        meta["namespace"] = key[2]
        meta["uid"] = former["metadata"]["uid"] if former else str(uuid.uuid4())
        if key[1] == "deployments":
            stored.setdefault("spec", {}).setdefault("replicas", 1)
        if former is not None and _bare(former) == _bare(stored):
            return copy.deepcopy(former)
        self._version += 1
        meta["resourceVersion"] = str(self._version)
        generation = former["metadata"]["generation"] if former else 0
        changed = former is None or former.get("spec") != stored.get("spec")
        if former is not None and key[1] == "deployments":  # of no other kind annotations count
            changed = changed or former["metadata"].get("annotations") != meta.get("annotations")
        meta["generation"] = generation + 1 if changed else generation
        self.objects[key] = stored
        return copy.deepcopy(stored)

    def _delete(self, key: Key) -> None:
        thing = self.objects.pop(key)
        self._applied = {at: manifest for at, manifest in self._applied.items() if at[0] != key}
        uid = thing["metadata"]["uid"]
        owned = [
            at
            for at, other in self.objects.items()
            if any(owner["uid"] == uid for owner in other["metadata"].get("ownerReferences", []))
        ]
        for at in owned:
            self._delete(at)

    def apply(self, key: Key, manager: str, manifest: Thing) -> tuple[int, Thing]:
        live = copy.deepcopy(self.objects.get(key, {}))
        existed = bool(live)
        _drop(live, self._applied.get((key, manager), {}), manifest)
        merged = _merge_apply(live, manifest)
        self._applied[key, manager] = copy.deepcopy(manifest)
        return (200 if existed else 201), self._store(key, merged)

    def merge(self, key: Key, patch: Thing) -> tuple[int, Thing]:
        live = copy.deepcopy(self.objects[key])
        wanted = patch.get("metadata", {}).get("resourceVersion")
        if wanted is not None and wanted != live["metadata"]["resourceVersion"]:
            raise _Refused(
                409, f'Operation cannot be fulfilled on {key[1]} "{key[3]}": the object has been modified'
            )
        return 200, self._store(key, _merge_patch(live, patch))

    def settle(self, thing: Thing) -> None:
        """Let the scripted kubelet look at a Deployment before somebody reads it."""
        (self.kubelet or healthy)(self, thing)

    def allowed(self, verb: str, group: str, resource: str) -> bool:
        if self.rules is None:
            return True
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        )


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def healthy(fake: FakeKubernetes, deployment: Thing) -> None:
    """The default kubelet: every wanted server is available at once."""
    del fake
    count = deployment["spec"]["replicas"]
    deployment["status"] = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": count,
        "updatedReplicas": count,
        "availableReplicas": count,
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    fake: FakeKubernetes
    pending: tuple[str, str, str, str, str, str | None] | None = None

    def log_message(self, format: str, *args: object) -> None:
        """The call log is `FakeKubernetes.calls`."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def reply(self, status: int, thing: Any) -> None:
        self.reply_bytes(status, json.dumps(thing).encode(), {"Content-Type": "application/json"})

    def reply_bytes(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._record(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        parts = [part for part in url.path.split("/") if part]
        group = "" if parts[0] == "api" else parts[1]
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace, plural, *more = rest[1], rest[2], *rest[3:]
        name = more[0] if more else ""
        resource = "/".join([plural, *more[1:]])
        verb = self._verb(bool(name))
        self.pending = (verb, group, resource, namespace, name, self.query.get("fieldManager"))
        self._answer(verb, (group, plural, namespace, name), resource)
        self._record(0)

    def _record(self, status: int) -> None:
        """Before the answer goes out, so that a caller finds his call in the log. 0: never answered."""
        if self.pending is not None:
            self.fake.calls.append(Call(*self.pending, status))
            self.pending = None

    def _verb(self, named: bool) -> str:
        if self.command == "GET":
            return "get" if named else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[self.command]

    def _answer(self, verb: str, key: Key, resource: str) -> None:
        fake = self.fake
        for fault in fake.faults:
            if fault.times and fault.verb in (None, verb) and fault.resource in (None, resource):
                fault.times -= 1
                fault.answer(self)
                return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if fake.tokens is not None and token not in fake.tokens:
            self.reply_bytes(401, _status(401, "Unauthorized"), {"Content-Type": "application/json"})
            return
        group, plural, namespace, name = key
        # A server-side apply may create: the real server asks for both verbs.
        apply = verb == "patch" and "apply-patch" in self.headers.get("Content-Type", "")
        needed = ["patch", "create"] if apply and key not in fake.objects else [verb]
        for one in needed:
            if not fake.allowed(one, group, resource):
                who = "system:serviceaccount:modelserve-system:modelserve-flows"
                message = (
                    f'{plural} "{name}" is forbidden: User "{who}" cannot {one} resource "{resource}" '
                    f'in API group "{group}" in the namespace "{namespace}"'
                )
                self.reply_bytes(403, _status(403, message), {"Content-Type": "application/json"})
                return
        if (group, plural) not in fake.installed:
            self.reply_bytes(404, b"404 page not found\n", {"Content-Type": "text/plain"})
            return
        if verb in ("create", "patch", "update", "delete") and fake.before_write is not None:
            hook = fake.before_write
            hook(fake, plural, name or json.loads(self.body)["metadata"]["name"])
        with fake.lock:
            try:
                self._act(verb, key, resource, apply)
            except _Refused as refusal:
                body = _status(refusal.status, refusal.message)
                self.reply_bytes(refusal.status, body, {"Content-Type": "application/json"})

    def _act(self, verb: str, key: Key, resource: str, apply: bool) -> None:
        fake = self.fake
        if verb == "list":
            found = [self._read(thing) for at, thing in fake.objects.items() if at[:3] == key[:3]]
            items = [thing for thing in found if self._selected(thing)]
            self.reply(200, {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
            return
        if verb == "create":
            thing = json.loads(self.body)
            key = (*key[:3], thing["metadata"]["name"])
            if key in fake.objects:
                raise _Refused(409, f'{key[1]} "{key[3]}" already exists')
            self.reply(201, fake._store(key, thing))
            return
        if apply:
            manager = self.query.get("fieldManager")
            if not manager:
                raise _Refused(400, "fieldManager is required for apply patch")
            self.reply(*fake.apply(key, manager, json.loads(self.body)))
            return
        if key not in fake.objects:
            raise _Refused(404, f'{key[1]} "{key[3]}" not found')
        if resource == "pods/log":
            text = fake.logs.get(key[3], "")
            lines = text.splitlines()[-int(self.query.get("tailLines", 1000)) :]
            self.reply_bytes(200, "\n".join(lines).encode(), {"Content-Type": "text/plain"})
        elif verb == "get":
            self.reply(200, self._read(fake.objects[key]))
        elif verb == "patch":
            self.reply(*fake.merge(key, json.loads(self.body)))
        elif verb == "delete":
            fake._delete(key)
            self.reply(200, json.loads(_status(200, "deleted")))
        else:
            raise _Refused(405, f"{verb} is not supported here")

    def _read(self, thing: Thing) -> Thing:
        if thing["kind"] == "Deployment":
            self.fake.settle(thing)
        return copy.deepcopy(thing)

    def _selected(self, thing: Thing) -> bool:
        meta = thing["metadata"]
        for term in filter(None, self.query.get("labelSelector", "").split(",")):
            name, _, value = term.partition("=")
            if meta.get("labels", {}).get(name) != value.lstrip("="):
                return False
        for term in filter(None, self.query.get("fieldSelector", "").split(",")):
            path, _, value = term.partition("=")
            found: Any = thing
            for part in path.split("."):
                found = found.get(part, {})
            if found != value.lstrip("="):
                return False
        return True


@contextmanager
def serve(fake: FakeKubernetes) -> Iterator[FakeKubernetes]:
    """The server on a free port of the loopback interface."""
    handler = type("BoundHandler", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _status(code: int, message: str) -> bytes:
    reason = HTTPStatus(code).phrase.replace(" ", "")
    status = "Success" if code < 400 else "Failure"
    return json.dumps(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": status,
            "message": message,
            "reason": reason,
            "code": code,
        }
    ).encode()


def _bare(thing: Thing) -> Thing:
    bare = copy.deepcopy(thing)
    for name in ("resourceVersion", "generation"):
        bare["metadata"].pop(name, None)
    if bare["kind"] == "Deployment":
        bare.pop("status", None)  # the kubelet's, made anew at each read
    return bare


def _merge_patch(live: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(live) if isinstance(live, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge_patch(merged.get(name), value)
    return merged


def _merge_apply(live: Any, manifest: Any, field_name: str = "") -> Any:
    if isinstance(manifest, dict):
        merged = dict(live) if isinstance(live, dict) else {}
        for name, value in manifest.items():
            merged[name] = _merge_apply(merged.get(name), value, name)
        return merged
    key = LIST_KEYS.get(field_name)
    if isinstance(manifest, list) and key and isinstance(live, list):
        items = {item.get(key): item for item in live}
        for item in manifest:
            items[item.get(key)] = _merge_apply(items.get(item.get(key)), item)
        return list(items.values())
    return copy.deepcopy(manifest)


def _drop(live: Any, former: Any, manifest: Any) -> None:
    """Remove from `live` what this manager applied before and does not apply any more."""
    if not (isinstance(live, dict) and isinstance(former, dict)):
        return
    for name, value in former.items():
        if name not in live:
            continue
        if not isinstance(manifest, dict) or name not in manifest:
            del live[name]
        else:
            _drop(live[name], value, manifest[name])
