"""The packages that every server has: this project's dependencies, as they are installed here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flows.domain.errors import PackagesRefused


def own_packages(dependencies: Sequence[str]) -> dict[str, Distribution]:
    """The distributions that `dependencies` need, themselves included, by canonical name.

    Raises PackagesRefused when one of them is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    pending = [Requirement(text) for text in dependencies]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError as error:
                raise PackagesRefused(
                    f"{name} is not installed here, which every server needs; run 'make setup'"
                ) from error
            for text in found[name].requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    pending.append(needed)
    return found


def versions(own: dict[str, Distribution]) -> dict[str, str]:
    """Public versions, without the label of a local build (`2.13.0+cpu`)."""
    return {name: one.version.partition("+")[0] for name, one in own.items()}
