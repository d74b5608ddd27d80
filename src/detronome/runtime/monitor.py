"""What the machine does while a run goes on: processors, memory, disk and GPU, sampled by a thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from detronome.runtime.host_memory import host_memory

__all__ = ["SystemMonitor"]

_CHILDREN_EVERY = 8
"""Samples between two looks for new worker processes: each look reads the whole process table."""


class SystemMonitor:
    """Samples the machine while active as a context; what cannot be read is left out.

    Keys: `cpu_percent` (0-100, all processors of the machine), `process_cpus` (processors that this process and its
    workers keep busy), `rss_bytes` (of both), `ram_percent` (in use, of what control groups grant),
    `disk_read_bytes_s`, `disk_write_bytes_s` (all disks), and for an NVIDIA GPU `gpu_percent` (of the time in which a
    kernel ran), `gpu_memory_bytes` (of all programs), `gpu_power_w`, `gpu_temperature_c`.

    Args:
        device: whose GPU is watched, if it is one.
        interval_s: seconds between samples; one takes about a millisecond.
    """

    def __init__(self, device: torch.device, *, interval_s: float = 2.0) -> None:
        self._device = device
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._wake.clear()
        self._thread = threading.Thread(target=self._watch, name="system-monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def take(self) -> dict[str, float]:
        """Return the means since the last call, or the latest sample where there was none since; empty at first."""
        with self._lock:
            means = {name: total / self._counts[name] for name, total in self._sums.items()}
            self._sums.clear()
            self._counts.clear()
            return means or dict(self._last)

    def _watch(self) -> None:
        sample = _Sampler(self._device)
        while not self._wake.wait(self._interval_s):
            values = sample()
            with self._lock:
                self._last = values
                for name, value in values.items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
                    self._counts[name] = self._counts.get(name, 0) + 1


class _Sampler:
    """Reads gauges, and counters as rates since the last reading, however late this one is."""

    def __init__(self, device: torch.device) -> None:
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self._num_samples = 0
        self._cpu_s: dict[int, float] = {}
        self._disk: Any = None
        self._gpu = _gpu_reader(device)
        self._read_at = -math.inf
        self()

    def __call__(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self._read_at = now - self._read_at, now
        values: dict[str, float] = {}
        for read in (self._of_machine, self._of_processes, self._of_disks, self._of_gpu):
            with suppress(OSError, RuntimeError, ValueError, psutil.Error):  # some machines hide some of it
                values |= read(seconds)
        self._num_samples += 1
        return values

    def _of_machine(self, seconds: float) -> dict[str, float]:
        memory = host_memory()
        return {
            "cpu_percent": psutil.cpu_percent(None),
            "ram_percent": 100 * (1 - memory.available_bytes / memory.total_bytes),
        }

    def _of_processes(self, seconds: float) -> dict[str, float]:
        if self._num_samples % _CHILDREN_EVERY == 0:
            with suppress(psutil.Error):
                self._children = self._process.children(recursive=True)
        busy_s, rss, cpu_s = 0.0, 0, {}
        for process in (self._process, *self._children):
            with suppress(psutil.Error):
                times = process.cpu_times()
                cpu_s[process.pid] = times.user + times.system
                busy_s += cpu_s[process.pid] - self._cpu_s.get(process.pid, cpu_s[process.pid])
                rss += process.memory_info().rss
        self._cpu_s = cpu_s
        return {"process_cpus": busy_s / seconds, "rss_bytes": float(rss)}

    def _of_disks(self, seconds: float) -> dict[str, float]:
        before, self._disk = self._disk, psutil.disk_io_counters()
        if before is None or self._disk is None:
            return {}
        return {
            "disk_read_bytes_s": (self._disk.read_bytes - before.read_bytes) / seconds,
            "disk_write_bytes_s": (self._disk.write_bytes - before.write_bytes) / seconds,
        }

    def _of_gpu(self, seconds: float) -> dict[str, float]:
        return self._gpu()


def _gpu_reader(device: torch.device) -> Callable[[], dict[str, float]]:
    """Return what reads a GPU's gauges through NVML; nothing where there is none."""
    if device.type != "cuda" or torch.version.hip:
        return dict
    import pynvml

    try:
        pynvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES renumbers devices for torch, not for NVML.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return dict

    gauges: dict[str, Callable[[], float]] = {
        "gpu_percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "gpu_memory_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        "gpu_power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "gpu_temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    }

    def read() -> dict[str, float]:
        values = {}
        for name, gauge in gauges.items():
            with suppress(pynvml.NVMLError):  # some boards lack a gauge
                values[name] = float(gauge())
        return values

    return read
