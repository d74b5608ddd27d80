"""What a device can hold and do: a table of GPUs, and this machine as it is.

Speed and bandwidth are the vendors' public figures: data sheets and architecture white papers of NVIDIA (Volta, Turing,
Ampere GA100 and GA102, Ada, Hopper, Blackwell) and AMD (CDNA 2 and 3). Matrix speeds are dense, so without NVIDIA's
sparsity, and with sums in fp32, as torch multiplies: half of the figure on the box of most GeForce cards. Memory is
what the driver leaves to a program, which is 1 to 8 % less than the box says, rounded down.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

import torch

from detronome.errors import ConfigError
from detronome.runtime.host_memory import host_memory
from detronome.runtime.precision import Precision, resolve_precision
from detronome.runtime.processors import usable_cpus

__all__ = ["GPUS", "Device", "find_device", "gpu_with_memory", "local_device"]

NumberFormat = Literal["fp32", "tf32", "fp16", "bf16"]

_GIB = 2**30
_MOST_GIB = 2048
_OWN_CONTEXT_BYTES = 700 * 2**20
"""At most what CUDA's context of one process takes; more than that in use belongs to others."""
_MEASURED_S = 0.1
_COPIED_BYTES = 128 * 2**20
"""More than caches hold."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a plan needs to know of a device."""

    name: str
    type: Literal["cuda", "cpu"]
    """As torch calls it: AMD's GPUs are `cuda` too."""
    memory_bytes: int
    """Of one GPU, as a program finds it; on a CPU, of the machine or the container."""
    taken_bytes: int = 0
    """That others hold at this moment, where the device is here."""
    precision: Precision
    """In which it trains best."""
    bandwidth_bytes_s: float | None = None
    """Of its memory."""
    flops_s: Mapping[NumberFormat, float] = field(default_factory=dict)
    """Floating-point operations a second by number format; empty where nobody knows."""
    is_measured: bool = False
    """Whether the speeds were measured here, and are not a vendor's peaks."""

    @property
    def has_speed(self) -> bool:
        """Whether time can be predicted."""
        return bool(self.flops_s) and self.bandwidth_bytes_s is not None

    def to_record(self) -> dict[str, Any]:
        """Return the device as plain data."""
        return {
            "name": self.name,
            "type": self.type,
            "memory_bytes": self.memory_bytes,
            "taken_bytes": self.taken_bytes,
            "bandwidth_bytes_s": self.bandwidth_bytes_s,
            "flops_s": dict(self.flops_s),
            "is_measured": self.is_measured,
        }


def _gpu(
    name: str,
    *,
    gib: float,
    gb_s: float,
    fp32: float,
    tf32: float | None = None,
    fp16: float | None = None,
    bf16: float | None = None,
) -> Device:
    """Return a row of the table; speeds in TFLOP/s."""
    speeds: dict[NumberFormat, float | None] = {"fp32": fp32, "tf32": tf32, "fp16": fp16, "bf16": bf16}
    return Device(
        name=name,
        type="cuda",
        memory_bytes=int(gib * _GIB),
        precision="bf16" if bf16 else "fp16" if fp16 else "fp32",
        bandwidth_bytes_s=gb_s * 1e9,
        flops_s={number_format: speed * 1e12 for number_format, speed in speeds.items() if speed},
    )


