"""One chart as inline SVG that follows the page's colours, light or dark.

Drawn with matplotlib's object interface: no window, no pyplot state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from detronome.report.curve import NOISY_POINTS, Curve, Values, finite, smooth, thin
from detronome.report.formats import clean_text, format_fixed, format_significant
from detronome.report.svg import ALARM, FALLBACK_COLORS, GRID, TEXT, inline, series_color

__all__ = ["Chart", "Marks", "draw_chart"]

_LOG_RANGE = 20.0
"""A quantity whose largest value is this many times its smallest is drawn on a log scale."""

_DOTTED_POINTS = 12
"""A calm curve of at most this many points shows them as dots."""

_FONT_PT = 8.0

_Cleaned = tuple[Curve, Values, Values]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawn chart, ready for a page."""

    title: str
    svg: str
    is_large: bool = False
    is_empty: bool = False
    """No curve had a point: the chart says so."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Where on the way something went wrong, in epochs; all finite."""

    skips: Sequence[float] = ()
    """Skipped steps: ticks at the bottom."""
    undone: Sequence[tuple[float, float]] = ()
    """Rollbacks, from where the run went on to where it had been: a tinted stretch."""


NO_MARKS = Marks()


def draw_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    floor: float | None = None,
    allow_log: bool = False,
    is_share: bool = False,
    is_large: bool = False,
    marks: Marks = NO_MARKS,
) -> Chart:
    """Return the curves over the epochs as an SVG element with a text alternative.

    No point at all gives a chart that says so; a single point is drawn as a dot.

    Args:
        title: what is drawn, for the text alternative.
        curves: the lines, each labelled at its right end.
        unit: `AP` writes values with three decimals; otherwise three significant digits.
        floor: the lower end of the axis at most.
        allow_log: use a log scale where the values span more than a factor of 20.
        is_share: values are 0-1 and written as percent.
        is_large: draw at double width.
        marks: what to mark in the alarm colour.
    """
    cleaned = [(curve, *finite(curve)) for curve in curves]
    cleaned = [item for item in cleaned if len(item[1])]

    def write(value: float) -> str:
        if is_share:
            return f"{100 * value:.0f}%"
        return format_fixed(value) if unit == "AP" else format_significant(value)

    # The settings of SVG text and ids exist only as rcParams; the context puts them back.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": _FONT_PT}):
        size = (4.4, 2.35) if is_large else (3.5, 2.05)
        figure = Figure(figsize=size, facecolor="none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        _style(axes)
        if cleaned:
            _draw_curves(figure, axes, cleaned, write, floor=floor, allow_log=allow_log, is_share=is_share)
            _draw_marks(axes, marks)
        else:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "nothing recorded yet", ha="center", va="center", color=TEXT)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = inline(buffer.getvalue(), _describe(title, cleaned, write, marks))
    return Chart(title=title, svg=svg, is_large=is_large, is_empty=not cleaned)


def _draw_marks(axes: Axes, marks: Marks) -> None:
    for start, end in marks.undone:
        axes.axvspan(start, end, facecolor=ALARM, edgecolor="none", alpha=0.14, zorder=0)
    axes.plot(
        marks.skips,
        [0.0] * len(marks.skips),
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        color=ALARM,
        linestyle="none",
        marker="|",
        markersize=7,
        markeredgewidth=1.4,
    )


def _draw_curves(
    figure: Figure,
    axes: Axes,
    cleaned: Sequence[_Cleaned],
    write: Callable[[float], str],
    *,
    floor: float | None,
    allow_log: bool,
    is_share: bool,
) -> None:
    values = np.concatenate([y for _, _, y in cleaned])
    is_log = allow_log and values.min() > 0 and values.max() / values.min() > _LOG_RANGE
    if is_log:
        axes.set_yscale("log")
    ends: list[tuple[float, str, int]] = []
    for curve, x, y in cleaned:
        ends.append((_draw_curve(axes, curve, x, y), curve.label, curve.color))
    _set_limits(axes, cleaned, floor=floor, is_log=is_log)
    _set_ticks(axes, is_log=is_log, is_share=is_share)

    has_names = len(cleaned) > 1
    labels = [f"{_short(label)} {write(y)}" if has_names else write(y) for y, label, _ in ends]
    width_pt, height_pt = figure.get_size_inches() * 72
    right = min(0.42, (0.58 * _FONT_PT * max(map(len, labels)) + 7) / width_pt)
    left, bottom, top = 34 / width_pt, 25 / height_pt, 9 / height_pt
    axes.set_position((left, bottom, 1 - left - right, 1 - bottom - top))
    _label_ends(axes, ends, labels, gap=_FONT_PT * 1.25 / (height_pt * (1 - bottom - top)))


