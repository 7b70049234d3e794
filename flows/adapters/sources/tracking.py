"""`models:/NAME/VERSION` and `runs:/RUN/PATH`, from the MLflow tracking server that MLFLOW_TRACKING_URI
names.

Over its REST interface: MLflow's own client has packages that the server's own do not go together with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from flows.adapters.sources.bucket import from_bucket
from flows.adapters.sources.downloads import TIMEOUT, Download, answered, stream
from flows.domain.errors import ArtifactCorrupt, DependencyDown

WHAT = "the MLflow server"
API = "/api/2.0/mlflow"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"


def from_tracking_server(uri: str, download: Download) -> Path:
    """The folder of a model, or what a run has logged."""
    server = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise ArtifactCorrupt(
            f"{uri}: set MLFLOW_TRACKING_URI to the address of the MLflow server, such as http://mlflow:5000"
        )
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{one}") for one in ("USERNAME", "PASSWORD"))
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    with (
        answered(uri, WHAT),
        httpx.Client(
            base_url=server,
            timeout=TIMEOUT,
            follow_redirects=True,
            auth=(user, password or "") if user else None,
            headers={"authorization": f"Bearer {token}"} if token else {},
        ) as client,
    ):
        tracking = _Tracking(client, uri, download)
        kind, _, rest = uri.partition(":/")
        return tracking.model(rest) if kind == "models" else tracking.run(rest)


class _Tracking:
    def __init__(self, client: httpx.Client, uri: str, download: Download) -> None:
        self._client = client
        self._uri = uri
        self._download = download

    def model(self, rest: str) -> Path:
        name, _, version = rest.strip("/").rpartition("/")
        if not name or not version.isdigit():
            raise ArtifactCorrupt(
                f"{self._uri}: expected models:/NAME/VERSION with a number, since stages and aliases move"
            )
        place = self._get("model-versions/get-download-uri", name=name, version=version)["artifact_uri"]
        return self._folder(str(place), name)

    def run(self, rest: str) -> Path:
        run, _, path = rest.strip("/").partition("/")
        if not run or not path:
            raise ArtifactCorrupt(
                f"{self._uri}: expected runs:/RUN/PATH, with the path of what the run has logged"
            )
        info = self._get("runs/get", run_id=run)["run"]["info"]
        found = self._folder(f"{info['artifact_uri']}/{path}", path.rsplit("/", 1)[-1])
        if self._download.files:
            return found
        # Since MLflow 3 a model lies beside the run that has logged it.
        wanted = {
            "experiment_ids": [info["experiment_id"]],
            "filter": f"name = '{path}' AND source_run_id = '{run}'",
        }
        answer = self._client.post(f"{API}/logged-models/search", json=wanted)
        answer.raise_for_status()
        models = answer.json().get("models", [])
        return self._folder(str(models[-1]["info"]["artifact_uri"]), path) if models else found

    def _folder(self, place: str, name: str) -> Path:
        """Download what lies at MLflow's own address of it."""
        name = name.replace("/", "-")
        scheme, _, rest = place.partition(":")
        if scheme == "models":  # a logged model: m-…
            info = self._get(f"logged-models/{rest.strip('/')}")["model"]["info"]
            return self._folder(str(info["artifact_uri"]), name)
        if scheme == "mlflow-artifacts":
            root = unquote(urlsplit(place).path).strip("/")
            self._proxied(root, name)
            return self._download.into / name
        if scheme == "s3":
            return from_bucket(place, self._download)
        raise DependencyDown(
            f"{self._uri}: {WHAT} keeps it in {place}, which only its own machine reads; start it with "
            "--serve-artifacts"
        )

    def _proxied(self, root: str, name: str) -> None:
        for path in self._listed(root):
            url = f"{PROXY}/{quote(f'{root}/{path}')}"
            self._download.write(self._uri, f"{name}/{path}", stream(self._client, url))

    def _listed(self, root: str, below: str = "") -> Iterator[str]:
        answer = self._client.get(PROXY, params={"path": f"{root}/{below}".rstrip("/")})
        answer.raise_for_status()
        for entry in answer.json().get("files", []):
            path = f"{below}/{entry['path'].rsplit('/', 1)[-1]}".lstrip("/")
            if entry.get("is_dir"):
                yield from self._listed(root, path)
            else:
                yield path

    def _get(self, verb: str, **parameters: str) -> dict[str, Any]:
        answer = self._client.get(f"{API}/{verb}", params=parameters)
        answer.raise_for_status()
        try:
            content: dict[str, Any] = answer.json()
        except ValueError as error:
            raise DependencyDown(
                f"{self._uri}: what answers at MLFLOW_TRACKING_URI is no MLflow server"
            ) from error
        return content
