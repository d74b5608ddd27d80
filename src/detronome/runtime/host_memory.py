"""How much memory this machine has and how much of it is free, within what its control groups grant.

A container that may use 8 GiB on a machine of 256 shows all 256; a process that believes it is killed without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from detronome.runtime.processors import control_groups

__all__ = ["HostMemory", "host_memory"]


@dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Main memory as this process may use it."""

    total_bytes: int
    available_bytes: int
    """Free, or held by what gives way: the page cache."""


def host_memory() -> HostMemory:
    """Return the memory of the machine, or of the narrowest control group around this process."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for folder in control_groups("memory"):
        for limit, used in _bounds(folder):
            total, available = min(total, limit), min(available, max(0, limit - used))
    return HostMemory(total_bytes=total, available_bytes=available)


def _bounds(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit of a control group of either version and what its processes hold, idle pages of files aside."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            bound = int((folder / limit).read_text())  # `max` is no number
            held = int((folder / used).read_text())
            yield bound, held - _statistic(folder, cached)


def _statistic(folder: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