GPUS: tuple[Device, ...] = (
    # Data centre.
    _gpu("B200", gib=178.3, gb_s=8000, fp32=75, tf32=1125, fp16=2250, bf16=2250),
    _gpu("H200", gib=139.7, gb_s=4800, fp32=67, tf32=494, fp16=989, bf16=989),
    _gpu("GH200 96GB", gib=94.5, gb_s=4000, fp32=67, tf32=494, fp16=989, bf16=989),
    _gpu("H100 SXM", gib=79.1, gb_s=3350, fp32=67, tf32=494, fp16=989, bf16=989),
    _gpu("H100 PCIe", gib=79.1, gb_s=2000, fp32=51, tf32=378, fp16=756, bf16=756),
    _gpu("A100 80GB", gib=79.1, gb_s=1935, fp32=19.5, tf32=156, fp16=312, bf16=312),
    _gpu("A100 40GB", gib=39.3, gb_s=1555, fp32=19.5, tf32=156, fp16=312, bf16=312),
    _gpu("A30", gib=23.5, gb_s=933, fp32=10.3, tf32=82, fp16=165, bf16=165),
    _gpu("A40", gib=44.3, gb_s=696, fp32=37.4, tf32=74.8, fp16=149.7, bf16=149.7),
    _gpu("A10", gib=22.0, gb_s=600, fp32=31.2, tf32=62.5, fp16=125, bf16=125),
    _gpu("L40S", gib=44.3, gb_s=864, fp32=91.6, tf32=183, fp16=362, bf16=362),
    _gpu("L40", gib=44.3, gb_s=864, fp32=90.5, tf32=90.5, fp16=181, bf16=181),
    _gpu("L4", gib=22.0, gb_s=300, fp32=30.3, tf32=60, fp16=121, bf16=121),
    _gpu("T4", gib=14.5, gb_s=320, fp32=8.1, fp16=65),
    _gpu("V100 32GB", gib=31.7, gb_s=900, fp32=15.7, fp16=125),
    _gpu("V100 16GB", gib=15.7, gb_s=900, fp32=15.7, fp16=125),
    _gpu("P100", gib=15.8, gb_s=732, fp32=9.3, fp16=18.7),
    _gpu("MI300X", gib=191.9, gb_s=5300, fp32=163.4, tf32=653.7, fp16=1307.4, bf16=1307.4),
    _gpu("MI250X (one of two dies)", gib=63.9, gb_s=1638, fp32=23.9, fp16=191.5, bf16=191.5),
    _gpu("MI250 (one of two dies)", gib=63.9, gb_s=1638, fp32=22.6, fp16=181, bf16=181),
    _gpu("MI210", gib=63.9, gb_s=1638, fp32=22.6, fp16=181, bf16=181),
    # Workstation.
    _gpu("RTX PRO 6000", gib=94.9, gb_s=1792, fp32=125.9, tf32=251.9, fp16=503.8, bf16=503.8),
    _gpu("RTX 6000 Ada", gib=47.3, gb_s=960, fp32=91.1, tf32=182.1, fp16=364.2, bf16=364.2),
    _gpu("RTX A6000", gib=47.4, gb_s=768, fp32=38.7, tf32=77.4, fp16=154.8, bf16=154.8),
    _gpu("RTX A5000", gib=23.6, gb_s=768, fp32=27.8, tf32=55.6, fp16=111.1, bf16=111.1),
    _gpu("RTX A4000", gib=15.6, gb_s=448, fp32=19.2, tf32=38.3, fp16=76.7, bf16=76.7),
    # Consumer.
    _gpu("RTX 5090", gib=31.3, gb_s=1792, fp32=104.8, tf32=104.8, fp16=209.5, bf16=209.5),
    _gpu("RTX 5080", gib=15.4, gb_s=960, fp32=56.3, tf32=56.3, fp16=112.6, bf16=112.6),
    _gpu("RTX 5070 Ti", gib=15.4, gb_s=896, fp32=43.9, tf32=43.9, fp16=87.9, bf16=87.9),
    _gpu("RTX 5070", gib=11.4, gb_s=672, fp32=30.9, tf32=30.9, fp16=61.7, bf16=61.7),
    _gpu("RTX 4090", gib=23.5, gb_s=1008, fp32=82.6, tf32=82.6, fp16=165.2, bf16=165.2),
    _gpu("RTX 4080", gib=15.5, gb_s=716.8, fp32=48.7, tf32=48.7, fp16=97.5, bf16=97.5),
    _gpu("RTX 4070", gib=11.6, gb_s=504, fp32=29.1, tf32=29.1, fp16=58.3, bf16=58.3),
    _gpu("RTX 4060 Ti 16GB", gib=15.5, gb_s=288, fp32=22.1, tf32=22.1, fp16=44.1, bf16=44.1),
    _gpu("RTX 4060 Ti 8GB", gib=7.6, gb_s=288, fp32=22.1, tf32=22.1, fp16=44.1, bf16=44.1),
    _gpu("RTX 3090", gib=23.6, gb_s=936, fp32=35.6, tf32=35.6, fp16=71, bf16=71),
    _gpu("RTX 3080", gib=9.6, gb_s=760, fp32=29.8, tf32=29.8, fp16=59.5, bf16=59.5),
    _gpu("RTX 3070", gib=7.6, gb_s=448, fp32=20.3, tf32=20.3, fp16=40.6, bf16=40.6),
    _gpu("RTX 3060", gib=11.6, gb_s=360, fp32=12.7, tf32=12.7, fp16=25.5, bf16=25.5),
    _gpu("RTX 2080 Ti", gib=10.7, gb_s=616, fp32=13.4, fp16=53.8),
)
"""The GPUs whose figures are known, each once."""

_OTHER_NAMES: dict[str, str] = {
    "h100": "H100 SXM",
    "h10080": "H100 SXM",
    "h10080gbhbm3": "H100 SXM",
    "h100sxm5": "H100 SXM",
    "h10080gbpcie": "H100 PCIe",
    "gh200": "GH200 96GB",
    "gh200480": "GH200 96GB",
    "a100sxm480": "A100 80GB",
    "a100pcie80": "A100 80GB",
    "a10080pcie": "A100 80GB",
    "a10080gbpcie": "A100 80GB",
    "a100sxm440": "A100 40GB",
    "a100pcie40": "A100 40GB",
    "v100sxm232": "V100 32GB",
    "v100sxm332": "V100 32GB",
    "v100pcie32": "V100 32GB",
    "v100sxm216": "V100 16GB",
    "v100pcie16": "V100 16GB",
    "p10016": "P100",
    "p100pcie16": "P100",
    "p100sxm216": "P100",
    "mi250x": "MI250X (one of two dies)",
    "mi250": "MI250 (one of two dies)",
    "6000adageneration": "RTX 6000 Ada",
    "pro6000blackwell": "RTX PRO 6000",
    "pro6000blackwellworkstationedition": "RTX PRO 6000",
    "pro6000blackwellserveredition": "RTX PRO 6000",
    "306012": "RTX 3060",
    "308010": "RTX 3080",
}
"""How drivers and people call them too, as `_key` writes it."""


