"""What the story on a cluster is made of: a policy for it, users inside the mesh, and two views from outside.

The views are those that count when a promotion has ended: the mesh's route, and what Prometheus has counted
of the gateway's requests. Imported by the suites, no conftest.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flows.domain.cluster import mesh
from tests.platform.real_kubernetes import Admin

Thing = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
MODEL = "flights"
SOURCE = ROOT / "serving" / "models" / MODEL
MODELS, FLOWS = "modelserve", "modelserve-system"
"""The namespaces of k8s/base: servers, and what acts on them."""
CLIENT = "users"
RATE = 60
"""Requests a second: what a runner's few processors answer without a queue, proxies included."""
ROWS = 4000
"""A minute of users without one row twice; as a file small enough for a ConfigMap."""
CONFIG_MAP_BYTES = 1 << 20
POLICY = {
    "steps": [10, 50, 100],
    "dwell_seconds": 30,
    # Prometheus applies the rules every 15 s here, as on EKS: a shorter window would often see no change.
    "window_seconds": 15,
    "deadline_seconds": 900,
    "max_absolute": 0.02,
    # Everything shares the processors of one machine; only what a person would notice counts as slow.
    "latency_floor_seconds": 0.25,
    "post_watch_seconds": 30,
}
"""What differs from the model's own policy, which is paced for a demo at 150 requests a second."""


def model_folder(folder: Path) -> Path:
    """The model's folder with a policy for this cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = yaml.safe_load((SOURCE / "model.yaml").read_text(encoding="utf-8"))
    spec["promotion"] |= POLICY
    (folder / "model.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    (folder / "handler.py").write_bytes((SOURCE / "handler.py").read_bytes())
    return folder


def some_rows(live: pa.Table, target: Path) -> Path:
    """Rows of the live period, spread over all of it, in their order."""
    every = max(1, live.num_rows // ROWS)
    places = list(range(0, live.num_rows, every))[:ROWS]
    pq.write_table(live.take(places), target, compression="zstd")
    return target


def users(image: str, rows: bytes) -> list[Thing]:
    """Users of the model as a pod inside the mesh: they enter by the gateway, as everybody does."""
    assert len(rows) < CONFIG_MAP_BYTES, f"{len(rows)} bytes of rows do not fit into a ConfigMap"
    named = {"name": CLIENT, "namespace": FLOWS, "labels": {"app.kubernetes.io/name": CLIENT}}
    command = ["python", "-m", "flows.demo.traffic", "--rows", "/rows/rows.parquet", "--model", MODEL]
    command += ["--gateway", "$(MODELSERVE_GATEWAY_URL)", "--rate", str(RATE), "--repeat"]
    command += ["--wait", "7200", "--quiet"]
    container = {
        "name": CLIENT,
        "image": image,
        "command": command,
        "env": [
            {
                "name": "MODELSERVE_GATEWAY_URL",
                "valueFrom": {
                    "configMapKeyRef": {"name": "modelserve-cluster", "key": "MODELSERVE_GATEWAY_URL"}
                },
            }
        ],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "rows", "mountPath": "/rows", "readOnly": True},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
    }
    pod = {
        # The identity that the gateway lets in where its policies are installed (k8s/components/nginx).
        "serviceAccountName": "modelserve-flows",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {"modelserve.ai/pool": "system"},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "rows", "configMap": {"name": CLIENT}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }
    labels = {"app.kubernetes.io/name": CLIENT, "app.kubernetes.io/part-of": "modelserve"}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": named,
            "binaryData": {"rows.parquet": base64.b64encode(rows).decode()},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": named,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app.kubernetes.io/name": CLIENT}},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
    ]


def read_settings(path: Path) -> dict[str, str]:
    """The file that make_cluster.py writes: one NAME=VALUE a line."""
    return dict(line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines())


@dataclass
class World:
    """A cluster that can promote, from outside."""

    admin: Admin
    settings: Mapping[str, str]
    patience_seconds: float = 180
    """How long what must come may take, beyond promotions."""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A program of this checkout, with the settings; what it says is shown when a test fails."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(f"$ {' '.join(words)}\n{done.stdout}\n→ exit code {done.returncode}", flush=True)
        return done

    def modelserve(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from flows.terminal.cli import main; raise SystemExit(main())", *words)

    # -- users

    def deploy_users(self, rows: bytes) -> None:
        """Start them anew; they begin as soon as the model answers at the gateway."""
        receiver = self.admin.call("GET", f"/apis/apps/v1/namespaces/{FLOWS}/deployments/alert-receiver")
        image = receiver["spec"]["template"]["spec"]["containers"][0]["image"]
        for thing, base in zip(users(image, rows), ("/api/v1", "/apis/apps/v1"), strict=True):
            place = f"{base}/namespaces/{FLOWS}/{thing['kind'].lower()}s"
            self._remove(f"{place}/{CLIENT}")
            self.admin.call("POST", place, thing)

    def remove_users(self) -> None:
        self._remove(f"/apis/apps/v1/namespaces/{FLOWS}/deployments/{CLIENT}")
        self._remove(f"/api/v1/namespaces/{FLOWS}/configmaps/{CLIENT}")

    def _remove(self, path: str) -> None:
        self.admin.call("DELETE", path, ok=(404,))
        self.until(lambda: not self.admin.exists(path), f"{path} is gone")

    # -- what is so

    def weights(self) -> dict[str, int]:
        """Who gets which share, as the mesh has it."""
        path = f"/apis/networking.istio.io/v1/namespaces/{MODELS}/virtualservices/{MODEL}"
        routes = mesh.routes_of(MODEL, self.admin.call("GET", path)["spec"]["http"])
        return {release: weight for release, weight in routes.weights.items() if weight > 0}

    def counted(self, version: int, labels: str = "") -> float:
        """Requests of a release so far, by the series that the judge reads."""
        return self.ask(f'sum(traffic:requests:count{{model="{MODEL}",version="{version}"{labels}}})')

    def counted_by_the_mesh(self, version: int) -> float:
        """The same, as Istio's gateway itself says it."""
        selector = f'job="gateway",reporter="source",destination_service_name="{MODEL}-v{version}"'
        return self.ask(f"sum(istio_requests_total{{{selector}}})")

    def ask(self, query: str) -> float:
        """The value of a query with one answer; 0 when there is none."""
        url = f"{self.settings['MODELSERVE_PROMETHEUS_URL']}/api/v1/query"
        answer = httpx.post(url, data={"query": query}, timeout=10).raise_for_status().json()
        found = answer["data"]["result"]
        assert len(found) <= 1, f"{query} has {len(found)} answers"
        return float(found[0]["value"][1]) if found else 0.0

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {self.patience_seconds:g} s: {what}"
            time.sleep(1)

    def only_this_one_is_asked(self, version: int, others: tuple[int, ...]) -> None:
        """The route says so, and from a moment on a hundred more requests reach it and none the others."""
        assert self.weights() == {f"{MODEL}-v{version}": 100}
        # What was under way before is counted with the next scrape, and by the rules an evaluation later.
        self.until(lambda: self._a_hundred_more(version, others), f"everybody is on v{version}")

    def _a_hundred_more(self, version: int, others: tuple[int, ...]) -> bool:
        before = {one: self.counted(one) for one in (version, *others)}
        self.until(
            lambda: self.counted(version) >= before[version] + 100, f"a hundred requests to v{version}"
        )
        return all(self.counted(one) == before[one] for one in others)
