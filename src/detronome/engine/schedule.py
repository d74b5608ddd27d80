"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cyclical",
    "exponential",
    "multistep",
    "one_cycle",
    "step_drops",
    "with_warmup",
]

Schedule = Callable[[int], float]
"""Factor on every group's rate for the update number `step`, counted from 0."""


def constant() -> Schedule:
    """The rate as given."""
    return lambda step: 1.0


def step_drops(*, period_steps: int, gamma: float) -> Schedule:
    """Multiply by gamma every `period_steps`: the reference's schedule."""
    return lambda step: gamma ** (step // max(period_steps, 1))


def multistep(*, milestone_steps: Sequence[int], gamma: float) -> Schedule:
    """Multiply by gamma at each milestone."""
    return lambda step: gamma ** sum(step >= milestone for milestone in milestone_steps)


def exponential(*, gamma: float, steps_per_epoch: int) -> Schedule:
    """Multiply by gamma every epoch, smoothly."""
    return lambda step: gamma ** (step / max(steps_per_epoch, 1))


def cyclical(*, cycle_steps: int, min_factor: float) -> Schedule:
    """Rise from `min_factor` to 1 and fall back, in triangles (arXiv 1506.01186)."""

    def factor(step: int) -> float:
        position = (step % max(cycle_steps, 1)) / max(cycle_steps, 1)
        return min_factor + (1 - min_factor) * (1 - abs(2 * position - 1))

    return factor


def cosine(*, total_steps: int, min_factor: float) -> Schedule:
    """Fall from 1 to `min_factor` along half a cosine (arXiv 1608.03983)."""

    def factor(step: int) -> float:
        progress = min(step / max(total_steps - 1, 1), 1.0)
        return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def one_cycle(*, total_steps: int, peak_fraction: float, min_factor: float) -> Schedule:
    """Rise from 1/25 to 1, then fall to `min_factor`, both along cosines (arXiv 1708.07120)."""
    start_factor = 1 / 25

    def factor(step: int) -> float:
        peak = max(peak_fraction * (total_steps - 1), 1e-9)
        if step < peak:
            return start_factor + (1 - start_factor) * 0.5 * (1 - math.cos(math.pi * step / peak))
        progress = min((step - peak) / max(total_steps - 1 - peak, 1e-9), 1.0)
        return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def with_warmup(schedule: Schedule, *, warmup_steps: int) -> Schedule:
    """Multiply by a linear rise that reaches 1 after `warmup_steps` updates."""
    if warmup_steps <= 0:
        return schedule
    return lambda step: min(1.0, (step + 1) / warmup_steps) * schedule(step)
