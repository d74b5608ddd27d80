"""Which way of cutting an effective batch fits the memory and is the fastest.

The effective batch and the rate are never touched: what does not fit at once is accumulated. Of the ways that fit, the
one with the fewest passes is taken, cut evenly; activations are computed again only where nothing else fits, or where
that gains a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detronome.config.schema import ActivationCheckpointing
from detronome.runtime.files import format_size
from detronome.runtime.precision import Precision

__all__ = ["RESERVE", "Cut", "Fit", "FittedCut", "budget_bytes", "cut_sizes", "fit", "largest_that_fits"]

RESERVE = 0.08
"""Part of the memory that is left alone: what a prediction may be wrong by, and a display or a second process."""
_WORTH_RECOMPUTING = 0.9
"""Activations that could be kept are computed again where a step then takes at most this part of the time."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A way to put an effective batch through the model."""

    micro_batch_size: int
    accumulation: int
    """Passes that a rank's share takes."""
    precision: Precision
    checkpointing: ActivationCheckpointing
    """What is computed again in the backward pass, not kept."""


@dataclass(frozen=True, kw_only=True)
class FittedCut:
    """A way that was looked at, and what became of it."""

    cut: Cut
    peak_bytes: int
    headroom_bytes: int
    """Left of the budget; below 0 it does not fit."""
    step_s: float | None
    """Predicted for the device; None where its speed is not known."""
    reason: str
    """Why it was chosen, or not."""

    @property
    def fits(self) -> bool:
        """Whether the budget holds it."""
        return self.headroom_bytes >= 0

    def to_record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "micro_batch_size": self.cut.micro_batch_size,
            "accumulation": self.cut.accumulation,
            "precision": self.cut.precision,
            "checkpointing": self.cut.checkpointing,
            "peak_bytes": self.peak_bytes,
            "headroom_bytes": self.headroom_bytes,
            "step_s": self.step_s,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The way to take, and the others that were looked at."""

    best: FittedCut
    """Where nothing fits, the one that lacks the least."""
    others: tuple[FittedCut, ...]


def budget_bytes(memory_bytes: int, taken_bytes: int = 0) -> int:
    """Return what a run may take of a device's memory: all but a reserve of 8 %, and what others hold."""
    return max(0, int(memory_bytes * (1 - RESERVE)) - taken_bytes)


def cut_sizes(share: int) -> list[int]:
    """Return the micro-batch sizes worth a look, largest first: the evenest cut for each number of passes."""
    return sorted({math.ceil(share / passes) for passes in range(1, share + 1)}, reverse=True)


def largest_that_fits(sizes: Sequence[int], peak: Callable[[int], int], budget: int) -> int | None:
    """Return the largest of the sizes whose peak the budget holds, or None; a peak grows with its size.

    Looks at few of them: peaks are almost a straight line, so two tell where to look next.
    """
    ascending = sorted(sizes)
    low, high = 0, len(ascending) - 1
    if peak(ascending[high]) <= budget:
        return ascending[high]
    if high == 0 or peak(ascending[0]) > budget:
        return None
    while high - low > 1:
        below, above = ascending[low], ascending[high]
        slope = (peak(above) - peak(below)) / (above - below)
        at_most = below + (budget - peak(below)) / slope
        guess = max((i for i in range(low + 1, high) if ascending[i] <= at_most), default=low + 1)
        if peak(ascending[guess]) <= budget:
            low = guess
        else:
            high = guess
    return ascending[low]


