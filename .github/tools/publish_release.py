"""Builds, scans and pushes the image of a registered release: `publish_release.py MODEL VERSION`.

Promotions on a cluster take what is on record here, by digest, and build nothing themselves. Run again it
scans again, and pushes only what the registry does not have. Prints `image=...` for $GITHUB_OUTPUT.
"""

from __future__ import annotations

import sys

from flows.adapters.published import publish
from flows.domain.errors import ModelServeError
from flows.settings import Settings
from flows.wiring import artifact_store, image_builder, registry_credentials, release_registry, scanner


def say(line: str) -> None:
    print(line, file=sys.stderr)


def run(model: str, version: int, settings: Settings) -> str:
    """The published image, by digest."""
    if not settings.image_repository:
        raise SystemExit("MODELSERVE_IMAGE_REPOSITORY is not set; it names where images are pushed")
    scans = scanner(settings)
    problem = scans.refresh(progress=say)
    if problem:
        say(problem)
    registry = release_registry(settings)
    return publish(
        registry,
        artifact_store(settings),
        image_builder(settings),
        scans,
        registry.release(model, version),
        settings.image_repository,
        registry_credentials(settings.image_repository),
        say,
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: publish_release.py MODEL VERSION")
    try:
        print(f"image={run(sys.argv[1], int(sys.argv[2]), Settings())}")
    except ModelServeError as error:
        raise SystemExit(f"error: {error}") from error
