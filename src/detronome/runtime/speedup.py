"""How many times as fast one thing is as another, from ratios that were measured in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Speedup", "speedup_of"]

_TAIL = 0.025


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times as fast one configuration is as another."""

    ratio: float
    """Median over the pairs of blocks."""
    low: float
    high: float
    """Interval that holds the true median with at least 95 %."""
    num_pairs: int


def speedup_of(ratios: Sequence[float]) -> Speedup:
    """Return the median of some ratios, at least one, with its interval; of fewer than six it holds less than 95 %."""
    ordered, n = sorted(ratios), len(ratios)
    cut = max((i for i in range((n + 1) // 2) if _at_most(i, n) <= _TAIL), default=0)
    return Speedup(ratio=median(ordered), low=ordered[cut], high=ordered[n - 1 - cut], num_pairs=n)


def _at_most(i: int, n: int) -> float:
    """Return how probable it is that at most i of n values lie below the true median: each does so by even chance,
    whatever their distribution."""
    return sum(math.comb(n, k) for k in range(i + 1)) / 2**n
