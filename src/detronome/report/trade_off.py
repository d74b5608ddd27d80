"""A picture of accuracy against time: what each way to run a model costs, and which ways nothing beats."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detronome.report.formats import clean_text
from detronome.report.svg import FALLBACK_COLORS

__all__ = ["TradeOff", "draw_trade_offs"]

_SIZE_IN = (8.0, 5.0)
_DPI = 130
_TEXT = "#3a3f47"
_GRID = "#e4e7eb"
_LABEL_PT = 8.0
_LABEL_GAP_PX = (170.0, 20.0)
"""Labels whose points are nearer to each other than this, across and upwards, would overlap."""


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """One point of the picture."""

    group: str
    """Points of a group have one colour, which the legend names."""
    label: str
    """Written beside points of the front where there is room."""
    time: float
    """Of one image, in parts of what the point of comparison takes."""
    time_interval: tuple[float, float]
    """95 % interval of it."""
    quality: float
    """0-1."""
    is_on_front: bool
    """No other point is both faster and as accurate."""
    is_recommended: bool = False


def draw_trade_offs(points: Sequence[TradeOff], *, metric: str) -> bytes:
    """Return a PNG of at least one point; the front is joined by a line, and the recommended point is ringed."""
    figure = Figure(figsize=_SIZE_IN, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    front = sorted((point for point in points if point.is_on_front), key=lambda point: point.time)
    axes.plot([p.time for p in front], [p.quality for p in front], color=_TEXT, alpha=0.4, linewidth=1.2, zorder=1)
    for number, group in enumerate(dict.fromkeys(point.group for point in points)):
        _draw_group(axes, [p for p in points if p.group == group], clean_text(group), number)
    for point in points:
        if point.is_recommended:
            axes.plot(point.time, point.quality, "o", markersize=16, markerfacecolor="none", markeredgecolor=_TEXT)
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("time of an image, the whole model's is 1; median and 95 %", color=_TEXT)
    axes.set_ylabel(metric, color=_TEXT)
    axes.legend(frameon=False, labelcolor=_TEXT)
    figure.draw_without_rendering()  # places the axes, and so the points
    _label(axes, sorted(front, key=lambda point: not point.is_recommended))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _draw_group(axes: Axes, points: Sequence[TradeOff], name: str, number: int) -> None:
    color = FALLBACK_COLORS[number % len(FALLBACK_COLORS)]
    for point in points:
        alpha = 1.0 if point.is_on_front else 0.4
        axes.plot(point.time_interval, [point.quality] * 2, color=color, alpha=0.5 * alpha, linewidth=1.2)
        axes.plot(point.time, point.quality, "o", color=color, markersize=7, alpha=alpha)
    axes.plot([], [], "o", color=color, label=name)


def _label(axes: Axes, points: Sequence[TradeOff]) -> None:
    """Write labels beside points, but where one that comes first would be covered."""
    taken: list[tuple[float, float]] = []
    for point in points:
        x, y = axes.transData.transform((point.time, point.quality))
        if any(abs(x - a) < _LABEL_GAP_PX[0] and abs(y - b) < _LABEL_GAP_PX[1] for a, b in taken):
            continue
        taken.append((x, y))
        axes.annotate(
            clean_text(point.label) + (" (recommended)" if point.is_recommended else ""),
            (point.time, point.quality),
            xytext=(6, -14),
            textcoords="offset points",
            fontsize=_LABEL_PT,
            color=_TEXT,
            parse_math=False,
        )


def _style(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_GRID)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=_TEXT)
