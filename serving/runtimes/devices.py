"""Which device and how many threads: by what is there and what the model asks for."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from serving.errors import StartupError


def choose_device(wanted: str, *, import_torch: bool = True) -> str:
    """`cpu` or `cuda`. `auto` takes a GPU when there is one; asking for one that is not there is an error."""
    if wanted == "cpu" or (
        not import_torch and "torch" not in sys.modules and not Path("/dev/nvidiactl").exists()
    ):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise StartupError(
            "the model asks for device cuda and there is no GPU; use pool: gpu or device: auto"
        )
    return "cpu"


def cpu_quota() -> int:
    """Whole CPUs for this process: its part of the smaller of affinity and cgroup quota, at least 1."""
    quota = float(len(os.sched_getaffinity(0)))
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if limit != "max":
            quota = min(quota, int(limit) / int(period))
    except (OSError, ValueError):
        try:
            limit_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
            period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
            if limit_us > 0:
                quota = min(quota, limit_us / period_us)
        except (OSError, ValueError):
            pass
    # Workers of one server share what the server has.
    return max(1, math.floor(quota / int(os.environ.get("SERVING_WORKERS", "1"))))
