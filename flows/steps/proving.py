"""What a release must pass before a rollback may send everybody to it though it has never been stable."""

from __future__ import annotations

from flows.adapters.servers import verify
from flows.domain.errors import ReleaseUnproven, VerificationFailed
from flows.domain.spec import parse_spec
from flows.domain.verification import parse_samples
from flows.wiring import ControlPlane


def prove(plane: ControlPlane, model: str, version: int) -> None:
    """Scan its image, start its servers and ask its samples, whatever the hurry; its servers stay up.

    Raises ReleaseUnproven when it was never built, ScanRefused, ReleaseNotReady or VerificationFailed (its
    servers are stopped then).
    """
    release = plane.registry.release(model, version)
    spec = parse_spec(plane.registry.spec(model, version), f"{release.name}/model.yaml")
    if release.image is None:
        raise ReleaseUnproven(
            f"{model} v{version} was never built; let it earn its traffic: "
            f"modelserve promote {model} {version}"
        )
    plane.scanner.scan(plane.images.layout(release), spec.scan).enforce()
    samples = parse_samples(
        plane.artifacts.text(release.bundle, "samples.jsonl"), f"{release.name}/samples.jsonl"
    )
    plane.platform.start(release, spec)
    try:
        verify(plane.platform.url(release), release.name, samples)
    except VerificationFailed:
        plane.platform.stop(release)
        raise
