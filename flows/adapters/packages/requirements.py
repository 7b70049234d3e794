"""What a model's folder asks for: `requirements.txt`, or `pyproject.toml` with or without `uv.lock`."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from flows.domain.errors import PackagesRefused

HASH = re.compile(r"\s+--hash[= ]\S+")
PLAIN = "write NAME==VERSION; indexes are set in pip's own configuration"


@dataclass(frozen=True)
class Wanted:
    """A requirement, and where it stands."""

    requirement: Requirement
    place: str


def wanted_packages(folder: Path, shown: Path, listed: str = "requirements.txt") -> list[Wanted]:
    """The requirements of the folder; none when it has no such file. `shown` is its name in messages.

    `listed` (requirements.txt) goes before `pyproject.toml`; beside that, `uv.lock` gives the exact
    versions. Raises
    PackagesRefused for a line that is no plain requirement: a URL, a path, an option.
    """
    if (folder / listed).is_file():
        return _listed(folder / listed, shown / listed)
    project = folder / "pyproject.toml"
    if not project.is_file():
        return []
    place = str(shown / "pyproject.toml")
    dependencies = _toml(project, place).get("project", {}).get("dependencies", [])
    wanted = [_requirement(str(text), place) for text in dependencies]
    if (folder / "uv.lock").is_file():
        wanted += _locked(folder / "uv.lock", str(shown / "uv.lock"), project=_name(project, place))
    return wanted


def _listed(path: Path, shown: Path) -> list[Wanted]:
    wanted = []
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), 1):
        plain = HASH.sub("", re.sub(r"(^|\s)#.*", "", line)).strip()
        if plain:
            wanted.append(_requirement(plain, f"{shown}:{number}"))
    return wanted


def _locked(path: Path, place: str, project: str) -> list[Wanted]:
    wanted = []
    for package in _toml(path, place).get("package", []):
        source = package.get("source", {})
        if package.get("name") == project:
            continue
        if "registry" not in source:
            raise PackagesRefused(
                f"{place}: {package.get('name')} comes from {source}; only an index can be used"
            )
        wanted.append(_requirement(f"{package['name']}=={package['version']}", place))
    return wanted


def _requirement(text: str, place: str) -> Wanted:
    if text.startswith("-"):
        raise PackagesRefused(f"{place}: {text!r} is an option; {PLAIN}")
    if re.match(r"[./~]|[a-z+]+://|[A-Za-z]:\\", text) or text.endswith((".whl", ".tar.gz", ".zip")):
        raise PackagesRefused(f"{place}: {text!r} is a path or a URL, which nobody can lock; {PLAIN}")
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise PackagesRefused(f"{place}: {text!r} is no requirement ({reason}); {PLAIN}") from error
    if requirement.url is not None:
        raise PackagesRefused(f"{place}: {text!r} is a path or a URL, which nobody can lock; {PLAIN}")
    return Wanted(requirement, place)


def _name(project: Path, place: str) -> str:
    return str(_toml(project, place).get("project", {}).get("name", ""))


def _toml(path: Path, place: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PackagesRefused(f"{place}: not valid TOML: {error}") from error
