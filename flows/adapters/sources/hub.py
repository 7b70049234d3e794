"""`hf://ORG/REPOSITORY@COMMIT`, from `HF_ENDPOINT`; every file is proved by the digest that the commit
lists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from flows.adapters.sources.downloads import TIMEOUT, Download, answered, stream
from flows.domain.errors import ArtifactCorrupt, DependencyDown

ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
OTHERS = (".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite", ".mlmodel")
"""The same weights for other programs."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def from_hub(uri: str, download: Download) -> Path:
    """The repository's files in a folder of its name, without weights for other programs."""
    found = ADDRESS.fullmatch(uri)
    if found is None:
        raise ArtifactCorrupt(f"{uri}: expected hf://ORG/REPOSITORY@COMMIT")
    repository, revision = found["repository"], found["revision"]
    if revision is None or not COMMIT.fullmatch(revision):
        raise ArtifactCorrupt(
            f"{uri}: the revision must be a commit of 40 hexadecimal digits, since branches and tags move"
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    name = repository.rsplit("/", 1)[1]
    with (
        answered(uri, "the model hub"),
        httpx.Client(follow_redirects=True, timeout=TIMEOUT, headers=headers) as client,
    ):
        files = list(
            _listed(client, uri, f"{endpoint}/api/models/{repository}/tree/{revision}?recursive=true")
        )
        for path, expected in _wanted(files):
            url = f"{endpoint}/{repository}/resolve/{revision}/{quote(path)}"
            download.write(uri, f"{name}/{path}", stream(client, url), expected)
    return download.into / name


def _listed(client: httpx.Client, uri: str, url: str) -> Iterator[tuple[str, str]]:
    """Paths and digests, page by page."""
    while url:
        answer = client.get(url)
        answer.raise_for_status()
        try:
            entries: list[dict[str, Any]] = answer.json()
            for entry in entries:
                if entry["type"] == "file":
                    large = entry.get("lfs")
                    yield str(entry["path"]), str(large["oid"]) if large else f"git:{entry['oid']}"
        except (ValueError, KeyError, TypeError) as error:
            raise DependencyDown(f"{uri}: the model hub lists its files in no form that is known") from error
        following = answer.links.get("next", {}).get("url")
        page = answer.url.join(following) if following else None
        if page is not None and page.host != answer.url.host:
            raise DependencyDown(f"{uri}: the model hub sends its access token elsewhere, to {page.host}")
        url = "" if page is None else str(page)


def _wanted(files: list[tuple[str, str]]) -> list[tuple[str, str]]:
    safe = any(path.endswith(".safetensors") for path, _ in files)
    unwanted = (*OTHERS, *PICKLES) if safe else OTHERS
    return [
        (path, digest)
        for path, digest in files
        if not path.endswith(unwanted) and not PurePosixPath(path).name.startswith(".git")
    ]
