"""A real API server for the tests marked `cluster`: the one that KUBECONFIG names, or one started here.

With KUBEBUILDER_ASSETS (a folder with `etcd` and `kube-apiserver`) there are no controllers and no nodes;
`Kubelet` then plays their part. With KUBECONFIG the cluster's own do, and its nodes run real pods: of the
release that MODELSERVE_TEST_RELEASE names, or of one that is built and loaded here (see `runnable_release`).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from flows.domain.release import Release
from tests.manifests.validate import built
from tests.platform.kubernetes_world import kubeconfig

Thing = dict[str, Any]
CRDS = {
    ("networking.istio.io", "v1", "VirtualService", "virtualservices"),
    ("networking.istio.io", "v1", "DestinationRule", "destinationrules"),
    ("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects"),
    ("http.keda.sh", "v1beta1", "InterceptorRoute", "interceptorroutes"),
}
"""Made for the tests where they are missing, without a schema: kinds only."""


@dataclass
class Admin:
    """Raw calls with an administrator's credentials, for what the adapter itself must not be able to do."""

    http: httpx2.Client
    kubeconfig: Path

    def call(
        self, method: str, path: str, body: Any = None, *, patch: str = "merge", ok: tuple[int, ...] = ()
    ) -> Thing:
        headers = {
            "Content-Type": f"application/{patch}-patch+json" if method == "PATCH" else "application/json"
        }
        content = None if body is None else json.dumps(body).encode()
        answer = self.http.request(method, path, content=content, headers=headers)
        if answer.is_error and answer.status_code not in ok:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        return dict(answer.json()) if answer.content else {}

    def context(self) -> str:
        """The name of the context in use: `kind-…`, `minikube`."""
        return str(yaml.safe_load(self.kubeconfig.read_text()).get("current-context", ""))

    def exists(self, path: str) -> bool:
        return self.http.get(path).status_code == 200

    def nodes(self) -> list[Thing]:
        """Nodes that can take pods, tainted ones left out."""
        return [
            node
            for node in self.call("GET", "/api/v1/nodes")["items"]
            if not node["spec"].get("unschedulable")
            and not any(taint["effect"] != "PreferNoSchedule" for taint in node["spec"].get("taints", []))
            and any(
                c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", [])
            )
        ]


@dataclass
class Sandbox:
    """A namespace of its own, with the flows' identity as it ships and nothing else."""

    admin: Admin
    namespace: str
    kubeconfig: Path
    """Credentials of the service account `modelserve-flows`, which has the Role that ships."""
    has_nodes: bool

    def path(self, group: str, plural: str, name: str = "") -> str:
        base = f"/apis/{group}" if group else "/api/v1"
        return f"{base}/namespaces/{self.namespace}/{plural}/{name}".rstrip("/")


def real_release() -> Release | None:
    """The release that nodes can run: a JSON file with model, version, sha256 and image.

    `python -m tests.platform.make_release` writes one; MODELSERVE_TEST_RELEASE names it. The image must be on
    the nodes or in a registry that they can pull from.
    """
    path = os.environ.get("MODELSERVE_TEST_RELEASE")
    return read_release(Path(path)) if path else None


def read_release(path: Path) -> Release:
    content = json.loads(path.read_text())
    return Release(
        model=content["model"],
        version=int(content["version"]),
        bundle=content.get("bundle", "image:/bundle"),
        sha256=content["sha256"],
        image=content["image"],
    )


def runnable_release(admin: Admin, folder: Path) -> Release | None:
    """What nodes can run: the named release, else one built here, where its image can be put onto the nodes.

    None where nobody knows how to do that (`loading_command`).
    """
    named = real_release()
    if named is not None:
        return named
    command = loading_command(admin.context(), admin.nodes(), socket.gethostname(), shutil.which)
    if command is None:
        return None
    from flows.settings import Settings
    from flows.wiring import image_builder
    from tests.platform.make_release import make

    path = make(image_builder(Settings()), folder)
    subprocess.run([*command, str(folder / "image.tar")], check=True)
    return read_release(path)


def loading_command(
    context: str, nodes: list[Thing], here: str, which: Callable[[str], str | None]
) -> list[str] | None:
    """What puts an image archive onto every node, for the clusters that run on the machine of the tests."""
    kind, _, name = context.partition("-")
    if kind == "kind" and which("kind"):
        return ["kind", "load", "image-archive", "--name", name]
    if kind == "k3d" and which("k3d"):
        return ["k3d", "image", "import", "--cluster", name]
    if kind == "minikube" and which("minikube"):
        return ["minikube", "image", "load"]
    if [node["metadata"]["name"] for node in nodes] != [here]:
        return None
    runtime = nodes[0]["status"]["nodeInfo"]["containerRuntimeVersion"].partition("://")[0]
    if runtime == "containerd" and which("k3s"):
        return ["k3s", "ctr", "--namespace", "k8s.io", "images", "import"]
    if runtime == "containerd" and which("ctr"):
        return ["ctr", "--namespace", "k8s.io", "images", "import"]
    if runtime == "cri-o" and which("podman"):
        return ["podman", "load", "--quiet", "--input"]
    return None


