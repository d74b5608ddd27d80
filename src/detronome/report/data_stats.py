"""Pictures of what a data set is like: its classes, how crowded its images are, and the sizes of images and boxes.

Drawn with matplotlib's object interface, as PNG files on white. What is shown as a map counts all splits together;
what is shown as lines or dots has one colour per split.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from detronome.data.stats import QUERY_COUNTS, SplitStats, relative_boxes, split_stats
from detronome.data.store.index import AnnotationIndex
from detronome.report.formats import clean_text, format_count
from detronome.report.svg import FALLBACK_COLORS
from detronome.runtime.files import write_atomic

__all__ = ["write_data_pictures"]

_TEXT, _FAINT, _GRID = "#2b2f36", "#8a919c", "#e4e7ec"
_HEAT = LinearSegmentedColormap.from_list("heat", ["#dfe9fa", "#3b78d8", "#0d1b3d"])
_PANEL_IN = (5.4, 4.0)
_DPI = 150
_MAX_CLASSES, _LEAST_ROWS, _ROW_IN = 30, 10, 0.17
_NAMED_SIZES = 3
_SMALLEST = 1e-3
"""Relative box sides below are drawn at the edge."""


@dataclass(frozen=True)
class _Split:
    """What the panels draw of one split."""

    name: str
    stats: SplitStats
    boxes: NDArray[np.float64]
    """(cx, cy, w, h), relative to the image."""
    per_image: NDArray[np.int64]
    sizes_hw: NDArray[np.int32]


def write_data_pictures(folder: Path, indexes: Mapping[str, AnnotationIndex], *, title: str) -> list[Path]:
    """Draw the splits of a data set: one picture for each panel, and `overview.png` with all of them.

    A data set without objects gives panels that say so.

    Args:
        folder: where the pictures go; those of the same names are replaced.
        indexes: the annotations, by the name of the split.
        title: what stands above the overview.

    Returns:
        The files, the overview first.
    """
    splits = [
        _Split(
            name=clean_text(name),
            stats=split_stats(name, index),
            boxes=relative_boxes(index),
            per_image=index.num_objects_per_image,
            sizes_hw=index.sizes_hw,
        )
        for name, index in indexes.items()
    ]
    files = [folder / "overview.png", *(folder / f"{name}.png" for name in _PANELS)]
    # That a `$` is a `$`, and the rest for all figures alike, can only be said globally; the context puts it back.
    with rc_context(
        {
            "font.size": 9.0,
            "text.parse_math": False,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "figure.constrained_layout.w_pad": 0.12,
            "figure.constrained_layout.h_pad": 0.12,
        }
    ):
        write_atomic(files[0], _overview(splits, clean_text(title)))
        for file, panel in zip(files[1:], _PANELS.values(), strict=True):
            width, height = _PANEL_IN
            if panel is _draw_classes:
                height = max(height, 1.0 + _ROW_IN * min(_MAX_CLASSES, max(len(s.stats.classes) for s in splits)))
            figure = Figure(figsize=(width, height), layout="constrained")
            panel(_styled(figure.add_subplot()), splits)
            write_atomic(file, _png(figure))
    return files


def _overview(splits: list[_Split], title: str) -> bytes:
    """Return all panels as one PNG: the classes at the left in full height."""
    figure = Figure(figsize=(3.15 * _PANEL_IN[0], 2.25 * _PANEL_IN[1]), layout="constrained")
    counts = "   ".join(
        f"{s.name}: {s.stats.images:,} images, {s.stats.objects:,} objects, {s.stats.used_classes} classes"
        for s in splits
    )
    figure.suptitle(f"{title}\n{counts}", x=0.012, ha="left", color=_TEXT, fontsize=12)
    grid = figure.add_gridspec(2, 3)
    panels = list(_PANELS.values())
    places = [grid[:, 0], grid[0, 1], grid[0, 2], grid[1, 1], grid[1, 2]]
    for place, panel in zip(places, panels, strict=True):
        panel(_styled(figure.add_subplot(place)), splits)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The fonts at hand may lack a script; the names are drawn as boxes, and the numbers still say what they say.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _styled(axes: Axes) -> Axes:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_GRID)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=_TEXT)
    axes.xaxis.label.set_color(_TEXT)
    axes.yaxis.label.set_color(_TEXT)
    return axes


def _title(axes: Axes, text: str, detail: str = "") -> None:
    axes.set_title(text, loc="left", color=_TEXT, pad=8)
    if detail:
        axes.set_title(detail, loc="right", color=_FAINT, fontsize=8.5, fontweight="normal", pad=8)


def _color(number: int) -> str:
    return FALLBACK_COLORS[number % len(FALLBACK_COLORS)]


def _legend(axes: Axes, splits: list[_Split], loc: Literal["upper right", "lower right"]) -> None:
    if len(splits) > 1:
        axes.legend(frameon=False, labelcolor=_TEXT, handlelength=1.2, loc=loc)


def _say_empty(axes: Axes, text: str = "no objects") -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=_FAINT, transform=axes.transAxes)


def _draw_classes(axes: Axes, splits: list[_Split]) -> None:
    """Dots rather than bars: on a log scale, which a long tail needs, the length of a bar says nothing."""
    counts: dict[tuple[int, str], list[int]] = {}
    for number, split in enumerate(splits):
        for one in split.stats.classes:
            counts.setdefault((one.category_id, one.name), [0] * len(splits))[number] = one.objects
    ranked = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    shown = [item for item in ranked if sum(item[1])][:_MAX_CLASSES]
    detail = f"the {len(shown)} most frequent of {len(ranked)}" if len(shown) < len(ranked) else ""
    _title(axes, "Objects per class", detail)
    if not shown:
        _say_empty(axes)
        return
    rows = np.arange(len(shown))
    table = np.array([values for _, values in shown])
    present = np.where(table > 0, table, np.nan)
    axes.hlines(rows, np.nanmin(present, axis=1), np.nanmax(present, axis=1), color=_GRID, linewidth=3)
    for number, split in enumerate(splits):
        axes.plot(present[:, number], rows, "o", color=_color(number), markersize=6.5, label=split.name)
    axes.set_xscale("log")
    low, high = float(np.nanmin(present)), float(np.nanmax(present))
    axes.set_xlim(low / 1.6, high * (3.0 if len(splits) == 1 else 1.6))
    _log_ticks(axes, high / low)
    if len(splits) == 1:
        total = max(1, splits[0].stats.objects)
        for row, (count,) in zip(rows, table.tolist(), strict=True):
            axes.annotate(
                f"{count:,}  {100 * count / total:.3g} %",
                (count, row),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                color=_TEXT,
                fontsize=8,
            )
    axes.set_yticks(rows, [_short(name) for (_, name), _ in shown])
    axes.set_ylim(max(len(shown), _LEAST_ROWS) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("objects")
    _legend(axes, splits, "lower right")


def _draw_objects_per_image(axes: Axes, splits: list[_Split]) -> None:
    most = max(int(split.per_image.max()) for split in splits)
    _title(axes, "Objects per image", f"at most {most:,}")
    edges = np.unique(np.linspace(0, most + 1, min(most + 1, 60) + 1).round()) - 0.5
    for number, split in enumerate(splits):
        share = np.histogram(split.per_image, edges)[0] / len(split.per_image)
        axes.stairs(share / np.diff(edges), edges, color=_color(number), linewidth=1.7, label=split.name)
        if number == 0:
            axes.stairs(share / np.diff(edges), edges, color=_color(number), alpha=0.12, fill=True)
    for queries in QUERY_COUNTS:
        if 0.5 * queries < most:
            axes.axvline(queries, color=_FAINT, linewidth=1, linestyle=(0, (3, 3)))
            place = axes.get_xaxis_transform()
            axes.text(queries, 0.6, f"{queries} queries ", color=_FAINT, ha="right", va="top", transform=place)
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_formatter(_percent_ticks())
    axes.set_xlabel("objects in the image")
    axes.set_ylabel("images")
    _legend(axes, splits, "upper right")


def _draw_box_sizes(axes: Axes, splits: list[_Split]) -> None:
    boxes = np.concatenate([split.boxes for split in splits])
    _title(axes, "Box sizes", _size_shares(splits))
    if not len(boxes):
        _say_empty(axes)
        return
    width, height = np.clip(boxes[:, 2:], _SMALLEST, 1).T
    low = _low(width, height)
    edges = np.geomspace(low, 1, 61)
    _heat(axes, width, height, edges, edges)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot([low, 1], [low, 1], color=_FAINT, linewidth=0.8, linestyle=(0, (4, 4)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.set_major_formatter(_percent_ticks())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("box width, of the image's width")
    axes.set_ylabel("box height, of the image's height")


def _draw_box_centres(axes: Axes, splits: list[_Split]) -> None:
    boxes = np.concatenate([split.boxes for split in splits])
    _title(axes, "Box centres", "position in the image")
    if not len(boxes):
        _say_empty(axes)
        return
    x, y = np.clip(boxes[:, :2], 0, 1).T
    edges = np.linspace(0, 1, 11 + 2 * min(20, round(len(boxes) ** 0.5 / 6)))
    _heat(axes, x, y, edges, edges, is_log=False)
    axes.set_ylim(1, 0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(_percent_ticks())
    axes.set_xlabel("from left to right")
    axes.set_ylabel("from top to bottom")


def _draw_image_sizes(axes: Axes, splits: list[_Split]) -> None:
    sizes_hw = np.concatenate([split.sizes_hw for split in splits])
    sizes, counts = np.unique(sizes_hw.astype(np.int64) @ np.array([1 << 32, 1]), return_counts=True)
    height, width = sizes >> 32, sizes & 0xFFFFFFFF
    _title(axes, "Image sizes", f"{len(sizes):,} different" if len(sizes) > 1 else "all of one size")
    order = np.argsort(-counts, kind="stable")
    area = 8 + 600 * counts / counts.sum()
    axes.scatter(width[order], height[order], s=area[order], color=_color(0), alpha=0.5, linewidths=0)
    end = 1.15 * float(max(width.max(), height.max()))
    axes.plot([0, end], [0, end], color=_FAINT, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.set(xlim=(0, end), ylim=(0, end))
    for place in order[:_NAMED_SIZES]:
        axes.annotate(
            f"{width[place]} × {height[place]}  {100 * counts[place] / counts.sum():.3g} %",
            (float(width[place]), float(height[place])),
            xytext=(0, float(np.sqrt(area[place])) / 2 + 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=_TEXT,
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")


_PANELS: dict[str, Callable[[Axes, list[_Split]], None]] = {
    "classes": _draw_classes,
    "objects_per_image": _draw_objects_per_image,
    "box_sizes": _draw_box_sizes,
    "image_sizes": _draw_image_sizes,
    "box_centres": _draw_box_centres,
}


def _heat(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    *,
    is_log: bool = True,
) -> None:
    counts = np.histogram2d(x, y, (x_edges, y_edges))[0].T
    norm = LogNorm(1, max(2.0, float(counts.max()))) if is_log else None
    mesh = axes.pcolormesh(
        x_edges, y_edges, np.ma.masked_equal(counts, 0), cmap=_HEAT, norm=norm, vmin=None if is_log else 0
    )
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30, shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=0, labelcolor=_FAINT, labelsize=8)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("boxes", color=_FAINT, fontsize=8.5)


def _percent_ticks() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{100 * value:.6g} %")


def _low(width: NDArray[np.float64], height: NDArray[np.float64]) -> float:
    """Return where the axes of box sizes begin: a little below the smallest side, at 10 % at most."""
    return max(_SMALLEST, min(0.1, 0.8 * float(min(width.min(), height.min()))))


def _size_shares(splits: list[_Split]) -> str:
    small, medium, large = (
        sum(values) for values in zip(*((s.stats.small, s.stats.medium, s.stats.large) for s in splits), strict=True)
    )
    total = max(1, small + medium + large)
    return f"small {100 * small / total:.0f} %, medium {100 * medium / total:.0f} %, large {100 * large / total:.0f} %"


def _log_ticks(axes: Axes, ratio: float) -> None:
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if ratio > 300 else (1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value) if value >= 1 else ""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(name: str) -> str:
    name = clean_text(name)
    return name if len(name) <= 24 else f"{name[:23]}…"