def _draw_curve(axes: Axes, curve: Curve, x: Values, y: Values) -> float:
    """Draw one curve and return the value it ends at."""
    color = series_color(curve.color)
    dashes = "--" if curve.is_dashed or curve.color >= len(FALLBACK_COLORS) else "-"
    if len(x) == 1:
        axes.plot(x, y, color=color, marker="o", markersize=4.5, linestyle="none")
    elif curve.is_noisy and len(x) >= NOISY_POINTS:
        axes.plot(*thin(x, y, 500), color=color, linewidth=0.7, alpha=0.28)
        x, y = smooth(x, y)
        axes.plot(x, y, color=color, linewidth=1.5, linestyle=dashes)
    else:
        marker = "o" if len(x) <= _DOTTED_POINTS and not curve.is_noisy else ""
        axes.plot(*thin(x, y, 500), color=color, linewidth=1.5, linestyle=dashes, marker=marker, markersize=2.4)
    if curve.best is not None and len(x) > 1:
        index = int(np.argmin(np.abs(x - curve.best)))
        _mark_best(axes, float(x[index]), float(y[index]), color, is_left=index < len(x) / 2)
    return float(y[-1])


def _mark_best(axes: Axes, x: float, y: float, color: str, *, is_left: bool) -> None:
    """Ring the best point and name it at the foot of a line dropped from it, where no curve runs."""
    axes.plot(x, y, marker="o", markersize=7.5, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.5)
    axes.plot([x, x], [0.0, y], color=color, linewidth=0.8, linestyle=(0, (2, 2)), alpha=0.7)
    axes.annotate(
        f"best {format_fixed(y)}",
        (x, 0.03),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5 if is_left else -5, 0),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="bottom",
        color=color,
        fontweight="bold",
    )


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=GRID, linewidth=0.8)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, labelcolor=TEXT, labelsize=_FONT_PT, pad=4)


def _set_limits(axes: Axes, cleaned: Sequence[_Cleaned], *, floor: float | None, is_log: bool) -> None:
    x = np.concatenate([x for _, x, _ in cleaned])
    x_span = float(x.max() - x.min())
    pad = 0.02 * x_span if x_span > 0 else 0.5
    axes.set_xlim(float(x.min()) - pad, float(x.max()) + pad)
    # Rare spikes of a noisy curve would press everything else flat: they leave the frame at the top.
    noisy = [np.percentile(y, 99.5) * 1.1 for curve, _, y in cleaned if curve.is_noisy and len(y) >= 200]
    calm = [y.max() for curve, _, y in cleaned if not (curve.is_noisy and len(y) >= 200)]
    top = float(max(noisy + calm))
    low = float(min(y.min() for _, _, y in cleaned))
    if is_log:
        axes.set_ylim(low / 1.15, top * 1.25)
        return
    low = low if floor is None else min(floor, low)
    span = top - low if top > low else max(abs(top), 1.0) * 0.1
    axes.set_ylim(low - (0.0 if floor is not None and low == floor else 0.06 * span), low + 1.08 * span)


def _set_ticks(axes: Axes, *, is_log: bool, is_share: bool) -> None:
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=high - low > 3, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("epoch", color=TEXT, labelpad=2)
    if is_log:
        bottom, top = axes.get_ylim()
        decades = math.log10(top / bottom)
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if decades > 2.5 else (1.0, 3.0), numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_significant(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_significant(value)))


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, int]], labels: Sequence[str], *, gap: float) -> None:
    """Write each curve's label at its right end, pushed apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    wanted = [min(max(float(to_axes.transform((x, y))[1]), 0.0), 1.0) for y, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: wanted[i])
    heights: list[float] = []
    for index in order:
        heights.append(max(wanted[index], heights[-1] + gap) if heights else wanted[index])
    ceiling = 1.0
    for rank in reversed(range(len(heights))):  # what was pushed out at the top goes back down
        heights[rank] = min(heights[rank], ceiling)
        ceiling = heights[rank] - gap
    for rank, index in enumerate(order):
        axes.text(
            1.015, heights[rank], labels[index], transform=axes.transAxes, va="center", ha="left",
            color=series_color(ends[index][2]), parse_math=False,
        )  # fmt: skip


def _short(label: str) -> str:
    label = clean_text(label)
    return label if len(label) <= 20 else f"{label[:19]}…"


def _describe(title: str, cleaned: Sequence[_Cleaned], write: Callable[[float], str], marks: Marks) -> str:
    parts = [
        f"{clean_text(curve.label)} from {write(float(y[0]))} to {write(float(y[-1]))}"
        f" ({write(float(y.min()))} to {write(float(y.max()))})"
        for curve, _, y in cleaned
    ]
    if marks.skips:
        parts.append(f"{len(marks.skips)} skipped steps")
    if marks.undone:
        parts.append(f"{len(marks.undone)} rollbacks")
    return f"{clean_text(title)} over the epochs: {'; '.join(parts) or 'nothing recorded yet'}"
