"""Layers over the epochs that add up to a whole, as inline SVG: what each section takes of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from detronome.report.chart import set_epochs, set_values
from detronome.report.formats import format_significant
from detronome.report.frame import Chart, EndLabel, draw_framed, label_ends, place, short
from detronome.report.stacked_bar import Look
from detronome.report.svg import TEXT, series_color

__all__ = ["draw_stack"]

_SMALLEST = 0.01
"""Layers that are smaller than this part of the whole over all epochs are drawn together."""
_MAX_POINTS = 120
_TOP_PERCENTILE = 99.0
"""Rare peaks (workers starting) leave the frame at the top instead of pressing everything else flat."""

_OPACITY = {"solid": 0.85, "striped": 0.5, "dotted": 0.3}

_Layers = Mapping[str, NDArray[np.float64]]


def draw_stack(
    title: str, epochs: Sequence[float], values: Mapping[str, Sequence[float]], looks: Mapping[str, Look], *, unit: str
) -> Chart:
    """Return the values stacked over the epochs, each layer labelled with its name and mean at the right.

    Many points are averaged over stretches: means add up, as medians would not. Nothing to draw gives a chart that says
    so.

    Args:
        title: what is drawn.
        epochs: where the values were taken; those that are not finite are left out.
        values: by layer, as many as epochs; what is not finite or negative counts as 0.
        looks: name and colour by layer, in the order from below.
        unit: of the values, written at the axis.
    """
    x = np.asarray(epochs, dtype=np.float64)
    keep = np.isfinite(x)
    layers: _Layers = {name: np.asarray(column, dtype=np.float64)[keep] for name, column in values.items()}
    layers = {name: np.where(np.isfinite(y) & (y > 0), y, 0.0) for name, y in layers.items()}
    x, layers = _averaged(x[keep], layers)
    shown = _ordered(layers, looks)
    if not len(x) or not shown:
        return draw_framed(title, "large", None, "nothing recorded yet")

    def paint(figure: Figure, axes: Axes) -> None:
        _paint(figure, axes, x, shown, unit)

    means = ", ".join(f"{look.name} {format_significant(float(y.mean()))} {unit}" for look, y in shown)
    return draw_framed(title, "large", paint, f"over the epochs, on average {means}")


def _paint(
    figure: Figure, axes: Axes, x: NDArray[np.float64], shown: Sequence[tuple[Look, NDArray[np.float64]]], unit: str
) -> None:
    if len(x) == 1:  # one record is a bar
        x = np.array([x[0] - 0.5, x[0] + 0.5])
        shown = [(look, np.repeat(y, 2)) for look, y in shown]
    below = np.zeros_like(x)
    labels = []
    for look, y in shown:
        axes.fill_between(
            x, below, below + y, facecolor=series_color(look.color), alpha=_OPACITY[look.fill], linewidth=0.0
        )
        text = f"{short(look.name, 22)} {format_significant(float(y.mean()))}"
        labels.append(EndLabel(y=float(below[-1] + y[-1] / 2), text=text, color=look.color))
        below = below + y
    axes.set_xlim(float(x[0]), float(x[-1]))
    axes.set_ylim(0.0, 1.05 * float(np.percentile(below, _TOP_PERCENTILE)))
    set_epochs(axes)
    set_values(axes)
    axes.set_ylabel(unit, color=TEXT)
    gap = place(figure, axes, [label.text for label in labels], has_y_label=True)
    label_ends(axes, labels, gap=gap)


def _averaged(x: NDArray[np.float64], layers: _Layers) -> tuple[NDArray[np.float64], _Layers]:
    if len(x) <= _MAX_POINTS:
        return x, layers
    chunks = np.array_split(np.arange(len(x)), _MAX_POINTS)

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([values[chunk].mean() for chunk in chunks])

    return means(x), {name: means(y) for name, y in layers.items()}


def _ordered(layers: _Layers, looks: Mapping[str, Look]) -> list[tuple[Look, NDArray[np.float64]]]:
    """Return the layers in the order of the looks, unknown ones last, and all the small ones as one."""
    total = sum(float(y.sum()) for y in layers.values())
    order = [name for name in looks if name in layers] + [name for name in layers if name not in looks]
    large = [name for name in order if float(layers[name].sum()) > _SMALLEST * total]
    shown = [(looks.get(name, Look(name=name, color=7)), layers[name]) for name in large]
    small = [layers[name] for name in order if name not in large and layers[name].any()]
    if small:
        shown.append((Look(name="other", color=7, fill="dotted"), np.sum(small, axis=0)))
    return shown
