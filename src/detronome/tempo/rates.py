"""What some steps took, and the rate that follows from it: plain numbers, whoever measured them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

__all__ = ["StepRates"]


@dataclass(frozen=True, kw_only=True)
class StepRates:
    """What some steps of a configuration took, on this rank; warm-up is left out."""

    step_s: Sequence[float]
    """Wall seconds of each step."""
    images_per_step: float
    """Over all ranks."""
    sections_s: Mapping[str, float] = field(default_factory=dict)
    """Mean seconds of a step by section, on the host's clock; the sum is the mean step."""
    device_s: Mapping[str, float] = field(default_factory=dict)
    """The same on the device's clock; empty on a CPU."""
    data_stages_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one image by stage, in the process that did it."""
    batches_ready: float = 0.0
    """Batches found ready when one was asked for; 0 without workers."""
    system: Mapping[str, float] = field(default_factory=dict)
    """See `runtime.monitor`; also `swap_bytes_s`, and on a GPU `allocator_retries` of one step."""
    memory_bytes: int = 0
    """Peak of the device's allocator, or of this process on a CPU."""
    steps_per_round: int = 1
    """Batches come in rounds, one of each worker: only whole rounds can be compared."""

    @property
    def typical_step_s(self) -> float:
        """Median over whole rounds of a step's seconds: a stall of the machine does not move it."""
        n = self.steps_per_round
        rounds = [fmean(self.step_s[start : start + n]) for start in range(0, len(self.step_s) - n + 1, n)]
        return median(rounds or self.step_s)

    @property
    def images_per_s(self) -> float:
        """Images of all ranks a second, by the typical step; 0 where there was no step."""
        seconds = self.typical_step_s if self.step_s else 0.0
        return self.images_per_step / seconds if seconds > 0 else 0.0
