"""`https://…`, whose owner may change it any day: never without a digest."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from flows.adapters.sources.downloads import TIMEOUT, Download, answered, stream
from flows.domain.errors import ArtifactCorrupt


def from_web(uri: str, download: Download) -> Path:
    """One file, under the last part of its address."""
    if uri.startswith("http://"):
        raise ArtifactCorrupt(f"{uri}: is not encrypted; give an https:// address")
    if download.sha256 is None:
        raise ArtifactCorrupt(
            f"{uri}: needs --digest sha256:…, since an address may give another file any day"
        )
    name = PurePosixPath(unquote(urlsplit(uri).path)).name
    if not name:
        raise ArtifactCorrupt(f"{uri}: names no file")
    with answered(uri, "the server"), httpx.Client(follow_redirects=True, timeout=TIMEOUT) as client:
        return download.write(uri, name, stream(client, uri))