@contextmanager
def admin() -> Iterator[Admin]:
    """Skips, and says what to set, when there is no API server to be had."""
    if os.environ.get("KUBECONFIG"):
        path = Path(os.environ["KUBECONFIG"])
        with _client(path) as http:
            yield Admin(http, path)
    elif os.environ.get("KUBEBUILDER_ASSETS"):
        with _api_server(Path(os.environ["KUBEBUILDER_ASSETS"])) as path, _client(path) as http:
            yield Admin(http, path)
    else:
        pytest.skip(
            "no Kubernetes API: set KUBECONFIG, or KUBEBUILDER_ASSETS (folder with etcd and kube-apiserver)"
        )


@contextmanager
def sandbox(admin: Admin) -> Iterator[Sandbox]:
    """Made for one test session and removed afterwards."""
    namespace = f"modelserve-test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = [_ensure_crd(admin, *crd) for crd in sorted(CRDS)]
    admin.call("POST", "/api/v1/namespaces", _named("v1", "Namespace", namespace, labels=labels))
    with tempfile.TemporaryDirectory() as folder:
        try:
            for account in ("modelserve-flows", "modelserve-server"):
                admin.call(
                    "POST",
                    f"/api/v1/namespaces/{namespace}/serviceaccounts",
                    _named("v1", "ServiceAccount", account),
                )
            _grant(admin, namespace)
            token = admin.call(
                "POST",
                f"/api/v1/namespaces/{namespace}/serviceaccounts/modelserve-flows/token",
                {
                    "apiVersion": "authentication.k8s.io/v1",
                    "kind": "TokenRequest",
                    "spec": {"expirationSeconds": 7200},
                },
            )["status"]["token"]
            path = Path(folder) / "kubeconfig"
            _flows_kubeconfig(admin.kubeconfig, path, token)
            with _pool_label(admin):
                yield Sandbox(admin, namespace, path, has_nodes=bool(admin.nodes()))
        finally:
            admin.call("DELETE", f"/api/v1/namespaces/{namespace}", ok=(404, 409))
            for crd in filter(None, made):
                admin.call(
                    "DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}", ok=(404,)
                )


@dataclass
class Kubelet:
    """Controllers and kubelet where there are none: makes Deployments available, or their pods fail."""

    sandbox: Sandbox
    broken: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(0.1):
            for deployment in self.sandbox.admin.call("GET", self.sandbox.path("apps/v1", "deployments"))[
                "items"
            ]:
                name = deployment["metadata"]["name"]
                if name in self.broken:
                    self._fail(name)
                else:
                    self._serve(deployment)

    def stop(self) -> None:
        self._stop.set()

    def _serve(self, deployment: Thing) -> None:
        count = deployment["spec"]["replicas"]
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": count,
            "updatedReplicas": count,
            "readyReplicas": count,
            "availableReplicas": count,
        }
        if {key: deployment.get("status", {}).get(key) for key in status} != status:
            path = self.sandbox.path("apps/v1", "deployments", deployment["metadata"]["name"]) + "/status"
            self.sandbox.admin.call("PATCH", path, {"status": status}, ok=(404, 409))

    def _fail(self, name: str) -> None:
        path = self.sandbox.path("", "pods", f"{name}-pod")
        if self.sandbox.admin.exists(path):
            return
        pod = _named("v1", "Pod", f"{name}-pod", labels={"modelserve.ai/release": name})
        pod["spec"] = _restricted_pod()
        # 403: the service account `default` is not there yet; 404: the namespace is on its way out.
        self.sandbox.admin.call("POST", self.sandbox.path("", "pods"), pod, ok=(403, 404, 409))
        waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
        container = {
            "name": "server",
            "image": "none",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"waiting": waiting},
        }
        status = {"phase": "Pending", "containerStatuses": [container]}
        self.sandbox.admin.call("PATCH", path + "/status", {"status": status}, ok=(404, 409))

    def mend(self, name: str) -> None:
        """From now on this release's servers become ready; nothing of an earlier failure is left."""
        self.broken.discard(name)
        if not self.sandbox.has_nodes:
            path = self.sandbox.path("", "pods", f"{name}-pod")
            self.sandbox.admin.call("DELETE", f"{path}?gracePeriodSeconds=0", ok=(404,))


@contextmanager
def kubelet(sandbox: Sandbox) -> Iterator[Kubelet]:
    """Runs only where the cluster has no nodes of its own."""
    played = Kubelet(sandbox)
    if sandbox.has_nodes:
        yield played
        return
    thread = threading.Thread(target=played.run, daemon=True)
    thread.start()
    try:
        yield played
    finally:
        played.stop()
        thread.join()


def _restricted_pod() -> Thing:
    return {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "server",
                "image": "none",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }


def _named(version: str, kind: str, name: str, **meta: Any) -> Thing:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **meta}}


