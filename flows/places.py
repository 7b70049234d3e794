"""Where the files are that the control plane reads beside its code: templates, rules, recipes, pins.

In a checkout, and in the control plane's image, they lie beside the packages `flows` and `serving`; in a
wheel they are data of this package (`setup.py` puts them there), so that it works without the repository.
"""

from __future__ import annotations

from pathlib import Path

PACKAGES = Path(__file__).resolve().parent.parent
"""The folder that holds the packages `flows` and `serving`: a checkout, or a Python's `site-packages`."""


def project(packages: Path = PACKAGES) -> Path:
    """The folder that holds `infra/`, `k8s/`, `monitoring/`, `prefect.yaml` and `pyproject.toml`."""
    return packages if (packages / "prefect.yaml").is_file() else packages / "flows" / "project"
