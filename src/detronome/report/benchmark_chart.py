"""The picture of a benchmark: AP against latency, and images a second by form."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from detronome.report.formats import clean_text, format_significant
from detronome.report.svg import FALLBACK_COLORS
from detronome.runtime.files import write_atomic

__all__ = ["BenchmarkPoint", "save_benchmark"]

_INK, _FAINT, _GRID, _GOOD = "#22262e", "#6d7480", "#e3e6ea", "#e4f4ea"
_MARKERS = {"fp32": "o", "bf16": "s", "fp16": "^", "int8": "D"}
_FONT_PT = 9.0
_CHAR_EM = 0.58
"""Mean width of a character."""
_TICKS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
_DPI = 160
_Rect = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class BenchmarkPoint:
    """One form at one batch size."""

    form: str
    backend: str
    precision: str
    batch_size: int
    ms: float
    """Median of a call, from files to detections."""
    quartiles_ms: tuple[float, float]
    images_per_s: float
    speedup: float | None
    """How many times as fast as the first form, the whole path; None for that form."""
    ap: float | None
    """0-1; None or nan where it was not measured."""
    is_recommended: bool = False


def save_benchmark(points: Sequence[BenchmarkPoint], folder: Path, *, title: str, tolerance: float) -> list[Path]:
    """Write `benchmark.png` and `benchmark.svg`; nothing where there is no point.

    Args:
        points: in the order of the table; the first is what the others are compared with.
        folder: where to write.
        title: of the picture: model, data, machine.
        tolerance: AP that a form may lose against the first and still count as its equal.
    """
    if not points:
        return []
    has_ap = any(_is_number(point.ap) for point in points)
    forms = list(dict.fromkeys(point.form for point in points))
    smallest = min(point.batch_size for point in points)
    height = max(4.2, 1.6 + 0.2 * len(points) + 0.12 * len(forms))
    files = []
    with rc_context({"font.size": _FONT_PT, "svg.fonttype": "none", "svg.hashsalt": "benchmark", "text.color": _INK}):
        figure = Figure(figsize=(11.5 if has_ap else 6.6, height), facecolor="white", layout="constrained")
        panels = figure.subplots(1, 2, width_ratios=(1.35, 1.0), squeeze=False)[0] if has_ap else [figure.subplots()]
        figure.suptitle(
            clean_text(title), x=0.012, ha="left", fontsize=_FONT_PT + 2, fontweight="bold", parse_math=False
        )
        colors = _colors(points)
        if has_ap:
            figure.draw_without_rendering()  # labels are placed where the axes will be
            _draw_accuracy(panels[0], [p for p in points if p.batch_size == smallest], colors, tolerance=tolerance)
        _draw_rates(panels[-1], points, forms, colors)
        if has_ap:
            figure.draw_without_rendering()
            _label_points(panels[0], [p for p in points if p.batch_size == smallest and _is_number(p.ap)], colors)
        for suffix in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == "svg" else {}
            figure.savefig(buffer, format=suffix, dpi=_DPI, metadata=metadata)
            write_atomic(folder / f"benchmark.{suffix}", buffer.getvalue())
            files.append(folder / f"benchmark.{suffix}")
    return files


def _draw_accuracy(axes: Axes, points: Sequence[BenchmarkPoint], colors: dict[str, str], *, tolerance: float) -> None:
    shown = [point for point in points if _is_number(point.ap)]
    first = shown[0].ap or 0.0
    aps = [point.ap or 0.0 for point in shown]
    low, high = min(*aps, first - tolerance), max(*aps, first)
    room = max(0.45 * (high - low), 0.4 * tolerance)
    axes.set_ylim(low - room, high + room)
    axes.axhspan(first - tolerance, high + room, color=_GOOD, zorder=0, linewidth=0)
    axes.text(
        0.995, first - tolerance, f"AP of {shown[0].form} less {tolerance:g} ", color=_FAINT, va="bottom", ha="right",
        fontsize=_FONT_PT - 1, transform=axes.get_yaxis_transform(), parse_math=False,
    )  # fmt: skip
    front = _front(shown)
    axes.plot([p.ms for p in front], [p.ap or 0.0 for p in front], color=_FAINT, linewidth=1.0, linestyle=":", zorder=2)
    for point in shown:
        color, ap = colors[point.backend], point.ap or 0.0
        axes.plot(
            point.quartiles_ms, (ap, ap), color=color, linewidth=2.0, alpha=0.45, solid_capstyle="round", zorder=3
        )
        axes.plot(
            point.ms, ap, _MARKERS.get(point.precision, "o"), color=color, markersize=11 if point.is_recommended else 8,
            markeredgecolor=_INK if point.is_recommended else "white", markeredgewidth=1.4, zorder=4,
        )  # fmt: skip
    _scale_latency(axes, [ms for point in shown for ms in (point.ms, *point.quartiles_ms)])
    _style(axes)
    axes.set_xlabel(f"ms from file to detections, batch {shown[0].batch_size} (bar: middle half of the calls)")
    axes.set_ylabel("AP")
    _add_legend(axes, shown, colors)


def _draw_rates(axes: Axes, points: Sequence[BenchmarkPoint], forms: Sequence[str], colors: dict[str, str]) -> None:
    """Draw a bar for each form and batch size, a group for each form."""
    sizes = sorted({point.batch_size for point in points})
    top, heights, names = 0.0, [], []
    largest = max(point.images_per_s for point in points)
    for form in forms:
        group = [point for point in points if point.form == form]
        heights.append(top + (len(group) - 1) / 2)
        names.append(form)
        for point in group:
            share = (sizes.index(point.batch_size) + 1) / len(sizes)
            axes.barh(top, point.images_per_s, height=0.82, color=colors[point.backend], alpha=0.4 + 0.6 * share)
            times = f"  ({point.speedup:.2f}x)" if point.speedup is not None else ""
            batch = f"batch {point.batch_size}:  " if len(sizes) > 1 else ""
            axes.text(
                point.images_per_s + 0.012 * largest, top, f"{batch}{format_significant(point.images_per_s)}{times}",
                va="center", ha="left", color=_INK, fontsize=_FONT_PT - 1,
                fontweight="bold" if point.is_recommended else "normal",
            )  # fmt: skip
            top += 1.0
        top += 0.5
    axes.set_yticks(heights, [clean_text(name) for name in names], parse_math=False)
    axes.set_ylim(top - 0.9, -0.7)
    axes.set_xlim(0, 1.5 * largest)
    _style(axes)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"images/s from file to detections (x: as fast as {clean_text(forms[0])})", parse_math=False)


def _label_points(axes: Axes, points: Sequence[BenchmarkPoint], colors: dict[str, str]) -> None:
    """Write each form's name beside its point, where it hides nothing; a thin line leads there from farther away."""
    scale = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]  # axes on a figure
    spots = [tuple(axes.transData.transform((point.ms, point.ap or 0.0))) for point in points]
    taken: list[_Rect] = [(x - 6 * scale, y - 6 * scale, x + 6 * scale, y + 6 * scale) for x, y in spots]
    for point, (_, y) in zip(points, spots, strict=True):
        left, right = (axes.transData.transform((ms, 0.0))[0] for ms in point.quartiles_ms)
        taken.append((left, y - 2 * scale, right, y + 2 * scale))
    box = axes.get_window_extent()
    for point, (x, y) in sorted(zip(points, spots, strict=True), key=lambda item: item[1]):
        text = clean_text(point.form)
        width, height = _CHAR_EM * _FONT_PT * len(text) * scale, 1.25 * _FONT_PT * scale
        rect = _free_place((x, y), (width, height), taken, (box.x0, box.y0, box.x1, box.y1), scale)
        taken.append(rect)
        centre = ((rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2)
        to_data = axes.transData.inverted().transform
        if math.dist(centre, (x, y)) > 0.5 * width + 14 * scale or abs(centre[1] - y) > 20 * scale:
            end = (min(max(x, rect[0]), rect[2]), min(max(y, rect[1]), rect[3]))
            (x0, y0), (x1, y1) = to_data((x, y)), to_data(end)
            axes.plot((x0, x1), (y0, y1), color=colors[point.backend], linewidth=0.7, alpha=0.6, zorder=1.5)
        x_text, y_text = to_data(centre)
        axes.text(
            x_text, y_text, text, ha="center", va="center", color=colors[point.backend], zorder=5,
            fontweight="bold" if point.is_recommended else "normal", parse_math=False,
        )  # fmt: skip


def _free_place(
    spot: tuple[float, float], size: tuple[float, float], taken: Sequence[_Rect], bounds: _Rect, scale: float
) -> _Rect:
    """Return the nearest of some places around a point that overlaps the least with what is there."""
    (x, y), (width, height) = spot, size
    best: tuple[float, _Rect] | None = None
    for distance in (10, 20, 32, 46, 62, 80):
        for sideways in (0.0, 1.0, -1.0, 0.5, -0.5):
            for upwards in (1.0, -1.0, 0.0):
                if sideways == upwards == 0.0:
                    continue
                left = x - width / 2 + sideways * (width / 2 + distance * scale * (1.0 if upwards == 0.0 else 0.4))
                bottom = y - height / 2 + upwards * (height / 2 + distance * scale * 0.6)
                rect = (left, bottom, left + width, bottom + height)
                hidden = sum(_overlap(rect, other) for other in taken) / (width * height)
                outside = 1.0 - _overlap(rect, bounds) / (width * height)
                cost = 10 * hidden + 20 * outside + distance / 40 + 0.15 * abs(sideways) + 0.05 * (upwards != 1.0)
                if best is None or cost < best[0]:
                    best = (cost, rect)
    assert best is not None
    return best[1]


def _overlap(a: _Rect, b: _Rect) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _front(points: Sequence[BenchmarkPoint]) -> list[BenchmarkPoint]:
    """Return the points that none is both faster and better than, the fastest first."""
    front: list[BenchmarkPoint] = []
    for point in sorted(points, key=lambda p: (p.ms, -(p.ap or 0.0))):
        if not front or (point.ap or 0.0) > (front[-1].ap or 0.0):
            front.append(point)
    return front


def _scale_latency(axes: Axes, values: Sequence[float]) -> None:
    """Choose limits and ticks; logarithmic, because twice as fast should look the same everywhere."""
    low, high = min(values) / 1.25, max(values) * 1.25
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = _TICKS if high / low < 12 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(FixedLocator([step * 10.0**decade for decade in decades for step in steps]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_significant(value)))


def _add_legend(axes: Axes, points: Sequence[BenchmarkPoint], colors: dict[str, str]) -> None:
    backends = list(dict.fromkeys(point.backend for point in points))
    precisions = [name for name in _MARKERS if any(point.precision == name for point in points)]
    handles = [Line2D([], [], color=colors[name], linewidth=5, label=name) for name in backends]
    handles += [
        Line2D([], [], color=_FAINT, marker=_MARKERS[name], linestyle="none", label=name) for name in precisions
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(handles), frameon=False,
        labelcolor=_INK, handlelength=1.0, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def _style(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_GRID, linewidth=0.8)
    axes.grid(axis="both", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, labelcolor=_INK, pad=4)
    axes.xaxis.label.set_color(_FAINT)
    axes.yaxis.label.set_color(_FAINT)


def _colors(points: Sequence[BenchmarkPoint]) -> dict[str, str]:
    backends = list(dict.fromkeys(point.backend for point in points))
    return {name: FALLBACK_COLORS[n % len(FALLBACK_COLORS)] for n, name in enumerate(backends)}


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
