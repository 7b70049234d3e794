"""Builds an image: `build_image.py cpu|cuda|flows [FOLDER]`.

`cpu` and `cuda` are what every release stands on for a device; `flows` is the control plane. With FOLDER the
image is copied out of the builder's store as an OCI layout of its own, which is what the scanner takes.
Prints lines for $GITHUB_OUTPUT: `layout=...` and `digest=sha256:...`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal, cast

from flows.settings import Settings
from flows.wiring import flows_image_builder, image_builder

KINDS = ("cpu", "cuda", "flows")


def build(kind: str, folder: Path | None) -> tuple[Path, str]:
    """Return the layout's folder and the image's digest."""

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    if kind == "flows":
        stored, name = flows_image_builder(Settings()).prepare(progress=say), "flows-cpu"
    else:
        device = cast(Literal["cpu", "cuda"], kind)
        stored, name = image_builder(Settings()).prepare(device=device, progress=say), f"runtime-{kind}"
    layout, _, digest = stored.rpartition("@")
    if folder is None:
        return Path(layout), digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"oci:{layout}:{name}", f"oci:{folder}:runtime"],
        check=True,
        stdout=sys.stderr,
    )
    return folder, digest


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in KINDS:
        raise SystemExit("usage: build_image.py cpu|cuda|flows [FOLDER]")
    made, digest = build(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) == 3 else None)
    print(f"layout={made}\ndigest={digest}")
