"""How long a step, an epoch and a run take, and what they cost: predicted from the work of the kernels.

A roofline: a kernel takes the longer of computing its operations and moving its bytes, each at the part of the device's
peak that such kernels reach. On a GPU the host only launches kernels, so a section takes the longer of what the device
needs and what the host needs to launch; the matcher's assignment runs on the host while the device waits. Training
waits for the loader where that is slower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from detronome.tempo.hardware import Device, NumberFormat
from detronome.tempo.memory.account import OpCost, StepTrace
from detronome.tempo.workload import Workload

__all__ = ["PassTime", "RunTime", "assignment_seconds", "pass_time", "run_time"]

_COMPUTE_EFFICIENCY = 0.45
"""Part of a GPU's peak that matrix products and convolutions of detectors reach."""
_BANDWIDTH_EFFICIENCY = 0.7
_LAUNCH_S = 8e-6
"""Of the host, to launch one kernel from Python with autograd."""
_CPU_COMPUTE_EFFICIENCY = 0.7
"""Of the speed that was measured on one large matrix product."""
_CPU_BANDWIDTH_EFFICIENCY = 0.7
_CPU_CALL_S = 4e-6
_LINK_BYTES_S = 10e9
"""Between GPUs when gradients are summed; PCI Express 4, which the slowest servers have."""
_RANGE = 1.6
"""A predicted time may be wrong by this factor either way."""
_SCORING_S = 5e-4
"""AP of one image, on the host."""
_FORMATS: Mapping[str, NumberFormat] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class PassTime:
    """Seconds of one micro-batch, and of what a step does once."""

    forward_s: float
    matcher_s: float
    loss_s: float
    backward_s: float
    update_s: float

    @property
    def micro_batch_s(self) -> float:
        """All that is done for each micro-batch."""
        return self.forward_s + self.matcher_s + self.loss_s + self.backward_s


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """Predicted times in seconds."""

    device_s: float
    """Of one step, with all data at hand."""
    data_s: float | None
    """That the loader needs for one step."""
    step_s: float
    epoch_s: float
    evaluation_s: float
    total_s: float
    within_factor: float
    """The truth is expected within this factor either way."""
    workers_needed: int | None
    """Loader processes of a rank that keep up with the device, as fast as those here."""
    sections_s: Mapping[str, float]
    """Of one step on the device, by section."""

    @property
    def waits_for(self) -> str:
        """What decides the length of a step: `data` or `device`."""
        return "data" if self.data_s is not None and self.data_s > self.device_s else "device"

    def price(self, per_gpu_hour: float, gpus: int) -> float:
        """Return what the run costs."""
        return self.total_s / 3600 * gpus * per_gpu_hour

    def to_record(self) -> dict[str, Any]:
        """Return the times as plain data."""
        return {
            "device_s": self.device_s,
            "data_s": self.data_s,
            "step_s": self.step_s,
            "epoch_s": self.epoch_s,
            "evaluation_s": self.evaluation_s,
            "total_s": self.total_s,
            "within_factor": self.within_factor,
            "waits_for": self.waits_for,
            "workers_needed": self.workers_needed,
            "sections_s": dict(self.sections_s),
        }


def pass_time(trace: StepTrace, device: Device, *, num_images: float, assignment_s: float = 0.0) -> PassTime:
    """Return the time of one micro-batch.

    Args:
        trace: of one step of so many images as it says; its work is taken in proportion.
        device: one whose speed is known.
        num_images: of the micro-batch.
        assignment_s: of the matcher on the host, for these images.
    """
    assert device.has_speed, device.name
    scale = num_images / trace.account.num_images

    def section(name: str, scale: float) -> float:
        return _section_seconds([op for op in trace.ops if op.section == name], device, scale)

    return PassTime(
        forward_s=section("forward", scale),
        matcher_s=section("matcher", scale) + assignment_s,
        loss_s=section("loss", scale),
        backward_s=section("backward", scale),
        update_s=section("update", 1.0),
    )