def _ensure_crd(admin: Admin, group: str, version: str, kind: str, plural: str) -> str | None:
    """The CRD's name when it was made here, None when the cluster has the real one."""
    name = f"{plural}.{group}"
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    if admin.exists(f"{path}/{name}"):
        return None
    crd = _named("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    crd["spec"] = {
        "group": group,
        "scope": "Namespaced",
        "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
        "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
    }
    admin.call("POST", path, crd)
    deadline = time.monotonic() + 30
    while not admin.exists(f"/apis/{group}/{version}/{plural}"):
        assert time.monotonic() < deadline, f"{name} is never served"
        time.sleep(0.2)
    return name


def _grant(admin: Admin, namespace: str) -> None:
    """The Role that ships, in this namespace."""
    (role,) = [
        thing
        for thing in built("production")
        if thing["kind"] == "Role" and thing["metadata"]["name"] == "modelserve-releases"
    ]
    role["metadata"]["namespace"] = namespace
    base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    admin.call("POST", f"{base}/roles", role)
    binding = _named("rbac.authorization.k8s.io/v1", "RoleBinding", "modelserve-releases")
    binding["roleRef"] = {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": "modelserve-releases",
    }
    binding["subjects"] = [{"kind": "ServiceAccount", "name": "modelserve-flows", "namespace": namespace}]
    admin.call("POST", f"{base}/rolebindings", binding)


def _flows_kubeconfig(of_admin: Path, path: Path, token: str) -> None:
    """The same cluster, but only the token: no client certificate of the administrator."""
    content = yaml.safe_load(of_admin.read_text())
    context = next(c["context"] for c in content["contexts"] if c["name"] == content["current-context"])
    cluster = next(c["cluster"] for c in content["clusters"] if c["name"] == context["cluster"])
    if authority := cluster.get("certificate-authority"):
        cluster["certificate-authority"] = str(of_admin.absolute().parent / authority)
    kubeconfig(path, cluster["server"], {"token": token})
    written = yaml.safe_load(path.read_text())
    written["clusters"][0]["cluster"] = cluster
    path.write_text(yaml.safe_dump(written))


@contextmanager
def _pool_label(admin: Admin) -> Iterator[None]:
    """A cluster whose nodes belong to no pool lends one of them for the session."""
    nodes, label = admin.nodes(), "modelserve.ai/pool"
    pools = [node["metadata"]["labels"].get(label) for node in nodes]
    if not nodes or "cpu" in pools:
        yield
        return
    lent = pools.index(None) if None in pools else 0
    path = f"/api/v1/nodes/{nodes[lent]['metadata']['name']}"
    admin.call("PATCH", path, {"metadata": {"labels": {label: "cpu"}}})
    try:
        yield
    finally:
        admin.call("PATCH", path, {"metadata": {"labels": {label: pools[lent]}}})


@contextmanager
def _client(path: Path) -> Iterator[httpx2.Client]:
    """An HTTP client with the administrator's credentials from a kubeconfig, as lightkube reads them."""
    from lightkube import KubeConfig
    from lightkube.config import client_adapter

    single = KubeConfig.from_file(path).get()
    assert single is not None
    parameters = client_adapter.ConnectionParams(timeout=httpx2.Timeout(30), trust_env=False)
    with client_adapter.Client(single, parameters) as http:
        yield http


@contextmanager
def _api_server(assets: Path) -> Iterator[Path]:
    """etcd and kube-apiserver from the folder, on free ports of the loopback interface."""
    folder = Path(tempfile.mkdtemp(prefix="modelserve-kube-"))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "service-accounts.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    token = base64.urlsafe_b64encode(os.urandom(18)).decode()
    (folder / "tokens.csv").write_text(f"{token},admin,1,system:masters\n")
    etcd, peer, secure = (_free_port() for _ in range(3))
    commands = [
        [
            str(assets / "etcd"),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        ],
        [
            str(assets / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--cert-dir={folder / 'certificates'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={secure}",
            # Found by itself only on a machine with a default route.
            "--advertise-address=127.0.0.1",
            "--authorization-mode=RBAC",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--service-account-issuer=https://localhost",
            f"--service-account-key-file={folder / 'service-accounts.key'}",
            f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
        ],
    ]
    running = []
    try:
        for command in commands:
            with (folder / f"{Path(command[0]).name}.log").open("w") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        path = kubeconfig(folder / "kubeconfig", f"https://127.0.0.1:{secure}", {"token": token})
        content = yaml.safe_load(path.read_text())
        content["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
        path.write_text(yaml.safe_dump(content))
        _wait_until_ready(path, running, folder)
        yield path
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(path: Path, running: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + 90
    with _client(path) as http:
        while time.monotonic() < deadline:
            for process in running:
                if process.poll() is not None:
                    log = (folder / f"{Path(str(process.args[0])).name}.log").read_text()[-2000:]  # type: ignore[index]
                    raise AssertionError(f"{process.args} ended with {process.returncode}:\n{log}")
            try:
                if http.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.3)
    raise AssertionError("kube-apiserver was not ready within 90 s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
