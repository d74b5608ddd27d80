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
    """95 % interval of the median, by bootstrap."""
    num_pairs: int


def speedup_of(ratios: Sequence[float]) -> Speedup:
    """Return the median of some ratios, at least one, with its interval."""
    ordered, n = sorted(ratios), len(ratios)
    lowest = next(i for i in range(n) if _at_most(i, n) >= _TAIL)
    return Speedup(ratio=median(ordered), low=ordered[lowest], high=ordered[n - 1 - lowest], num_pairs=n)


def _at_most(i: int, n: int) -> float:
    """Return how probable it is that the median of n values drawn with replacement from n is at most the one at i.

    This is the bootstrap's distribution, of which random draws would be an estimate.
    """
    part = (i + 1) / n
    return sum(math.comb(n, k) * part**k * (1 - part) ** (n - k) for k in range((n + 1) // 2, n + 1))
