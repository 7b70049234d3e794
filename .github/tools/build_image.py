"""Builds the image that every release stands on, for one device: `build_image.py cpu|cuda FOLDER`.

Copies it out of the builder's store as an OCI layout of its own, which is what the scanner takes. Prints
lines for $GITHUB_OUTPUT: `layout=...` and `digest=sha256:...`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal, cast

from flows.settings import Settings
from flows.wiring import image_builder


def build(device: Literal["cpu", "cuda"], folder: Path) -> tuple[Path, str]:
    """Return the layout's folder and the image's digest."""
    stored = image_builder(Settings()).prepare(
        device=device, progress=lambda line: print(line, file=sys.stderr)
    )
    layout, _, digest = stored.rpartition("@")
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"oci:{layout}:runtime-{device}", f"oci:{folder}:runtime"],
        check=True,
        stdout=sys.stderr,
    )
    return folder, digest


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("cpu", "cuda"):
        raise SystemExit("usage: build_image.py cpu|cuda FOLDER")
    made, digest = build(cast(Literal["cpu", "cuda"], sys.argv[1]), Path(sys.argv[2]))
    print(f"layout={made}\ndigest={digest}")
