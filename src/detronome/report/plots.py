"""Curves of a run as inline SVG that follows the page's colours, light or dark.

Drawn with matplotlib's object interface: no window, no pyplot state. Colours are written as CSS variables
(`--series-0` ... `--series-7`, with fallbacks) and text as `currentColor`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from detronome.report.formats import clean_text, format_fixed, format_significant

__all__ = ["Chart", "Curve", "compare_charts", "draw_chart", "run_charts"]

Record = Mapping[str, Any]

FALLBACK_COLORS = ("#3b78d8", "#e07b28", "#2a9d74", "#9a64d4", "#d6486f", "#1f97ab", "#a98412", "#7c8694")
"""The colours of curves where a page does not set `--series-0` to `--series-7`: readable on white and on black."""

_LOG_RANGE = 20.0
"""A quantity whose largest value is this many times its smallest is drawn on a log scale."""

_NOISY_POINTS = 40
"""A noisy curve of fewer points is drawn as it is."""

_DOTTED_POINTS = 12
"""A calm curve of at most this many points shows them as dots."""

_SMOOTH_POINTS = 400
"""Points of a smoothed curve: more than a chart has pixels to show."""

# Colours that stand for CSS until the SVG is written; no data can contain them, only style attributes are replaced.
_TEXT, _GRID, _ALARM, _SERIES = "#0a0c00", "#0a0c01", "#0a0c02", "#0a0b{:02x}"
_FONT_PT = 8.0


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


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawn chart, ready for a page."""

    title: str
    svg: str
    is_large: bool = False


def run_charts(records: Sequence[Record]) -> list[Chart]:
    """Return the charts of one run, those without a single value left out. No record gives no chart."""
    steps = [record for record in records if record["kind"] == "step"]
    evaluations = list({r.get("step"): r for r in records if r["kind"] == "eval"}.values())
    skips = [_number(record.get("epoch")) for record in records if record["kind"] == "skip"]
    epochs, eval_epochs = _column(steps, "epoch"), _column(evaluations, "epoch")
    marked = [_number(record.get("epoch")) for record in evaluations if record.get("is_best")]
    best = marked[-1] if marked else None

    def by_name(group: str) -> list[Curve]:
        names = dict.fromkeys(name for record in steps for name in record.get(group) or {})
        return [
            Curve(label=name, x=epochs, y=[_number((r.get(group) or {}).get(name)) for r in steps], color=color)
            for color, name in enumerate(names)
        ]

    def noisy(label: str, values: Sequence[float], color: int) -> list[Curve]:
        return [Curve(label=label, x=epochs, y=values, color=color, is_noisy=True)]

    waits = [
        _share(wait_s, step_s)
        for wait_s, step_s in zip(_column(steps, "data_wait_s"), _column(steps, "step_s"), strict=True)
    ]
    metrics = [
        Curve(
            label=name,
            x=eval_epochs,
            y=[_number((r.get("metrics") or {}).get(name)) for r in evaluations],
            color=color,
            best=best if name == "AP" else None,
        )
        for color, name in enumerate(("AP", "AP50", "AP75"))
    ]
    terms = [Curve(label=c.label, x=c.x, y=c.y, color=c.color, is_noisy=True) for c in by_name("losses")]
    memory = [value / 2**30 for value in _column(steps, "memory_bytes")]
    drawn = [
        _chart("Average precision", metrics, unit="AP", floor=0.0, is_large=True),
        _chart("Loss", noisy("loss", _column(steps, "loss"), 0), allow_log=True, alarms=skips, is_large=True),
        _chart("Loss terms, unweighted", terms, allow_log=True),
        _chart("Gradient norm", noisy("norm", _column(steps, "grad_norm"), 3), allow_log=True, alarms=skips),
        _chart("Learning rate", by_name("learning_rates"), allow_log=True),
        _chart("Images per second", noisy("images/s", _column(steps, "images_per_s"), 2), floor=0.0),
        _chart("Waiting for data", noisy("wait", waits, 1), floor=0.0, is_share=True),
        _chart("Peak memory, GiB", [Curve(label="GiB", x=epochs, y=memory, color=5)], floor=0.0),
    ]
    return [chart for chart in drawn if chart is not None]


def compare_charts(runs: Mapping[str, Sequence[Record]]) -> list[Chart]:
    """Return AP and loss of several runs over one another, by the run's name."""
    metrics, losses = [], []
    for color, (name, records) in enumerate(runs.items()):
        evaluations = [record for record in records if record["kind"] == "eval"]
        steps = [record for record in records if record["kind"] == "step"]
        metrics.append(
            Curve(
                label=name,
                x=_column(evaluations, "epoch"),
                y=[_number((r.get("metrics") or {}).get("AP")) for r in evaluations],
                color=color,
            )
        )
        x, y = _finite(Curve(label=name, x=_column(steps, "epoch"), y=_column(steps, "loss")))
        x, y = _smooth(x, y) if len(x) >= _NOISY_POINTS else (x, y)  # the noise of several would hide them all
        losses.append(Curve(label=name, x=x.tolist(), y=y.tolist(), color=color))
    drawn = [
        _chart("AP", metrics, unit="AP", floor=0.0, is_large=True),
        _chart("Loss", losses, allow_log=True, is_large=True),
    ]
    return [chart for chart in drawn if chart is not None]


