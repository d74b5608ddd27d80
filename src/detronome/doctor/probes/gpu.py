"""GPUs as the driver shows them, without torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from detronome.doctor.findings import Facts

__all__ = ["driver"]


def driver() -> Facts:
    """Ask NVML for driver and devices; the kernel's files say whether there is a GPU at all."""
    kernel = Path("/proc/driver/nvidia/version")
    facts: Facts = {
        "device_files": len(list(Path("/dev").glob("nvidia[0-9]*"))),
        "kernel_module": kernel.read_text().splitlines()[0] if kernel.is_file() else "",
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "library_path": os.environ.get("LD_LIBRARY_PATH", ""),
    }
    try:
        import pynvml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        return facts | {"error": f"{type(error).__name__}: {error}", "is_nvml_there": False}
    try:
        pynvml.nvmlInit()
    except Exception as error:
        return facts | {"error": f"{type(error).__name__}: {error}", "is_nvml_there": True}
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion()
        facts |= {
            "is_nvml_there": True,
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "devices": [_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())],
        }
    finally:
        with suppress(Exception):
            pynvml.nvmlShutdown()
    return facts


def _device(nvml: Any, index: int) -> Facts:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    facts: Facts = {
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "total_bytes": memory.total,
        "used_bytes": memory.used,
    }
    with suppress(Exception):  # a part of a GPU (MIG) does not say
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        facts["capability"] = f"sm_{major}{minor}"
    return facts


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