def find_device(name: str) -> Device:
    """Return the device for a name, however it is written: `h200`, `RTX 4090`, `rtx4090`, `a100-80`.

    `24GiB` or `24` is any GPU of so much memory, `cpu` this machine, `local` its GPU.

    Raises:
        ConfigError: nothing is called so, or several are.
    """
    key = _key(name)
    if key in ("cpu", "local"):
        return local_device("cpu" if key == "cpu" else "local")
    known = _by_key()
    if key in known:
        return known[key]
    gib = re.fullmatch(r"(\d+(?:\.\d+)?)(?:g|gb|gib)?", re.sub(r"\s", "", name.lower()))
    if gib and 0 < float(gib[1]) <= _MOST_GIB:
        return gpu_with_memory(float(gib[1]))
    several = [device.name for device in GPUS if key and _key(device.name).startswith(key)]
    if len(several) > 1:
        raise ConfigError(
            f"{name!r} may be any of: {', '.join(several)}",
            where="--gpu",
            fix=f"give the whole name, e.g. {several[0]!r}",
        )
    raise ConfigError(
        f"no GPU {name!r} is known", where="--gpu", fix=f"{_near(key)}give its memory instead, e.g. --gpu 24GiB"
    )


def gpu_with_memory(gib: float) -> Device:
    """Return a GPU of which only its memory is known; taken to compute in bf16, as GPUs since 2020 do."""
    return Device(name=f"a GPU of {gib:g} GiB", type="cuda", memory_bytes=int(gib * _GIB), precision="bf16")


def local_device(kind: Literal["cpu", "local"] | None = None) -> Device:
    """Return what is here: the GPU, or without one the CPU, whose speed is measured in half a second.

    Args:
        kind: `cpu` for the CPU in any case, `local` for the GPU or an error.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if kind != "cpu" and torch.cuda.is_available():
        return _local_gpu(torch.device("cuda", torch.cuda.current_device()))
    if kind == "local":
        raise ConfigError("this machine offers torch no GPU", where="--gpu", fix="name one, e.g. --gpu h200")
    memory = host_memory()
    speed = _cpu_speed()
    return Device(
        name=f"this machine's CPU ({usable_cpus()} cores)",
        type="cpu",
        memory_bytes=memory.total_bytes,
        taken_bytes=memory.total_bytes - memory.available_bytes,
        precision="fp32",
        bandwidth_bytes_s=speed.bandwidth_bytes_s,
        flops_s={"fp32": speed.fp32_flops_s, "bf16": speed.bf16_flops_s},
        is_measured=True,
    )


def _local_gpu(device: torch.device) -> Device:
    name = torch.cuda.get_device_name(device)
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device) - _OWN_CONTEXT_BYTES
    known = _by_key().get(_key(name))
    return Device(
        name=name,
        type="cuda",
        memory_bytes=total,
        taken_bytes=max(0, others),
        precision=resolve_precision("auto", device)[0],
        bandwidth_bytes_s=known.bandwidth_bytes_s if known else None,
        flops_s=known.flops_s if known else {},
    )


@dataclass(frozen=True, kw_only=True)
class _CpuSpeed:
    fp32_flops_s: float
    bf16_flops_s: float
    bandwidth_bytes_s: float


@cache
def _cpu_speed() -> _CpuSpeed:
    """Return what the CPU does with torch's threads at this moment, other programs' share included."""
    speeds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.rand(768, 768).to(dtype) for _ in range(2))
        speeds.append(2 * 768**3 / _seconds(lambda a=a, b=b: a @ b))  # type: ignore[misc]
    source, target = (torch.zeros(_COPIED_BYTES, dtype=torch.uint8) for _ in range(2))
    moved = 2 * source.numel() / _seconds(lambda: target.copy_(source))
    return _CpuSpeed(fp32_flops_s=speeds[0], bf16_flops_s=speeds[1], bandwidth_bytes_s=moved)


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of one call, of those that fit a moment."""
    work()
    fastest, end = float("inf"), time.perf_counter() + _MEASURED_S
    while (start := time.perf_counter()) < end:
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _key(name: str) -> str:
    """Return a name without what people write differently: case, blanks, the vendor, the unit of its memory."""
    words = re.sub(r"\b(nvidia|geforce|tesla|quadro|amd|instinct|rtx)", " ", name.lower())
    return re.sub(r"(?<=\d)(gb|gib|g)$", "", re.sub(r"[^a-z0-9]", "", words))


@cache
def _by_key() -> dict[str, Device]:
    by_name = {device.name: device for device in GPUS}
    return {_key(device.name): device for device in GPUS} | {key: by_name[name] for key, name in _OTHER_NAMES.items()}


def _near(key: str) -> str:
    near = get_close_matches(key, list(_by_key()), n=1, cutoff=0.5)
    return f"did you mean {_by_key()[near[0]].name!r}? Or " if near else ""
