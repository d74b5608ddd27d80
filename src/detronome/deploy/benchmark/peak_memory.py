"""The highest use of memory since a moment of our choice."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from detronome.runtime.host_memory import host_memory
from detronome.runtime.memory import peak_memory_bytes

__all__ = ["available_bytes_on", "peak_bytes_since", "resident_bytes", "watch_peak_from_now"]

_RESET_PEAK = "5"
_STATUS = Path("/proc/self/status")


def watch_peak_from_now(device: torch.device) -> None:
    """Forget the highest use so far. Where the system cannot (macOS), the peak is that since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def peak_bytes_since(device: torch.device) -> int:
    """Return the highest use since `watch_peak_from_now`: of the device's allocator, or of this process on a CPU."""
    if device.type != "cuda":
        # Not what `getrusage` says: that begins with what the parent held when it started this process.
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
            if found:
                return 1024 * int(found[1])
    return peak_memory_bytes(device)


def resident_bytes(device: torch.device) -> int:
    """Return what is in use now."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def available_bytes_on(device: torch.device) -> int:
    """Return what is free on the device, or on this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_memory().available_bytes
