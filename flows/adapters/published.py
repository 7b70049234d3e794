"""Images for a cluster: built, scanned and pushed where there is a builder (CI), then only taken by digest.

A promotion on the cluster builds nothing. It takes the image on record for the release, and the scan on
record of that very digest, so that what was scanned is what runs. Both are one event of the registry.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from flows.adapters.artifacts import ArtifactStore
from flows.adapters.images import Device, ImageBuilder, push
from flows.adapters.registry import Registry
from flows.domain.errors import ImageFailed, ScanRefused
from flows.domain.release import Release
from flows.domain.scan import ScanReport
from flows.domain.spec import ScanPolicy, parse_spec

PUBLISHED = "published"
AGAIN = "run the workflow cd for it, or .github/tools/publish_release.py by hand"
OLDEST_SCAN = timedelta(days=30)
"""What became known since is missing from an older scan; under `scan.mode: require` it must be repeated."""

Say = Callable[[str], None]


class Images(Protocol):
    """What a promotion asks of the images, whoever builds them."""

    def build(self, release: Release, bundle: Path, *, progress: Say) -> str:
        """The image of the release, by digest."""

    def layout(self, release: Release) -> str:
        """The release's image as the scanner takes it."""


class Scans(Protocol):
    """What a promotion asks of the scanner."""

    def ready(self, policy: ScanPolicy, progress: Say | None = None) -> None:
        """Raises ScanImpossible, before anything is built, when no scan could meet the policy."""

    def scan(self, layout: str, policy: ScanPolicy) -> ScanReport:
        """The report of one image. Raises ScanRefused when nothing is known of it."""


class Published:
    """`Images` and `Scans` from the registry's records; only images of `repository` are taken."""

    def __init__(
        self,
        registry: Registry,
        repository: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._now = now
        self._named: dict[str, dict[str, Any]] = {}

    def build(self, release: Release, bundle: Path, *, progress: Say) -> str:
        """Nothing is built: the image on record. Raises ImageFailed when there is none for this bundle."""
        del bundle
        image = str(self._record(release)["image"])
        progress(f"image: taking the published {image}")
        return image

    def layout(self, release: Release) -> str:
        """The image itself, by digest; `scan` knows what was found in it."""
        record = self._record(release)
        self._named[str(record["image"])] = record
        return str(record["image"])

    def ready(self, policy: ScanPolicy, progress: Say | None = None) -> None:
        """Always: what is published has been scanned."""

    def scan(self, layout: str, policy: ScanPolicy) -> ScanReport:
        """The scan on record of exactly the image that `layout` has named, under the release's policy.

        Raises ScanRefused when there is none, or when it is too old for a policy that requires one.
        """
        record = self._named.get(layout)
        if record is None:
            raise ScanRefused(f"no scan of {layout} is on record; {AGAIN}")
        report = replace(ScanReport.from_facts(record["scan"]), policy=policy)
        age = self._now() - report.scanned_at
        if policy.mode == "require" and age > OLDEST_SCAN:
            raise ScanRefused(f"{layout} was scanned {age.days} days ago; to scan it anew, {AGAIN}")
        return report

    def _record(self, release: Release) -> dict[str, Any]:
        for event in reversed(self._registry.events(release.model, kinds=(PUBLISHED,))):
            record = event.detail
            if record["release"] != release.name:
                continue
            if record["sha256"] == release.sha256 and self._holds(str(record["image"])):
                return record
        raise ImageFailed(f"{release.name} has no published image in {self._repository}; {AGAIN}")

    def _holds(self, image: str) -> bool:
        return image.startswith(f"{self._repository}@sha256:")


def publish(
    registry: Registry,
    artifacts: ArtifactStore,
    builder: ImageBuilder,
    scanner: Scans,
    release: Release,
    repository: str,
    credentials: tuple[str, str] | None,
    say: Say,
) -> str:
    """Build the image of a registered release, scan it, push it, put both on record; return it by digest.

    The model's pool says for which device. Raises ScanRefused before anything is pushed, ImageFailed,
    ArtifactCorrupt.
    """
    spec = parse_spec(registry.spec(release.model, release.version), f"{release.name}/model.yaml")
    with tempfile.TemporaryDirectory(prefix="modelserve-publish-") as name:
        folder = Path(name)
        bundle = artifacts.fetch(release.bundle, release.sha256, folder / "bundle")
        device: Device = "cuda" if spec.resources.pool == "gpu" else "cpu"
        builder.build(release, bundle, device=device, progress=say)
        layout = builder.export(release, folder / "layout")
        report = scanner.scan(layout, spec.scan)
        say(report.sentence)
        report.enforce()
        say(f"image: pushing to {repository}")
        image = push(layout, release.name, repository, credentials)
    record = {"release": release.name, "sha256": release.sha256, "image": image, "scan": report.facts()}
    registry.note(release.model, PUBLISHED, record)
    return image
