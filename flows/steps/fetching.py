"""Artifacts that lie elsewhere, brought here for as long as a bundle is made of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.adapters.sources import fetch, is_source
from flows.domain.errors import ArtifactCorrupt
from flows.settings import Settings


@contextmanager
def at_hand(
    settings: Settings, artifacts: Sequence[str], digest: str | None, say: Callable[[str], None]
) -> Iterator[list[Path]]:
    """The artifacts as paths; what was downloaded for them goes again.

    `digest` is that of the only artifact that has an address. Raises ArtifactCorrupt, DependencyDown.
    """
    addresses = [one for one in artifacts if is_source(one)]
    if digest is not None and len(addresses) != 1:
        raise ArtifactCorrupt(
            "--digest: is for one artifact with an address (s3://, https://, models:/, hf://)"
        )
    if not addresses:
        yield [Path(one) for one in artifacts]
        return
    # On the disk of the state: the temporary folder lies in memory on many machines.
    place = settings.state / "staging"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="source-", dir=place) as name:
        paths = []
        for number, one in enumerate(artifacts):
            if not is_source(one):
                paths.append(Path(one))
                continue
            folder = Path(name) / str(number)
            folder.mkdir()
            path, sentence = fetch(one, folder, digest=digest, limit=settings.bundle_limit_bytes)
            say(sentence)
            paths.append(path)
        yield paths
