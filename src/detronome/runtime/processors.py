"""How many processors this process may keep busy: those it is bound to, and what its control groups grant it.

A container with a quota of two processors on a machine of 64 shows all 64; as many workers would stand in each
other's way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

__all__ = ["control_groups", "usable_cpus"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return the number of processors that this process may keep busy, at least 1; parts of one do not count."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, min(_quotas(), default=math.inf))))


def _quotas() -> Iterator[float]:
    """Yield the quota, in processors, of each control group that this process is in, where one is set."""
    for folder in control_groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield float(quota) / float(period)  # `max` is no number
        with suppress(OSError, ValueError):
            quota_us = float((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                yield quota_us / float((folder / "cpu.cfs_period_us").read_text())


def control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of either version that may bound a resource, and of those above them.

    In a container the path may be the one that the host sees; the container's own group is at the root then.
    """
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = _CGROUPS / controller if controllers else _CGROUPS
            group = PurePosixPath(path.lstrip("/"))
            yield from (root / folder for folder in (group, *group.parents))
