"""The OCI layout folder that holds every built image, as the scanner reads it.

All images share one folder, and so share the blobs of their lower layers: an image costs its own model
layer and nothing else. Skopeo only adds to such a folder; taking an image out again is done here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "org.opencontainers.image.ref.name"


def digest_of(layout: Path, name: str) -> str | None:
    """The manifest digest (`sha256:…`) of the image called `name`, None when there is none."""
    for manifest in _index(layout)["manifests"]:
        if _name(manifest) == name:
            return str(manifest["digest"])
    return None


def layer_bytes(layout: Path, digest: str) -> list[int]:
    """The sizes of an image's layers in bytes, lowest layer first."""
    manifest = json.loads(_blob(layout, digest).read_text(encoding="utf-8"))
    return [int(layer["size"]) for layer in manifest["layers"]]


def sweep(layout: Path, forget: str | None = None) -> None:
    """Remove what no named image uses: its own if it is to `forget`, replaced ones, interrupted copies.

    Skopeo takes the name from an image that it replaces, and leaves its entry and its blobs behind.
    """
    index = _index(layout)
    kept = [entry for entry in index["manifests"] if _name(entry) not in (None, forget)]
    if len(kept) < len(index["manifests"]):
        partial = layout / "index.json.partial"
        partial.write_text(json.dumps({**index, "manifests": kept}), encoding="utf-8")
        partial.replace(layout / "index.json")
    used = set()
    for entry in kept:
        manifest = json.loads(_blob(layout, entry["digest"]).read_text(encoding="utf-8"))
        used.update([entry["digest"], manifest["config"]["digest"]])
        used.update(layer["digest"] for layer in manifest["layers"])
    for blob in layout.glob("blobs/sha256/*"):
        if f"sha256:{blob.name}" not in used:
            blob.unlink()
    for leftover in layout.glob("oci-put-blob*"):
        leftover.unlink()


def _name(entry: dict[str, Any]) -> str | None:
    found: str | None = entry.get("annotations", {}).get(NAME)
    return found


def _index(layout: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((layout / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"manifests": []}
    return content


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
