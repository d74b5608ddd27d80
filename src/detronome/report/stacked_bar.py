"""A whole and its parts, as a bar: shares that add up to the whole, small parts together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Look", "Part", "parts_of"]

Fill = Literal["solid", "striped", "dotted"]

_TENTHS = 1000
"""Of a per cent, in the whole."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a part is named and drawn, the same on the whole page."""

    name: str
    color: int
    """Number of the series colour."""
    fill: Fill = "solid"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a bar."""

    name: str
    value: float
    tenths: int
    """Of a per cent; those of all parts add up to 1000."""
    color: int
    fill: Fill

    @property
    def percent(self) -> str:
        return f"{self.tenths / 10:.1f}%"


def parts_of(values: Mapping[str, float], looks: Mapping[str, Look], *, smallest: float = 0.0) -> list[Part]:
    """Return the parts in the order of `looks`; what has no look keeps its name and comes last.

    Values that are not positive and finite are left out; nothing gives no part.

    Args:
        values: by key.
        looks: by key, in the order of the bar.
        smallest: parts below this share of the whole, 0-1, are shown together as `other`.
    """
    known = {key: float(value) for key, value in values.items() if math.isfinite(value) and value > 0}
    total = sum(known.values())
    order = [key for key in looks if key in known] + [key for key in known if key not in looks]
    large = [key for key in order if known[key] >= smallest * total]
    shown = [(looks.get(key, Look(name=key, color=7)), known[key]) for key in large]
    if other := sum(known[key] for key in order if key not in large):
        shown.append((Look(name="other", color=7), other))
    tenths = _rounded([value / total * _TENTHS for _, value in shown])
    return [
        Part(name=look.name, value=value, tenths=share, color=look.color, fill=look.fill)
        for (look, value), share in zip(shown, tenths, strict=True)
    ]


def _rounded(values: Sequence[float]) -> list[int]:
    """Return whole numbers with the same sum: the largest fractions are rounded up."""
    floors = [math.floor(value) for value in values]
    missing = round(sum(values)) - sum(floors)
    up = sorted(range(len(values)), key=lambda i: floors[i] - values[i])[:missing]
    return [floor + (index in up) for index, floor in enumerate(floors)]
