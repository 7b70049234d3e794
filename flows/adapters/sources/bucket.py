"""`s3://BUCKET/KEY`: an object, or all below a prefix. Access as for the artifact store: the usual
environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from flows.adapters.sources.downloads import Download
from flows.adapters.stores import reached
from flows.domain.errors import ArtifactCorrupt


def from_bucket(uri: str, download: Download) -> Path:
    """The object, or a folder called as the last part of the prefix."""
    with reached("bucket", uri):
        # A new one, since the environment that says where buckets are is no part of what is remembered.
        filesystem, root = fsspec.url_to_fs(
            uri.rstrip("/"), use_listings_cache=False, skip_instance_cache=True
        )
        name = str(root).rsplit("/", 1)[-1]
        if "/" not in root:
            raise ArtifactCorrupt(f"{uri}: names a bucket and nothing in it")
        try:
            if filesystem.isfile(root):
                return download.write(uri, name, _blocks(filesystem, root))
            for path in filesystem.find(root):
                if inside := path[len(root) + 1 :]:
                    download.write(uri, f"{name}/{inside}", _blocks(filesystem, path))
        except FileNotFoundError as error:
            raise ArtifactCorrupt(f"{uri}: nothing is there; check the name") from error
    return download.into / name


def _blocks(filesystem: Any, path: str) -> Iterator[bytes]:
    with filesystem.open(path, "rb") as content:
        while block := content.read(1 << 20):
            yield block
