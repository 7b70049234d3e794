"""Checks every manifest that ships against its schema: `python -m tests.manifests.validate`.

Built-in kinds against Kubernetes' own strict schemas; Istio, KEDA and Prometheus Operator objects against
the models generated from their CRDs, unknown fields included; the two kinds that no package describes
against the fields that we use of them.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from pydantic import BaseModel, ValidationError

from tests.manifests.variants import rendered

KUBERNETES_VERSION = "1.34"
"""Of the EKS clusters in infra/cluster."""
ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("staging", "production")
TRIAL = "kind"
"""The overlay of the end-to-end workflow's throw-away cluster: fewer components, secrets of its own."""
MODELS = {
    "networking.istio.io/v1": "cloudcoil.models.istio.networking.v1",
    "telemetry.istio.io/v1": "cloudcoil.models.istio.telemetry.v1",
    "security.istio.io/v1": "cloudcoil.models.istio.security.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
NEWER_THAN_THE_MODELS = {
    ("ScaledObject", "spec.fallback.behavior"),  # KEDA 2.17
    ("VirtualService", "spec.http[].retries.backoff"),  # in the CRDs of the Istio that we install
    ("PodMonitor", "spec.podMetricsEndpoints[].portNumber"),  # operator 0.81
}
"""Fields that exist in the versions we install and not yet in the packaged models."""


DURATIONS = {
    "timeout",
    "perTryTimeout",
    "connectTimeout",
    "idleTimeout",
    "interval",
    "baseEjectionTime",
}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
SECONDS = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
METADATA = {"type": "object", "required": ["name"]}
HAND_WRITTEN = {
    ("external-secrets.io/v1", "ExternalSecret"): _object(
        ["refreshInterval", "secretStoreRef", "target", "data"],
        refreshInterval=SECONDS,
        secretStoreRef=_object(
            ["kind", "name"], kind={"enum": ["ClusterSecretStore", "SecretStore"]}, name=TEXT
        ),
        target=_object(["name"], name=TEXT, creationPolicy={"enum": ["Owner", "Orphan", "Merge", "None"]}),
        data={
            "type": "array",
            "items": _object(
                ["secretKey", "remoteRef"],
                secretKey=TEXT,
                remoteRef=_object(["key"], key=TEXT, property=TEXT, version=TEXT),
            ),
        },
    ),
    ("http.keda.sh/v1beta1", "InterceptorRoute"): _object(
        ["target", "scalingMetric"],
        target=_object(["service"], service=TEXT, port=COUNT),
        rules={"type": "array", "items": _object([], hosts={"type": "array", "items": TEXT})},
        scalingMetric=_object([], concurrency=_object(["targetValue"], targetValue=COUNT)),
        timeouts=_object([], readiness=SECONDS, request=SECONDS, responseHeader=SECONDS),
    ),
}
"""Kind → schema of its spec."""


def problems_of(thing: dict[str, Any]) -> list[str]:
    """What is wrong with one manifest, a line each; empty when it is valid."""
    version, kind = thing.get("apiVersion", ""), thing.get("kind", "")
    if (version, kind) in HAND_WRITTEN:
        schema = _object(
            ["apiVersion", "kind", "metadata", "spec"],
            apiVersion={"const": version},
            kind={"const": kind},
            metadata=METADATA,
            spec=HAND_WRITTEN[version, kind],
        )
        errors = jsonschema.Draft202012Validator(schema).iter_errors(thing)
        return [f"{error.json_path}: {error.message}" for error in errors]
    if version in MODELS:
        return [*_problems_by_model(thing, MODELS[version], kind), *_broken_rules(thing)]
    try:
        kubernetes_validate.validate(thing, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [f"no schema: {error.message}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(str(part) for part in error.path)}: {error.message}"]
    return []


def _problems_by_model(thing: dict[str, Any], module: str, kind: str) -> list[str]:
    model: type[BaseModel] | None = getattr(importlib.import_module(module), kind, None)
    if model is None:
        return [f"no schema for {thing['apiVersion']} {kind}"]
    try:
        parsed = model.model_validate(thing)
    except ValidationError as error:
        return [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
    known = json.loads(parsed.model_dump_json(by_alias=True, exclude_unset=True))
    return [
        f"{path}: unknown field"
        for path in _lost(thing, known)
        if (kind, path) not in NEWER_THAN_THE_MODELS and not path.startswith("metadata.")
    ]


def _broken_rules(thing: dict[str, Any], path: str = "") -> Iterator[str]:
    """The CRDs' own rules (CEL) that generated models leave out, as far as our fields meet them."""
    least, most = thing.get("minReplicaCount"), thing.get("maxReplicaCount")
    if least is not None and most is not None and least > most:
        yield f"{path}.minReplicaCount: {least} is more than maxReplicaCount {most}"
    for name, value in thing.items():
        inner = f"{path}.{name}".lstrip(".")
        if name in DURATIONS and not re.fullmatch(r"0*[1-9]\d*(ms|s|m|h)", str(value)):
            yield f"{inner}: {value!r} must be a duration of at least 1ms"
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _broken_rules(item, inner)


def _lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """The fields that a model has silently dropped."""
    if isinstance(given, dict):
        for name, value in given.items():
            inner = f"{path}.{name}" if path else name
            if not isinstance(kept, dict) or name not in kept:
                yield inner
            else:
                yield from _lost(value, kept[name], inner)
    elif isinstance(given, list) and isinstance(kept, list):
        for item, other in zip(given, kept, strict=True):
            yield from _lost(item, other, f"{path}[]")


def built(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k k8s/overlays/<overlay>` would send."""
    return _kustomized(ROOT / "k8s" / "overlays" / overlay)


def base() -> list[dict[str, Any]]:
    """What every overlay stands on, without any component."""
    return _kustomized(ROOT / "k8s" / "base")


def _kustomized(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        raise SystemExit("kubectl (1.27 or newer, for its kustomize) is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"'kubectl kustomize {folder.name}' failed: {done.stderr.strip()}")
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


OPTIONAL = ("tracing",)
"""Components that no overlay names; an environment may."""


def managed() -> list[dict[str, Any]]:
    """The services beside the overlay `kind`. Their ports are the nodes' own: no server takes them twice."""
    return _kustomized(ROOT / "k8s" / "overlays" / TRIAL / "managed")


def with_component(name: str) -> list[dict[str, Any]]:
    """The production overlay with one more component."""
    with tempfile.TemporaryDirectory(dir=ROOT / "k8s") as folder:
        text = f"resources: [../overlays/production]\ncomponents: [../components/{name}]\n"
        (Path(folder) / "kustomization.yaml").write_text(text)
        return _kustomized(Path(folder))


def everything() -> dict[str, list[dict[str, Any]]]:
    """Where a manifest comes from → the manifests."""
    found = {f"overlay {name}": built(name) for name in (*OVERLAYS, TRIAL)}
    found |= {f"component {name}": with_component(name) for name in OPTIONAL}
    return found | rendered()


def main() -> int:
    count = 0
    wrong = []
    for source, things in (everything() | {f"beside overlay {TRIAL}": managed()}).items():
        for thing in things:
            count += 1
            name = f"{source}: {thing.get('kind')} {thing.get('metadata', {}).get('name')}"
            wrong += [f"{name}: {problem}" for problem in problems_of(thing)]
    for line in wrong:
        print(line, file=sys.stderr)
    against = f"Kubernetes {KUBERNETES_VERSION} and the CRDs"
    print(f"{count} manifests checked against {against}: {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
