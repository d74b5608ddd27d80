"""Precision over recall, of all classes and of each, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from detronome.report.formats import clean_text, format_fixed
from detronome.report.frame import Chart, EndLabel, draw_framed, label_ends, place, short
from detronome.report.svg import FALLBACK_COLORS, TEXT, series_color

__all__ = ["RecallCurve", "draw_recall"]

_NAMED_CLASSES = 7
"""So many classes have a colour and a label; the others are thin lines behind them."""
_OVERALL_COLOR = len(FALLBACK_COLORS) - 1


@dataclass(frozen=True, kw_only=True)
class RecallCurve:
    """One line: precision at evenly spaced recalls from 0 to 1. Precisions that are not finite are 0."""

    name: str
    precision: Sequence[float]
    average: float
    """AP50, or nan."""


def draw_recall(title: str, curves: Sequence[RecallCurve], overall: RecallCurve | None) -> Chart:
    """Return precision over recall; the best and worst classes are named where there are too many to name all.

    No curve gives a chart that says so.
    """
    order = sorted((c for c in curves if c.precision), key=lambda c: -_or_zero(c.average))
    if not order and overall is None:
        return draw_framed(title, "tall", None, "nothing recorded yet")
    named = order if len(order) <= _NAMED_CLASSES else [*order[:4], *order[-3:]]
    behind = [curve for curve in order if curve not in named]

    def paint(figure: Figure, axes: Axes) -> None:
        labels = []
        for curve in behind:
            axes.plot(*_points(curve), color=TEXT, alpha=0.3, linewidth=0.6)
        for color, curve in enumerate(named):
            labels.append(_draw(axes, curve, color, 1.1))
        if overall is not None:
            labels.append(_draw(axes, overall, _OVERALL_COLOR, 2.4))
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(0.0, 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MultipleLocator(0.25))
        axes.set_xlabel("recall", color=TEXT, labelpad=2)
        axes.set_ylabel("precision", color=TEXT, labelpad=2)
        gap = place(figure, axes, [label.text for label in labels], has_y_label=True)
        label_ends(axes, labels, gap=gap)

    shown = ([overall] if overall else []) + named
    description = ", ".join(f"{clean_text(curve.name)} AP50 {format_fixed(curve.average)}" for curve in shown)
    return draw_framed(title, "tall", paint, description)


def _draw(axes: Axes, curve: RecallCurve, color: int, width: float) -> EndLabel:
    x, y = _points(curve)
    axes.plot(x, y, color=series_color(color), linewidth=width)
    return EndLabel(y=float(y.mean()), text=f"{short(curve.name, 14)} {format_fixed(curve.average)}", color=color)


def _points(curve: RecallCurve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y = np.nan_to_num(np.asarray(curve.precision, dtype=np.float64))
    return np.linspace(0.0, 1.0, len(y)), y


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
