"""How a quantity is spread in each split, as inline SVG: shares, so that splits of any size compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from detronome.report.chart import set_values
from detronome.report.formats import clean_text, format_significant
from detronome.report.frame import Chart, EndLabel, draw_framed, label_ends, place, short
from detronome.report.svg import TEXT, series_color

__all__ = ["Spread", "draw_histogram"]

_MAX_TICKS = 8


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The counts of one split."""

    name: str
    bins: Sequence[float | None]
    """Edges, one more than counts, the last perhaps None for no end; or one value for each count."""
    counts: Sequence[float]


def draw_histogram(title: str, spreads: Sequence[Spread], *, x_label: str) -> Chart:
    """Return the share of each bin in each split as steps; bins are drawn equally wide, whatever they span.

    Splits may reach further than others: their bins are put together. No count at all gives a chart that says so.
    """
    filled = [spread for spread in spreads if sum(spread.counts) > 0]
    if not filled:
        return draw_framed(title, "large", None, "nothing recorded yet")
    filled = _on_common_bins(filled)
    bins = list(filled[0].bins)
    num_counts = len(filled[0].counts)
    if _are_whole_numbers(bins):
        bins = bins[:num_counts]
    has_edges = len(bins) > num_counts

    def paint(figure: Figure, axes: Axes) -> None:
        labels = []
        for color, spread in enumerate(filled):
            shares = _shares(spread)
            axes.stairs(
                shares, np.arange(num_counts + 1) - 0.5, color=series_color(color), linewidth=1.4,
                fill=False, baseline=0.0,
            )  # fmt: skip
            axes.stairs(shares, np.arange(num_counts + 1) - 0.5, color=series_color(color), fill=True, alpha=0.14)
            labels.append(EndLabel(y=(0.9 - 0.15 * color) * 1.0, text=short(spread.name, 12), color=color))
        axes.set_xlim(-0.5, num_counts - 0.5)
        top = 1.08 * max(float(_shares(spread).max()) for spread in filled)
        axes.set_ylim(0.0, top)
        axes.xaxis.set_major_locator(MaxNLocator(_MAX_TICKS, integer=True))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda place_, _: _tick(bins, place_ + 0.5 if has_edges else place_))
        )
        if has_edges:
            step = max(1, math.ceil(num_counts / _MAX_TICKS))
            axes.set_xticks(np.arange(0, num_counts + 1, step) - 0.5)
        axes.set_xlabel(x_label, color=TEXT, labelpad=2)
        set_values(axes, is_share=True)
        gap = place(figure, axes, [label.text for label in labels])
        labels = [EndLabel(y=label.y * top, text=label.text, color=label.color) for label in labels]
        label_ends(axes, labels, gap=gap)

    description = "; ".join(
        f"{clean_text(spread.name)}: {_most_frequent(spread, bins, has_edges)}" for spread in filled
    )
    return draw_framed(title, "large", paint, description)


def _on_common_bins(spreads: Sequence[Spread]) -> list[Spread]:
    """Return the spreads on the bins of all; a bin that others cut further gives each piece the same part of its count.

    Those that are of another kind than the first, edges or values, are left out.
    """
    has_edges = len(spreads[0].bins) > len(spreads[0].counts)
    alike = [spread for spread in spreads if (len(spread.bins) > len(spread.counts)) == has_edges]
    ends = sorted({math.inf if value is None else value for spread in alike for value in spread.bins})
    bins = [None if math.isinf(end) else end for end in ends]
    common = []
    for spread in alike:
        places = [ends.index(math.inf if value is None else value) for value in spread.bins]
        counts = [0.0] * (len(bins) - has_edges)
        for i, count in enumerate(spread.counts):
            pieces = range(places[i], places[i + 1] if has_edges else places[i] + 1)
            for piece in pieces:
                counts[piece] += count / len(pieces)
        common.append(Spread(name=spread.name, bins=bins, counts=counts))
    return common


def _are_whole_numbers(edges: Sequence[float | None]) -> bool:
    """Return whether each bin holds one whole number, which is then written below it, not at its edge."""
    return all(a is not None and b is not None and b - a == 1 and a == int(a) for a, b in pairwise(edges))


def _shares(spread: Spread) -> NDArray[np.float64]:
    counts = np.maximum(np.asarray(spread.counts, dtype=np.float64), 0.0)
    return counts / max(counts.sum(), 1.0)


def _tick(bins: Sequence[float | None], place_: float) -> str:
    index = round(place_)
    if not 0 <= index < len(bins) or abs(index - place_) > 0.01:
        return ""
    value = bins[index]
    return "∞" if value is None else format_significant(value)


def _most_frequent(spread: Spread, bins: Sequence[float | None], has_edges: bool) -> str:
    index = max(range(len(spread.counts)), key=lambda i: spread.counts[i])
    last = f" to {_tick(bins, index + 1)}" if has_edges else ""
    return f"most are {_tick(bins, index)}{last}"
