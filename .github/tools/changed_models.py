"""Which models a push wants released: `python .github/tools/changed_models.py BEFORE AFTER`.

A model is released by changing `serving/models/<name>/release.yaml`, which names the version and where its
artifact comes from. Prints one line for $GITHUB_OUTPUT: `models=[{"model": "flights", "version": 3}, ...]`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

NOTHING = "0" * 40
"""What GitHub gives as the commit before a branch's first push."""


def changed_files(repository: Path, before: str, after: str) -> list[str]:
    """Paths that differ between two commits; every release file when there is no commit before."""
    if before == NOTHING:
        command = ["git", "ls-tree", "-r", "--name-only", after, "--", "serving/models"]
    else:
        command = ["git", "diff", "--name-only", "--diff-filter=AMR", before, after, "--", "serving/models"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def models_to_release(repository: Path, before: str, after: str) -> list[dict[str, object]]:
    """Model and version of every changed release file, by name."""
    found = []
    for file in sorted(changed_files(repository, before, after)):
        path = Path(file)
        if path.name != "release.yaml" or path.parent.parent != Path("serving/models"):
            continue
        content = yaml.safe_load((repository / path).read_text(encoding="utf-8"))
        version = content.get("version") if isinstance(content, dict) else None
        if not isinstance(version, int) or version < 1:
            raise SystemExit(f"{file}: version: must be a whole number from 1 on, found {version!r}")
        found.append({"model": path.parent.name, "version": version})
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: changed_models.py BEFORE AFTER")
    print("models=" + json.dumps(models_to_release(Path.cwd(), sys.argv[1], sys.argv[2])))