def draw_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    floor: float | None = None,
    allow_log: bool = False,
    is_share: bool = False,
    is_large: bool = False,
    alarms: Sequence[float] = (),
) -> str:
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
        alarms: epochs to mark at the bottom in the alarm colour (skipped steps).
    """
    cleaned = [(curve, *_finite(curve)) for curve in curves]
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
            if alarms:
                axes.plot(
                    alarms,
                    [0.0] * len(alarms),
                    transform=axes.get_xaxis_transform(),
                    clip_on=False,
                    color=_ALARM,
                    linestyle="none",
                    marker="|",
                    markersize=7,
                    markeredgewidth=1.4,
                )
        else:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "nothing recorded yet", ha="center", va="center", color=_TEXT)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), _describe(title, cleaned, write, len(alarms)))


def _chart(
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    floor: float | None = None,
    allow_log: bool = False,
    is_share: bool = False,
    is_large: bool = False,
    alarms: Sequence[float] = (),
) -> Chart | None:
    if not any(len(_finite(curve)[0]) for curve in curves):
        return None
    svg = draw_chart(
        title,
        curves,
        unit=unit,
        floor=floor,
        allow_log=allow_log,
        is_share=is_share,
        is_large=is_large,
        alarms=[epoch for epoch in alarms if math.isfinite(epoch)],
    )
    return Chart(title=title, svg=svg, is_large=is_large)


_Cleaned = tuple[Curve, NDArray[np.float64], NDArray[np.float64]]


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


def _draw_curve(axes: Axes, curve: Curve, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Draw one curve and return the value it ends at."""
    color = _series_color(curve.color)
    dashes = "-" if curve.color < len(FALLBACK_COLORS) else "--"
    if len(x) == 1:
        axes.plot(x, y, color=color, marker="o", markersize=4.5, linestyle="none")
    elif curve.is_noisy and len(x) >= _NOISY_POINTS:
        axes.plot(*_thin(x, y, 500), color=color, linewidth=0.7, alpha=0.28)
        x, y = _smooth(x, y)
        axes.plot(x, y, color=color, linewidth=1.5, linestyle=dashes)
    else:
        marker = "o" if len(x) <= _DOTTED_POINTS and not curve.is_noisy else ""
        axes.plot(*_thin(x, y, 500), color=color, linewidth=1.5, linestyle=dashes, marker=marker, markersize=2.4)
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
    axes.spines["bottom"].set(color=_GRID, linewidth=0.8)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, labelcolor=_TEXT, labelsize=_FONT_PT, pad=4)


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
    axes.set_xlabel("epoch", color=_TEXT, labelpad=2)
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
            color=_series_color(ends[index][2]), parse_math=False,
        )  # fmt: skip


def _series_color(number: int) -> str:
    return _SERIES.format(number % len(FALLBACK_COLORS))


def _short(label: str) -> str:
    label = clean_text(label)
    return label if len(label) <= 20 else f"{label[:19]}…"


def _inline(document: str, description: str) -> str:
    """Return the SVG element alone, scaling with its container, in the page's colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to them, and a page holds many charts
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view_box[1]}" role="img" aria-label="{escape(description)}">'
    )
    svg = opening + svg[svg.index(">") + 1 :]

    def to_css(match: re.Match[str]) -> str:
        number = int(match[2], 16)
        return f"{match[1]}var(--series-{number}, {FALLBACK_COLORS[number]})"

    svg = re.sub(r"((?:fill|stroke): ?)#0a0b([0-9a-f]{2})", to_css, svg)
    for sentinel, css in (
        (_TEXT, "currentColor"),
        (_GRID, "var(--chart-grid, #8884)"),
        (_ALARM, "var(--alarm, #d6336c)"),
    ):
        svg = re.sub(rf"((?:fill|stroke): ?){sentinel}", rf"\g<1>{css}", svg)
    return svg.strip()


def _describe(title: str, cleaned: Sequence[_Cleaned], write: Callable[[float], str], num_alarms: int) -> str:
    parts = [
        f"{clean_text(curve.label)} from {write(float(y[0]))} to {write(float(y[-1]))}"
        f" ({write(float(y.min()))} to {write(float(y.max()))})"
        for curve, _, y in cleaned
    ]
    if num_alarms:
        parts.append(f"{num_alarms} skipped steps")
    return f"{clean_text(title)} over the epochs: {'; '.join(parts) or 'nothing recorded yet'}"


def _finite(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def _smooth(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the moving median over a twentieth of the points, then averaged: single spikes do not bend it."""
    chunks = np.array_split(np.arange(len(x)), min(len(x), _SMOOTH_POINTS))
    x = np.array([x[chunk].mean() for chunk in chunks])
    y = np.array([np.median(y[chunk]) for chunk in chunks])
    half = max(1, len(x) // 40)
    for average in (np.median, np.mean):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, half, mode="reflect"), 2 * half + 1)
        y = np.asarray(average(windows, axis=1), dtype=np.float64)
    return x, y


def _thin(
    x: NDArray[np.float64], y: NDArray[np.float64], limit: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most about `limit` points; of each stretch its lowest and highest, so that spikes stay."""
    if len(x) <= limit:
        return x, y
    chunks = np.array_split(np.arange(len(x)), limit // 2)
    keep = sorted({int(i) for chunk in chunks for i in (chunk[y[chunk].argmin()], chunk[y[chunk].argmax()])})
    return x[keep], y[keep]


def _column(records: Sequence[Record], name: str) -> list[float]:
    return [_number(record.get(name)) for record in records]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
