"""What all charts have in common: their size, their axes in the page's colours, and labels that do not overlap.

Drawn with matplotlib's object interface: no window, no pyplot state.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detronome.report.formats import clean_text
from detronome.report.svg import GRID, TEXT, inline, series_color

__all__ = ["FONT_PT", "Chart", "EndLabel", "draw_framed", "label_ends", "place", "short"]

FONT_PT = 8.0

_SIZES_IN = {"small": (3.5, 2.05), "large": (4.2, 2.35), "tall": (4.2, 3.1)}
"""A large chart is half a page wide, and a whole one on a phone, where its text must still be read."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawn chart, ready for a page."""

    title: str
    svg: str
    is_large: bool = False
    is_empty: bool = False
    """There was nothing to draw: the chart says so."""


@dataclass(frozen=True, kw_only=True)
class EndLabel:
    """A label beside the right end of what it names."""

    y: float
    text: str
    color: int


def draw_framed(title: str, size: str, paint: Callable[[Figure, Axes], None] | None, description: str) -> Chart:
    """Return what `paint` draws as an SVG element with a text alternative; None says that nothing was recorded.

    Args:
        title: what is drawn; charts of different titles share no id.
        size: `small`, `large` (half a page wide) or `tall`.
        paint: draws on styled axes.
        description: what the chart shows, for those who cannot see it.
    """
    title = clean_text(title)
    # The settings of SVG text and ids exist only as rcParams; the context puts them back.
    with (
        rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": FONT_PT}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # it is the browser that writes the text, in its own fonts
        figure = Figure(figsize=_SIZES_IN[size], facecolor="none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        _style(axes)
        if paint is None:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "nothing recorded yet", ha="center", va="center", color=TEXT)
        else:
            paint(figure, axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = inline(buffer.getvalue(), f"{title}: {description}")
    return Chart(title=title, svg=svg, is_large=size != "small", is_empty=paint is None)


def place(figure: Figure, axes: Axes, labels: Sequence[str], *, has_y_label: bool = False) -> float:
    """Make room for the ticks and for labels at the right; return the height of a line of text, in axes."""
    width_pt, height_pt = figure.get_size_inches() * 72
    right = min(0.42, (0.58 * FONT_PT * max(map(len, labels), default=0) + 7) / width_pt)
    left, bottom, top = (46 if has_y_label else 34) / width_pt, 25 / height_pt, 9 / height_pt
    axes.set_position((left, bottom, 1 - left - right, 1 - bottom - top))
    return FONT_PT * 1.25 / (height_pt * (1 - bottom - top))


def label_ends(axes: Axes, labels: Sequence[EndLabel], *, gap: float) -> None:
    """Write each label at its height at the right end, pushed apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    wanted = [min(max(float(to_axes.transform((x, label.y))[1]), 0.0), 1.0) for label in labels]
    order = sorted(range(len(labels)), key=lambda i: wanted[i])
    heights: list[float] = []
    for index in order:
        heights.append(max(wanted[index], heights[-1] + gap) if heights else wanted[index])
    ceiling = 1.0
    for rank in reversed(range(len(heights))):  # what was pushed out at the top goes back down
        heights[rank] = min(heights[rank], ceiling)
        ceiling = heights[rank] - gap
    for rank, index in enumerate(order):
        axes.text(
            1.015, heights[rank], labels[index].text, transform=axes.transAxes, va="center", ha="left",
            color=series_color(labels[index].color), parse_math=False,
        )  # fmt: skip


def short(label: str, limit: int = 20) -> str:
    """Return the label on one line, cut where it is longer than `limit` characters."""
    label = clean_text(label)
    return label if len(label) <= limit else f"{label[: limit - 1]}…"


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=GRID, linewidth=0.8)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, labelcolor=TEXT, labelsize=FONT_PT, pad=4)
