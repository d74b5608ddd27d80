"""Lines over the epochs, as inline SVG that follows the page's colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from detronome.report.curve import NOISY_POINTS, Curve, Values, finite, smooth, thin
from detronome.report.formats import clean_text, format_fixed, format_significant
from detronome.report.frame import Chart, EndLabel, draw_framed, label_ends, place, short
from detronome.report.svg import ALARM, FALLBACK_COLORS, TEXT, series_color

__all__ = ["Marks", "draw_chart", "set_epochs", "set_values"]

_LOG_RANGE = 20.0
"""A quantity whose largest value is this many times its smallest is drawn on a log scale."""

_DOTTED_POINTS = 12
"""A calm curve of at most this many points shows them as dots."""

_Cleaned = tuple[Curve, Values, Values]


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
        is_large: draw at half a page's width.
        marks: what to mark in the alarm colour.
    """
    cleaned = [(curve, *finite(curve)) for curve in curves]
    cleaned = [item for item in cleaned if len(item[1])]

    def write(value: float) -> str:
        if is_share:
            return f"{100 * value:.0f}%"
        return format_fixed(value) if unit == "AP" else format_significant(value)

    def paint(figure: Figure, axes: Axes) -> None:
        _draw_curves(figure, axes, cleaned, write, floor=floor, allow_log=allow_log, is_share=is_share)
        _draw_marks(axes, marks)

    size = "large" if is_large else "small"
    return draw_framed(title, size, paint if cleaned else None, _describe(cleaned, write, marks))


def set_epochs(axes: Axes) -> None:
    """Label the x axis with epochs, whole ones where there are several."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=high - low > 3, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("epoch", color=TEXT, labelpad=2)


def set_values(axes: Axes, *, is_share: bool = False) -> None:
    """Label the y axis with a few numbers as people read them."""
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_significant(value)))


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
    has_names = len(cleaned) > 1
    labels = []
    for curve, x, y in cleaned:
        end = _draw_curve(axes, curve, x, y)
        text = f"{short(curve.label)} {write(end)}" if has_names else write(end)
        labels.append(EndLabel(y=end, text=text, color=curve.color))
    _set_limits(axes, cleaned, floor=floor, is_log=is_log)
    _set_ticks(axes, is_log=is_log, is_share=is_share)
    gap = place(figure, axes, [label.text for label in labels])
    label_ends(axes, labels, gap=gap)


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
    set_epochs(axes)
    if not is_log:
        set_values(axes, is_share=is_share)
        return
    bottom, top = axes.get_ylim()
    decades = math.log10(top / bottom)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if decades > 2.5 else (1.0, 3.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_significant(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _describe(cleaned: Sequence[_Cleaned], write: Callable[[float], str], marks: Marks) -> str:
    parts = [
        f"{clean_text(curve.label)} from {write(float(y[0]))} to {write(float(y[-1]))}"
        f" ({write(float(y.min()))} to {write(float(y.max()))})"
        for curve, _, y in cleaned
    ]
    if marks.skips:
        parts.append(f"{len(marks.skips)} skipped steps")
    if marks.undone:
        parts.append(f"{len(marks.undone)} rollbacks")
    return f"over the epochs, {'; '.join(parts) or 'nothing recorded yet'}"