def fit(
    *,
    share: int,
    budget: int,
    precisions: Sequence[Precision],
    checkpointings: Sequence[ActivationCheckpointing],
    peak: Callable[[Cut], int],
    step_s: Callable[[Cut], float | None],
    micro_batch_size: int | None = None,
) -> Fit:
    """Choose how a rank's share of an effective batch goes through the model.

    Args:
        share: images of an effective batch that one rank takes.
        budget: bytes it may take, see `budget_bytes`.
        precisions: the one to take, and others to compare it with.
        checkpointings: what may be computed again; the first is preferred, and the others are looked at where it does
            not hold the whole share.
        peak: bytes that a cut takes at most; grows with the micro-batch.
        step_s: seconds of a step, or None.
        micro_batch_size: where it is asked for.
    """
    peaks: dict[Cut, int] = {}

    def peak_of(cut: Cut) -> int:
        if cut not in peaks:
            peaks[cut] = peak(cut)
        return peaks[cut]

    def cut_of(size: int, precision: Precision, checkpointing: ActivationCheckpointing) -> Cut:
        return Cut(
            micro_batch_size=size,
            accumulation=math.ceil(share / size),
            precision=precision,
            checkpointing=checkpointing,
        )

    sizes = cut_sizes(share) if micro_batch_size is None else [min(micro_batch_size, share)]

    def largest(precision: Precision, checkpointing: ActivationCheckpointing) -> Cut:
        size = largest_that_fits(sizes, lambda n: peak_of(cut_of(n, precision, checkpointing)), budget)
        return cut_of(size or min(sizes), precision, checkpointing)

    precision, preferred = precisions[0], checkpointings[0]
    wanted = [largest(precision, preferred)]
    if peak_of(wanted[0]) > budget or wanted[0].micro_batch_size < sizes[0]:
        wanted += [largest(precision, checkpointing) for checkpointing in checkpointings[1:]]
    seconds = {cut: step_s(cut) for cut in wanted}
    best = _best([cut for cut in wanted if peak_of(cut) <= budget], seconds) or min(wanted, key=peak_of)

    larger = [size for size in sizes if size > best.micro_batch_size]
    next_larger = [cut_of(min(larger), best.precision, best.checkpointing)] if larger else []
    compared = [largest(other, preferred) for other in precisions[1:]]
    others = [cut for cut in dict.fromkeys([*next_larger, *wanted, *compared]) if cut != best]

    def fitted(cut: Cut, reason: Callable[[], str]) -> FittedCut:
        if cut not in seconds:
            seconds[cut] = step_s(cut)
        return FittedCut(
            cut=cut,
            peak_bytes=peak_of(cut),
            headroom_bytes=budget - peak_of(cut),
            step_s=seconds[cut],
            reason=reason(),
        )

    is_best_fitting = peak_of(best) <= budget
    return Fit(
        best=fitted(
            best, lambda: _why(best, share, seconds[best]) if is_best_fitting else _too_much(peak_of(best) - budget)
        ),
        others=tuple(
            fitted(cut, lambda cut=cut: _why_not(cut, peak_of(cut) - budget, best, seconds))  # type: ignore[misc]
            for cut in others
        ),
    )


def _best(fitting: Sequence[Cut], seconds: Mapping[Cut, float | None]) -> Cut | None:
    """Return the first, or the fastest where that is worth it."""
    if not fitting:
        return None
    first = fitting[0]
    if first.checkpointing != "none":
        return min(fitting, key=lambda cut: (seconds[cut] or 0.0, cut.accumulation))
    faster = [cut for cut in fitting if _ratio(cut, first, seconds) <= _WORTH_RECOMPUTING]
    return min(faster, key=lambda cut: seconds[cut] or 0.0, default=first)


def _why(cut: Cut, share: int, step_s: float | None) -> str:
    if cut.accumulation == 1 and cut.checkpointing == "none":
        return "all images of a step at once" if share > 1 else "one image a step"
    return "the fewest passes that fit" if step_s is None else "the fastest that fits"


def _why_not(cut: Cut, excess: int, best: Cut, seconds: Mapping[Cut, float | None]) -> str:
    if excess > 0:
        return _too_much(excess)
    ratio = _ratio(cut, best, seconds)
    if ratio > 1:
        return "slower"
    if cut.precision != best.precision:
        return f"{best.precision} is preferred"
    if ratio < 1:
        return "computes activations again, and gains too little"
    return "computes activations again without need"


def _too_much(excess: int) -> str:
    return f"does not fit: {format_size(excess)} too much"


def _ratio(cut: Cut, other: Cut, seconds: Mapping[Cut, float | None]) -> float:
    """Return how many times as long a cut takes as another; 1 where nobody knows."""
    a, b = seconds.get(cut), seconds.get(other)
    return a / b if a and b else 1.0
