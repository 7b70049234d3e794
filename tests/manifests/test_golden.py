"""What promotions write to a cluster, for reviewers to read: tests/golden/k8s.

`REFRESH_GOLDEN=1 pytest tests/manifests/test_golden.py` rewrites the files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.manifests.variants import rendered

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "k8s"
RENDERED = rendered()


@pytest.mark.parametrize("variant", RENDERED)
def test_the_rendered_manifests_are_the_reviewed_ones(variant: str) -> None:
    text = yaml.safe_dump_all(RENDERED[variant], sort_keys=False, width=100)
    path = GOLDEN / f"{variant}.yaml"
    if os.environ.get("REFRESH_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"no {path.name}; run with REFRESH_GOLDEN=1 and review it"
    assert text == path.read_text(), f"{path.name} differs; run with REFRESH_GOLDEN=1 and review the change"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(RENDERED)
