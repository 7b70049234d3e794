"""Writes every manifest that ships into a folder, for tools that read files: one file a source.

`python -m tests.manifests.export FOLDER`, then for example
`checkov --config-file k8s/checkov.yaml -d FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests.manifests.validate import everything


def main(folder: str) -> int:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for source, things in everything().items():
        (path / f"{source.replace(' ', '-')}.yaml").write_text(yaml.safe_dump_all(things, sort_keys=False))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tests.manifests.export FOLDER")
    raise SystemExit(main(sys.argv[1]))
