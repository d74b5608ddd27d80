"""The ceilings of a run, each measured apart: loader, device, copies and network alone, beside the run itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from detronome.data.build import cached_bytes
from detronome.data.split import DataSplit
from detronome.runtime.host_memory import host_memory
from detronome.runtime.processors import usable_cpus
from detronome.runtime.progress import Section
from detronome.tempo.bottleneck import LargerPasses, Measurements, slowest_rank
from detronome.tempo.kernels import KernelTime, kernel_time
from detronome.tempo.measure import TrialRun
from detronome.tempo.rates import StepRates
from detronome.tempo.remedies import Situation

__all__ = ["measure_ceilings", "situation_of"]

_PART_S = 8.0
"""About how long the run, and each of its parts, is measured where nobody says for how many steps."""
_STEPS = (4, 20)
_PROFILED = 2
_SUMS = 5
_LARGER = 4
"""Images at once that are tried against the configuration's, where it cuts its batches: so many times as many."""


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What one rank has measured."""

    run: StepRates
    loader: StepRates
    device: StepRates
    copy: StepRates | None
    network: StepRates | None
    larger: LargerPasses | None
    kernels: KernelTime


def measure_ceilings(trial: TrialRun, *, steps: int | None = None, trace: Path | None = None) -> Measurements:
    """Measure a run and its ceilings.

    Over several ranks this is a collective: all return the same, with the ceilings of the slowest rank.

    Args:
        trial: the parts of a run.
        steps: how many steps are measured; None fits their number to the time that one takes.
        trace: write a profiler's trace of two steps there, on the main rank.
    """
    first = trial.steps(1, warmup=1)
    if steps is None:
        (step_s,) = trial.world.max([first.typical_step_s])
        steps = min(_STEPS[1], max(_STEPS[0], math.ceil(_PART_S / max(1e-6, step_s))))
    mine = _measure(trial, steps, trace if trial.world.is_main else None)
    ranks = trial.world.gather(mine)
    slowest, _ = slowest_rank([rank.run for rank in ranks])
    parts = ranks[slowest]
    kernels = parts.kernels
    return Measurements(
        run=[rank.run for rank in ranks],
        loader=parts.loader,
        device=parts.device,
        copy=parts.copy,
        network=parts.network,
        larger=parts.larger,
        busy_s=kernels.busy_s - kernels.busy_in_s.get(Section.MATCHER, 0.0),
        # A profiler makes the host slower, not the GPU; on a CPU both are slower, and their shares stay about the same.
        busy_of=parts.device if trial.resolved.device.type == "cuda" else kernels.rates,
        num_ops=kernels.num_ops,
    )


def situation_of(trial: TrialRun, train: DataSplit) -> Situation:
    """Return what decides the changes that make sense for a run here."""
    config, device = trial.resolved.config, trial.resolved.device
    assert config.data.workers != "auto" and config.batch.micro_batch_size != "auto"
    return Situation(
        device_type=device.type,
        cpus=max(1, usable_cpus() // trial.world.local_size),
        threads=torch.get_num_threads(),
        world_size=trial.world.size,
        workers=config.data.workers,
        micro_batch_size=config.batch.micro_batch_size,
        cache_bytes=cached_bytes(config, train),
        free_ram_bytes=host_memory().available_bytes,
        has_bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
    )


def _measure(trial: TrialRun, steps: int, trace: Path | None) -> _Parts:
    run = trial.steps(steps)
    loader = trial.loader_alone(steps)
    device = trial.device_alone(max(2, steps // 2))
    assert device is not None  # the run has just done with the memory that there is
    return _Parts(
        run=run,
        loader=loader,
        device=device,
        copy=trial.copy_alone(steps),
        network=trial.reduce_alone(_SUMS),
        larger=_larger_passes(trial, max(2, steps // 2), run.memory_bytes),
        kernels=kernel_time(trial, _PROFILED, trace=trace),
    )


def _larger_passes(trial: TrialRun, steps: int, memory_bytes: int) -> LargerPasses | None:
    """Measure more images at once, where the configuration cuts its batches and memory may have room."""
    config = trial.resolved.config
    now = config.batch.micro_batch_size
    assert now != "auto"
    size = min(_LARGER * now, math.ceil(config.batch.global_batch_size / trial.world.size))
    # A GPU says when its memory is full, and the step is begun again; a machine without memory ends the process.
    is_safe = trial.resolved.device.type == "cuda" or memory_bytes * size / now < host_memory().available_bytes
    if size <= now or any(trial.world.max([float(not is_safe)])):
        return None
    rates = trial.device_alone(steps, micro_batch_size=size)
    return LargerPasses(micro_batch_size=size, rates=rates) if rates is not None else None
