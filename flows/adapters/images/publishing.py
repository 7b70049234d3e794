"""Brings an image to a registry under the very digest that was scanned.

Layers are compressed first, in a layout of their own: a registry's client that compressed them on the way
would change the digest, and then nobody could say that what runs is what was scanned.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path

from flows.adapters.images import layout as oci
from flows.adapters.images.commands import run
from flows.domain.errors import ImageFailed

COPY_TIMEOUT_SECONDS = 900.0
LOOK_TIMEOUT_SECONDS = 60.0


def compress(layout: Path, name: str, target: Path) -> str:
    """Copy one image into the OCI layout `target`, as a registry will hold it; return `target@sha256:…`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run(
        ["skopeo", "copy", "--quiet", "--format", "oci", f"oci:{layout}:{name}", f"oci:{target}:{name}"],
        what=f"compressing {name}",
        timeout=COPY_TIMEOUT_SECONDS,
    )
    return f"{target}@{oci.digest_of(target, name)}"


def push(image: str, name: str, repository: str, credentials: tuple[str, str] | None = None) -> str:
    """Push what `compress` returned; return `repository@sha256:…` with the same digest.

    The tag is `name`; where the registry has that tag with other content and keeps tags immutable, it is
    `name-<digest's first 12 digits>`. `credentials` are user and password. Raises ImageFailed.
    """
    folder, _, digest = image.partition("@")
    with tempfile.TemporaryDirectory(prefix="modelserve-push-") as scratch:
        access = _access(Path(scratch), repository, credentials)
        held = _held(f"{repository}:{name}", access)
        if held == digest:
            return f"{repository}@{digest}"
        tag = name if held is None else f"{name}-{digest.removeprefix('sha256:')[:12]}"
        pushed = Path(scratch) / "digest"
        options = ["--quiet", "--preserve-digests", "--digestfile", str(pushed), *access]
        run(
            ["skopeo", "copy", *options, f"oci:{folder}", f"docker://{repository}:{tag}"],
            what=f"pushing {name} to {repository}",
            timeout=COPY_TIMEOUT_SECONDS,
        )
        arrived = pushed.read_text(encoding="utf-8").strip()
    if arrived != digest:
        raise ImageFailed(f"{repository} has {name} as {arrived}, but {digest} was scanned; do not run it")
    return f"{repository}@{digest}"


def _access(scratch: Path, repository: str, credentials: tuple[str, str] | None) -> list[str]:
    """Credentials go through a file: a command line can be read by everybody on the machine."""
    if credentials is None:
        return []
    token = base64.b64encode(":".join(credentials).encode()).decode()
    file = scratch / "auth.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"auths": {repository.partition("/")[0]: {"auth": token}}}))
    return ["--authfile", str(file)]


def _held(reference: str, access: list[str]) -> str | None:
    """The digest under a tag; None when the registry has no such tag. The push says what else is wrong."""
    try:
        return run(
            ["skopeo", "inspect", "--no-tags", *access, "--format", "{{.Digest}}", f"docker://{reference}"],
            what=f"looking up {reference}",
            timeout=LOOK_TIMEOUT_SECONDS,
        )
    except ImageFailed:
        return None
