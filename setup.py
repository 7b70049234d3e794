"""Puts into the wheel what the control plane reads beside its code; `flows/places.py` finds it there.

All else about the package is in `pyproject.toml`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = (
    "constraints.txt",
    "infra/images",
    "infra/local",
    "k8s/release",
    "monitoring/rules",
    "prefect.yaml",
    "pyproject.toml",
)


class WithProject(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the checkout is there
        for name in CARRIED:
            source, target = Path(name), Path(self.build_lib, "flows", "project", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": WithProject})
