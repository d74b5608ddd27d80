"""The table of GPUs is sound, and a GPU is found however its name is written."""

from __future__ import annotations

import pytest

from detronome.errors import ConfigError
from detronome.tempo import hardware
from detronome.tempo.hardware import GPUS, find_device, local_device

GIB = 2**30


def test_every_gpu_stands_once_in_the_table() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    assert len({hardware._key(gpu.name) for gpu in GPUS}) == len(GPUS)
    assert set(hardware._OTHER_NAMES.values()) <= {gpu.name for gpu in GPUS}


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_figures_are_plausible(gpu: hardware.Device) -> None:
    assert gpu.has_speed and gpu.bandwidth_bytes_s is not None
    assert 4 * GIB < gpu.memory_bytes < 300 * GIB
    assert 200e9 < gpu.bandwidth_bytes_s < 10e12
    assert all(5e12 < speed < 5e15 for speed in gpu.flops_s.values())
    assert gpu.flops_s["fp32"] <= gpu.flops_s.get("tf32", gpu.flops_s["fp32"])
    assert gpu.flops_s["fp32"] < gpu.flops_s["fp16"]
    assert gpu.flops_s.get("bf16", gpu.flops_s["fp16"]) == gpu.flops_s["fp16"]
    assert gpu.precision == ("bf16" if "bf16" in gpu.flops_s else "fp16")


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_its_name_finds_it(gpu: hardware.Device) -> None:
    assert find_device(gpu.name) is gpu
    assert find_device(gpu.name.lower().replace(" ", "-")) is gpu


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h200", "H200"),
        ("H100", "H100 SXM"),
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("a100-80", "A100 80GB"),
        ("a100 40 GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_other_ways_to_write_a_name(name: str, found: str) -> None:
    assert find_device(name).name == found


@pytest.mark.parametrize(("text", "gib"), [("24", 24), ("24GiB", 24), ("11.5 gb", 11.5), ("80g", 80)])
def test_memory_stands_for_a_gpu_without_a_speed(text: str, gib: float) -> None:
    device = find_device(text)
    assert device.memory_bytes == gib * GIB
    assert device.type == "cuda" and not device.has_speed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rtx 409", "RTX 4090"),
        ("h2000", "H200"),
        ("a100", "A100 80GB, A100 40GB"),
        ("toaster", "--gpu 24GiB"),
        ("", "--gpu 24GiB"),
        ("0", "no GPU '0'"),
        ("9999999GiB", "no GPU"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_device(name)


def test_the_cpu_is_measured() -> None:
    cpu = local_device("cpu")
    assert cpu.type == "cpu" and cpu.is_measured and cpu.has_speed
    assert 0 <= cpu.taken_bytes < cpu.memory_bytes
    assert cpu.flops_s["fp32"] > 1e8
    assert cpu.to_record()["name"] == cpu.name
