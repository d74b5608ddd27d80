"""One line of a chart: its points, as they are, thinned, or smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOISY_POINTS", "Curve", "Values", "finite", "smooth", "thin"]

Values = NDArray[np.float64]

NOISY_POINTS = 40
"""A noisy curve of fewer points is drawn as it is."""

_SMOOTH_POINTS = 400
"""Points of a smoothed curve: more than a chart has pixels to show."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: its label and points. Points that are not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    """Number of the series colour."""
    best: float | None = None
    """The x of the point to mark as the best."""
    is_noisy: bool = False
    """Draw the values faintly and their moving median over them."""
    is_dashed: bool = False


def finite(curve: Curve) -> tuple[Values, Values]:
    """Return the x and y of the points that are finite."""
    x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def smooth(x: Values, y: Values) -> tuple[Values, Values]:
    """Return the moving median over a twentieth of the points, then averaged: single spikes do not bend it."""
    chunks = np.array_split(np.arange(len(x)), min(len(x), _SMOOTH_POINTS))
    x = np.array([x[chunk].mean() for chunk in chunks])
    y = np.array([np.median(y[chunk]) for chunk in chunks])
    half = max(1, len(x) // 40)
    for average in (np.median, np.mean):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, half, mode="reflect"), 2 * half + 1)
        y = np.asarray(average(windows, axis=1), dtype=np.float64)
    return x, y


def thin(x: Values, y: Values, limit: int) -> tuple[Values, Values]:
    """Return at most about `limit` points; of each stretch its lowest and highest, so that spikes stay."""
    if len(x) <= limit:
        return x, y
    chunks = np.array_split(np.arange(len(x)), limit // 2)
    keep = sorted({int(i) for chunk in chunks for i in (chunk[y[chunk].argmin()], chunk[y[chunk].argmax()])})
    return x[keep], y[keep]
