"""Trained files that lie elsewhere, downloaded once, into a bundle that is sealed and never asks again.

`s3://BUCKET/PREFIX`, `https://…` with a digest, `models:/NAME/VERSION` and `runs:/RUN/PATH` of an MLflow
tracking
server, `hf://ORG/REPOSITORY@COMMIT`. Belongs here: one kind of source a module, read-only. May not: know
what a model is. The way in is `fetch`.
"""

from __future__ import annotations

from pathlib import Path

from flows.adapters.sources.downloads import Download
from flows.domain.errors import ArtifactCorrupt

SCHEMES = ("s3://", "https://", "http://", "models:/", "runs:/", "hf://")


def is_source(text: str) -> bool:
    """Whether an artifact is named by an address and not by a path."""
    return text.startswith(SCHEMES)


def fetch(uri: str, into: Path, *, digest: str | None, limit: int) -> tuple[Path, str]:
    """Download `uri` into the empty folder `into`; the file or folder in it, and a sentence for a person.

    `digest` is `sha256:` and 64 hexadecimal digits, of a file; `limit` in bytes. Raises ArtifactCorrupt (it
    is not
    what was meant, or too large) and DependencyDown (it cannot be had) in one line.
    """
    download = Download(into, limit, _sha256(digest))
    if uri.startswith("hf://"):
        from flows.adapters.sources.hub import from_hub

        found = from_hub(uri, download)
    elif uri.startswith(("models:/", "runs:/")):
        from flows.adapters.sources.tracking import from_tracking_server

        found = from_tracking_server(uri, download)
    elif uri.startswith("s3://"):
        from flows.adapters.sources.bucket import from_bucket

        found = from_bucket(uri, download)
    else:
        from flows.adapters.sources.web import from_web

        found = from_web(uri, download)
    return found, download.finished(uri)


def _sha256(digest: str | None) -> str | None:
    if digest is None:
        return None
    name, _, value = digest.partition(":")
    if name != "sha256" or len(value) != 64 or set(value.lower()) - set("0123456789abcdef"):
        raise ArtifactCorrupt(
            f"--digest {digest}: expected sha256: and 64 hexadecimal digits ('sha256sum FILE')"
        )
    return value.lower()
