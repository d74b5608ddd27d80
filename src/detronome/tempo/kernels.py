"""How much of a step its device really computes: a few steps under torch's profiler.

The rest of the time that loader and network leave is the host's: Python, launching kernels, the matcher's assignment,
waiting. On a CPU host and device are the same processors, so operations that are too short to be worth their launch
count as the host's too.
"""

from __future__ import annotations

import bisect
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from detronome.runtime.progress import Section
from detronome.tempo.measure import TrialRun
from detronome.tempo.rates import StepRates

__all__ = ["KernelTime", "kernel_time"]

_SECTION = "section: "
_LOG_LEVEL = "KINETO_LOG_LEVEL"
_LEAST_S = 20e-6
"""About what torch takes to launch an operation and record it: a shorter one is mostly overhead."""


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """What the device computed in one step, on average."""

    rates: StepRates
    """The steps while they were profiled, which makes them slower."""
    busy_s: float
    """Seconds in which it computed."""
    busy_in_s: Mapping[str, float]
    """The same by the section whose code ran, on a CPU; empty on a GPU, which works behind the host."""
    num_ops: float
    """Operations that it was given."""
    op_s: Mapping[str, float]
    """Seconds by operation, longest first."""


def kernel_time(trial: TrialRun, num_steps: int, *, trace: Path | None = None) -> KernelTime:
    """Profile steps on batches that are on the device already.

    Args:
        trial: the parts of a run.
        num_steps: steps that are profiled, after one that is not.
        trace: write the steps there, for chrome://tracing or Perfetto, with the sections marked.
    """
    is_cuda = trial.resolved.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    trial.device_alone(0, warmup=1)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of what this build of torch cannot profile
        with profile(activities=activities, acc_events=True) as profiler, _marked(trial):
            rates = trial.device_alone(num_steps, warmup=0)
        assert rates is not None
        events = list(profiler.events() or ())
        if trace is not None:
            trace.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(trace))
    return (_on_gpu if is_cuda else _on_cpu)(events, rates)


def _on_gpu(events: list[Any], rates: StepRates) -> KernelTime:
    num_steps = len(rates.step_s)
    # A mark of the host (a section, the optimiser's step) shows there too, as long as all the kernels that it launched.
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    op_s: dict[str, float] = {}
    for kernel in kernels:
        op_s[kernel.name] = op_s.get(kernel.name, 0.0) + kernel.time_range.elapsed_us() * 1e-6 / num_steps
    busy_us, until = 0.0, 0.0
    for start, end in sorted((e.time_range.start, e.time_range.end) for e in kernels):  # streams overlap
        busy_us += max(0.0, end - max(start, until))
        until = max(until, end)
    return KernelTime(
        rates=rates,
        busy_s=busy_us * 1e-6 / num_steps,
        busy_in_s={},
        num_ops=len(kernels) / num_steps,
        op_s=_longest(op_s),
    )


def _on_cpu(events: list[Any], rates: StepRates) -> KernelTime:
    num_steps = len(rates.step_s)
    sections = sorted((e.time_range.start, e.name[len(_SECTION) :]) for e in events if e.name.startswith(_SECTION))
    starts = [start for start, _ in sections]
    busy_in_s: dict[str, float] = {}
    op_s: dict[str, float] = {}
    num_ops = 0
    for event in events:
        if not event.name.startswith("aten::") and "::" not in event.name:
            continue
        num_ops += 1
        seconds = event.self_cpu_time_total * 1e-6
        if seconds < _LEAST_S:
            continue
        place = bisect.bisect_right(starts, event.time_range.start) - 1
        section = sections[place][1] if place >= 0 else str(Section.START)
        busy_in_s[section] = busy_in_s.get(section, 0.0) + seconds / num_steps
        op_s[event.name] = op_s.get(event.name, 0.0) + seconds / num_steps
    return KernelTime(
        rates=rates,
        busy_s=sum(busy_in_s.values()),
        busy_in_s=busy_in_s,
        num_ops=num_ops / num_steps,
        op_s=_longest(op_s),
    )


def _longest(op_s: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(op_s.items(), key=lambda item: -item[1]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's library from writing to stderr that it has begun and ended."""
    before = os.environ.get(_LOG_LEVEL)
    os.environ[_LOG_LEVEL] = "6"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_LOG_LEVEL]
        else:
            os.environ[_LOG_LEVEL] = before


@contextmanager
def _marked(trial: TrialRun) -> Iterator[None]:
    """Mark the sections of a step in the profiler's record."""
    current: record_function | None = None

    def begin(section: Section) -> None:
        nonlocal current
        if current is not None:
            current.__exit__(None, None, None)
        current = record_function(f"{_SECTION}{section}")
        current.__enter__()

    with trial.telling_sections(begin):
        try:
            yield
        finally:
            if current is not None:
                current.__exit__(None, None, None)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