def run_time(passed: PassTime, work: Workload) -> RunTime:
    """Return the times of a run, given those of a micro-batch of its average size."""
    sum_s = 0.0
    if work.world_size > 1:
        sum_s = 2 * (work.world_size - 1) / work.world_size * work.gradient_bytes / _LINK_BYTES_S
    sections = {
        "forward": work.passes * passed.forward_s,
        "matcher": work.passes * passed.matcher_s,
        "loss": work.passes * passed.loss_s,
        "backward": work.passes * passed.backward_s,
        "reduce": sum_s,
        "update": passed.update_s,
    }
    device_s = sum(sections.values())
    images = work.global_batch_size / work.world_size
    image_s = None if work.images_s_worker is None else 1 / work.images_s_worker
    data_s = None if image_s is None else images * image_s / max(work.workers, 1)
    # Without workers the training process prepares each batch itself, and computes nothing meanwhile.
    step_s = device_s + (data_s or 0.0) if work.workers == 0 else max(device_s, data_s or 0.0)
    per_image_s = passed.forward_s * work.passes / images * work.eval_pixels
    loaded_s = 0.0 if image_s is None else image_s * work.eval_pixels / max(work.workers, 1)
    shown_s = per_image_s + loaded_s if work.workers == 0 else max(per_image_s, loaded_s)
    evaluation_s = work.num_val_images * (shown_s / work.world_size + _SCORING_S)
    epoch_s = step_s * work.steps_per_epoch
    return RunTime(
        device_s=device_s,
        data_s=data_s,
        step_s=step_s,
        epoch_s=epoch_s,
        evaluation_s=evaluation_s,
        total_s=epoch_s * work.epochs + evaluation_s * work.evaluations,
        within_factor=_RANGE,
        workers_needed=None if image_s is None else max(1, math.ceil(images * image_s / device_s)),
        sections_s=sections,
    )


def assignment_seconds(*, num_queries: int, num_objects: float, num_layers: int, num_images: float) -> float:
    """Return how long the host assigns the queries to the objects of a micro-batch, measured here."""
    objects = min(max(1, round(num_objects)), num_queries)
    rng = np.random.default_rng(0)
    costs = rng.random((32, objects, num_queries))
    linear_sum_assignment(costs[0])
    start = time.perf_counter()
    for cost in costs:
        linear_sum_assignment(cost)
    return (time.perf_counter() - start) / len(costs) * num_layers * num_images


def _section_seconds(ops: Sequence[OpCost], device: Device, scale: float) -> float:
    kernels = sum(_kernel_seconds(op, device) for op in ops) * scale
    calls = sum(op.count for op in ops)
    if device.type == "cpu":
        return kernels + calls * _CPU_CALL_S
    return max(kernels, calls * _LAUNCH_S)


def _kernel_seconds(op: OpCost, device: Device) -> float:
    assert device.bandwidth_bytes_s is not None
    is_cpu = device.type == "cpu"
    compute = _CPU_COMPUTE_EFFICIENCY if is_cpu else _COMPUTE_EFFICIENCY
    bandwidth = _CPU_BANDWIDTH_EFFICIENCY if is_cpu else _BANDWIDTH_EFFICIENCY
    return max(
        op.flops / (_flops_s(op, device) * compute),
        op.bytes / (device.bandwidth_bytes_s * bandwidth),
    )


def _flops_s(op: OpCost, device: Device) -> float:
    """Return the peak for a kernel: cuDNN convolves fp32 in tf32 where it can, as torch lets it; products stay fp32."""
    number_format = _FORMATS.get(op.dtype, "fp32")
    if number_format == "fp32" and "conv" in op.name and "tf32" in device.flops_s:
        number_format = "tf32"
    return device.flops_s.get(number_format, device.flops_s["fp32"])
