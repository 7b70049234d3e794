"""A line of the threat model without its test is a wish: each names one that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "docs" / "threat-model.md"


def test_every_line_names_a_test_that_exists() -> None:
    rows = [line for line in MODEL.read_text().splitlines() if line.startswith("| ") and "Test |" not in line]
    assert len(rows) > 25
    missing = []
    for row in rows:
        named = re.search(r"`([a-z_/]+\.py)::(test_\w+)` \|$", row)
        assert named is not None, f"no test named: {row}"
        file = ROOT / "tests" / named[1]
        if not file.is_file() or not re.search(rf"def {named[2]}\(", file.read_text()):
            missing.append(f"{named[1]}::{named[2]}")
    assert missing == []
