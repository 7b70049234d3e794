"""The maps that people read name files that exist, and every place in the code has its words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAPS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md")
TOP = ("flows", "serving", "infra", "k8s", "monitoring", "tests", ".github", "docs")
NAMED = re.compile(rf"`((?:{'|'.join(re.escape(top) for top in TOP)})/[\w./-]*)`")
TOP_FILE = re.compile(r"`(prefect\.yaml|pyproject\.toml)`")
WAY_IN = re.compile(r"The\s+ways?\s+in\s+(is|are)")
PROMISED = {"CONTRIBUTING.md": 10, "ARCHITECTURE.md": 60, "README.md": 3}
"""How many paths each map names at least: a pattern that finds none would pass."""


@pytest.mark.parametrize("name", MAPS)
def test_every_path_that_a_map_names_exists(name: str) -> None:
    named = NAMED.findall((ROOT / name).read_text())
    assert len(named) >= PROMISED[name]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_map_answers_for_twenty_changes() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text().split("## I want to change", 1)[1]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "…" not in line]
    assert len(rows) >= 20
    assert [row for row in rows if not NAMED.search(row) and not TOP_FILE.search(row)] == []


def test_every_package_says_what_belongs_there() -> None:
    """A room's docstring: what belongs there, what it may not do, where the way in is."""
    silent = []
    for plane in ("flows", "serving"):
        for file in sorted((ROOT / plane).glob("**/__init__.py")):
            if "models" in file.parts or "versions" in file.parts:
                continue  # what a team says of its own model; migrations
            words = ast.get_docstring(ast.parse(file.read_text())) or ""
            if not all(part in words for part in ("Belongs here:", "May not:")) or not WAY_IN.search(words):
                silent.append(str(file.relative_to(ROOT)))
    assert silent == []
