"""Which of two configurations is faster, measured in turn so that a shared machine's drift hits both.

A machine that others use changes its speed by tens of percent within minutes. Two runs one after the other cannot be
compared; blocks of steps in turn can: each pair of blocks gives one ratio, and their median an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median
from typing import Protocol

from detronome.runtime.speedup import Speedup, speedup_of
from detronome.tempo.rates import StepRates

__all__ = ["Comparison", "Outcome", "Trial", "compare"]

_LOOKS = (5, 9, 15)
"""Pairs after which the interval is looked at: looking after every one would sooner or later find what is not there."""
_WORTH_MORE = {5: 1.0, 9: 1.03, 15: math.inf}
"""By pairs: a median of so many times the gain asked for is worth measuring on."""
_LOST_AFTER = ((1, 0.5), (3, 0.85))
"""(pairs, ratio): when so many were all below it, the candidate is clearly slower."""
_MIN_STEPS = 3


class Trial(Protocol):
    """A configuration that is being measured; `TrialRun` is one."""

    @property
    def num_ahead(self) -> int:
        """Batches that its loader prepares while nobody asks: they come at once, and must not be counted."""

    @property
    def round_steps(self) -> int:
        """Steps come in rounds of so many: only whole rounds can be compared."""

    @property
    def memory_splits(self) -> Mapping[str, int]:
        """Not empty where memory had no room for what the configuration asks for."""

    def steps(self, count: int, *, warmup: int) -> StepRates:
        """Do steps and return what those after the warm-up took."""

    def settle(self) -> None:
        """Wait until nothing works in the background."""


class Outcome(StrEnum):
    """What a comparison came to."""

    FASTER = "faster"
    """The interval lies above the gain that was asked for."""
    NO_GAIN = "no gain"
    """The interval lies below it."""
    NOT_PROVEN = "not proven"
    """It lies across it, and measuring on would take more time than a small gain is worth."""
    OUT_OF_TIME = "out of time"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate beside a baseline."""

    outcome: Outcome
    speedup: Speedup | None
    """None where time was over before the first pair."""
    baseline_images_per_s: float
    candidate_images_per_s: float


def compare(
    baseline: Trial,
    candidate: Trial,
    *,
    min_gain: float,
    block_s: float,
    is_time_over: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Measure a candidate against a baseline, block by block in turn, until it is decided.

    Args:
        baseline: what the candidate must beat.
        candidate: the other one.
        min_gain: the lower end of the interval must be above this ratio.
        block_s: length of a block of the slower one, about.
        is_time_over: asked before every pair.
    """
    warmup = max(baseline.num_ahead, candidate.num_ahead) + 1
    first_baseline, first_candidate = (_block(trial, 1, warmup=warmup) for trial in (baseline, candidate))
    round_steps = math.lcm(baseline.round_steps, candidate.round_steps)
    count = _block_steps(max(fmean(first.step_s) for first in (first_baseline, first_candidate)), block_s, round_steps)
    baselines: list[StepRates] = []
    candidates: list[StepRates] = []
    ratios: list[float] = []
    outcome: Outcome | None = None
    while outcome is None:
        if is_time_over():
            outcome = Outcome.OUT_OF_TIME
            break
        # Each goes first in turn, so that a steady drift cancels out.
        turns = [(baseline, baselines), (candidate, candidates)]
        for trial, blocks in turns if len(ratios) % 2 == 0 else reversed(turns):
            blocks.append(_block(trial, count, warmup=warmup))
        ratios.append(_pace(candidates[-1]) / _pace(baselines[-1]))
        outcome = _judge(ratios, min_gain)
    return Comparison(
        outcome=outcome,
        speedup=speedup_of(ratios) if ratios else None,
        baseline_images_per_s=median(map(_pace, baselines or [first_baseline])),
        candidate_images_per_s=median(map(_pace, candidates or [first_candidate])),
    )


def _judge(ratios: Sequence[float], min_gain: float) -> Outcome | None:
    """Return the outcome, or None where more pairs are needed."""
    if any(len(ratios) == pairs and max(ratios) < lost for pairs, lost in _LOST_AFTER):
        return Outcome.NO_GAIN
    if len(ratios) not in _LOOKS:
        return None
    speedup = speedup_of(ratios)
    if speedup.low > min_gain:
        return Outcome.FASTER
    if speedup.high < min_gain:
        return Outcome.NO_GAIN
    return Outcome.NOT_PROVEN if speedup.ratio < _WORTH_MORE[len(ratios)] * min_gain else None


def _block(trial: Trial, count: int, *, warmup: int) -> StepRates:
    """Measure a block of steps, and let what works in the background finish before the other one has its turn."""
    rates = trial.steps(count, warmup=warmup)
    trial.settle()
    return rates


def _block_steps(step_s: float, block_s: float, round_steps: int) -> int:
    wanted = max(_MIN_STEPS, round(block_s / max(step_s, 1e-9)))
    return round_steps * -(-min(wanted, 200) // round_steps)


def _pace(rates: StepRates) -> float:
    """Return images a second by the mean step: what a stall every few steps costs belongs to the pace."""
    return rates.images_per_step / max(fmean(rates.step_s), 1e-9)
