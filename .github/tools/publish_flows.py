"""Builds, scans and pushes the control plane's image: `publish_flows.py REPOSITORY TAG`.

Prints `image=REPOSITORY@sha256:...` for $GITHUB_OUTPUT: what an overlay's `images:` names, set by
`kustomize edit set image modelserve-flows=...`. What fails the scan is not pushed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from flows.adapters.images import push
from flows.adapters.published import Scans
from flows.domain.errors import ModelServeError
from flows.domain.spec import ScanPolicy
from flows.settings import Settings
from flows.wiring import flows_image_builder, registry_credentials, scanner


def say(line: str) -> None:
    print(line, file=sys.stderr)


def run(settings: Settings, scans: Scans, repository: str, tag: str, policy: ScanPolicy) -> str:
    """The pushed image, by digest."""
    builder = flows_image_builder(settings)
    builder.prepare(progress=say)
    with tempfile.TemporaryDirectory(prefix="modelserve-publish-") as folder:
        layout = builder.export_prepared(Path(folder) / "layout")
        report = scans.scan(layout, policy)
        say(report.sentence)
        report.enforce()
        say(f"image: pushing to {repository}")
        return push(layout, tag, repository, registry_credentials(repository))


def main(repository: str, tag: str) -> str:
    settings = Settings()
    scans = scanner(settings)
    problem = scans.refresh(progress=say)
    if problem:
        say(problem)
    return run(settings, scans, repository, tag, ScanPolicy())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: publish_flows.py REPOSITORY TAG")
    try:
        print(f"image={main(sys.argv[1], sys.argv[2])}")
    except ModelServeError as error:
        raise SystemExit(f"error: {error}") from error
