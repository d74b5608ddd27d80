"""Which device a run uses, and what it is."""

from __future__ import annotations

import platform

import torch

from detronome.errors import ConfigError
from detronome.version import __version__

__all__ = ["describe_environment", "resolve_device"]


def resolve_device(name: str) -> tuple[torch.device, str]:
    """Return the device for a name (`auto`, `cpu`, `cuda`, `cuda:1`, `mps`) and the reason for it.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is available"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "an Apple GPU is available"
        return torch.device("cpu"), "no GPU is available"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"{name!r} is no device", where="train.device", fix="use auto, cpu, cuda, cuda:N or mps"
        ) from error
    is_there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type, False)
    if not is_there:
        raise ConfigError(
            f"this machine offers no device {name!r} to torch {torch.__version__}",
            where="train.device",
            fix="use auto or cpu; for CUDA check that `nvidia-smi` works and the driver fits torch's CUDA",
        )
    return device, "asked for"


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return versions and machine for logs and reports."""
    from importlib.metadata import version

    return {
        "detronome": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(terse=True),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
