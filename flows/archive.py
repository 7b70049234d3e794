"""`archive`: every few minutes, move the servers' request samples from Redis into the artifact store."""

from __future__ import annotations

import logging

from prefect import flow

from flows.adapters.samples import Archived, SampleStore, archive
from flows.domain.errors import ModelServeError
from flows.domain.spec import parse_spec
from flows.wiring import ControlPlane, control_plane

log = logging.getLogger(__name__)

ARCHIVE = "archive"
"""Name of the archive's heartbeat in the registry; an alert watches it."""


def archive_all(plane: ControlPlane) -> dict[str, Archived]:
    """Archive the samples of every model that has a release in service, or had one.

    Raises ModelServeError with every model's problem, after all of them have been tried.
    """
    store = SampleStore(f"{plane.settings.artifacts_uri}/samples")
    moved: dict[str, Archived] = {}
    problems = []
    for model in plane.registry.models():
        standing = plane.registry.standing(model)
        release = standing.stable or standing.canary or standing.previous
        if release is None:
            continue
        try:
            spec = parse_spec(plane.registry.spec(model, release.version), f"{release.name}/model.yaml")
            moved[model] = archive(plane.settings.redis_url, store, model, spec.signature, spec.drift)
        except ModelServeError as error:
            problems.append(f"{model}: {error}")
    if problems:
        raise ModelServeError("; ".join(problems))
    plane.registry.beat(ARCHIVE)
    return moved


@flow(name="archive", flow_run_name="archive", timeout_seconds=1800)
def archive_samples() -> list[str]:
    """Move request samples and outcomes from Redis into Parquet."""
    lines = []
    for model, moved in archive_all(control_plane()).items():
        line = f"{model}: {moved.samples} samples and {moved.outcomes} outcomes into {moved.parts} parts"
        if moved.lost:
            line += f"; {moved.lost} were lost before: archive more often, or let the server keep more"
        log.info(line)
        lines.append(line)
    return lines
