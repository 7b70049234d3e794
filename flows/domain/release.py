"""A release: one immutable version of one model, and the phase of its life."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

MODEL_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
"""A DNS label short enough that `<model>-v<version>` still is one."""


class Phase(StrEnum):
    """Where a release stands. The database holds: at most one canary, stable and previous a model."""

    REGISTERED = "registered"
    CANARY = "canary"
    STABLE = "stable"
    PREVIOUS = "previous"
    RETIRED = "retired"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Release:
    """One immutable model version.

    `bundle` is the fsspec URI of a folder: `manifest.json` (`{"files": {name: sha256}}`) and the files it
    lists: `model.yaml`, the model file, optionally `handler.py`, `samples.jsonl`, `reference.json`.
    `sha256` is the digest of the bytes of `manifest.json`, and so of everything in the bundle.
    `image` is `name@sha256:…` once the image has been built.
    """

    model: str
    version: int
    bundle: str
    sha256: str
    image: str | None = None
    phase: Phase = Phase.REGISTERED

    @property
    def name(self) -> str:
        """The one name everywhere: server process, Deployment, Service, Envoy cluster, image tag."""
        return release_name(self.model, self.version)

    @property
    def in_service(self) -> bool:
        """It gets traffic, or may have to at any moment: its servers must run."""
        return self.phase in (Phase.CANARY, Phase.STABLE, Phase.PREVIOUS)


def release_name(model: str, version: int) -> str:
    return f"{model}-v{version}"


def parse_release_name(name: str) -> tuple[str, int]:
    """Split `flights-v2` into `("flights", 2)`; ValueError when it is not a release's name."""
    model, separator, version = name.rpartition("-v")
    if not separator or not version.isdigit() or not MODEL_NAME.fullmatch(model):
        raise ValueError(f"{name!r} is not a release name such as 'flights-v2'")
    return model, int(version)
