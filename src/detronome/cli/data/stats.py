"""`detronome data stats`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detronome.cli.options import DATA_GROUP, OUTPUT_GROUP, Json
from detronome.cli.render import print_json, print_table
from detronome.report.terminal import speaks_unicode

if TYPE_CHECKING:
    from detronome.data.stats import SplitStats, Spread

__all__ = ["stats"]

_MOST_CLASSES = 24
"""A longer list of classes is shortened to its head and its tail."""
_HEAD, _TAIL = 15, 5
_BAR = 16


def stats(
    data: str,
    /,
    *,
    split: Annotated[list[str] | None, DATA_GROUP, Parameter(negative=(), consume_multiple=True)] = None,
    out: Annotated[Path | None, OUTPUT_GROUP] = None,
    all_classes: Annotated[bool, OUTPUT_GROUP, Parameter(negative=())] = False,
    json: Json = False,
) -> None:
    """Say what a data set is like: its classes, how crowded its images are, the sizes of images and boxes.

    Parameters
    ----------
    data
        Data folder, address of shards, or a single annotation file.
    split
        Splits to look at; all by default.
    out
        Folder for pictures (PNG).
    all_classes
        Print every class of a long list.
    """
    from detronome import api

    found = api.data_stats(data, splits=split, out=out)
    if json:
        print_json(found.to_json())
        return
    console = Console(highlight=False)
    console.print(Text(found.data, style="bold"), soft_wrap=True)
    print_table(_overview(found.splits))
    console.print()
    print_table(_classes(found.splits, None if all_classes else _MOST_CLASSES))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    if found.pictures:
        console.print(Text(f"pictures  {Path(found.pictures[0]).parent}", style="dim"), soft_wrap=True)


def _overview(splits: Sequence[SplitStats]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for one in splits:
        table.add_column(Text(one.split), justify="right")

    def row(label: str, write: Callable[[SplitStats], str]) -> None:
        is_part = label.startswith(" ")
        table.add_row(Text(label, style="dim" if is_part else ""), *(Text(write(one)) for one in splits))

    row("images", lambda one: f"{one.images:,}")
    row("  without objects", lambda one: _share(one.images_without_objects, one.images))
    row("  most frequent size", _frequent_size)
    row("  width : height", lambda one: _range(one.image_aspect))
    row("objects", lambda one: f"{one.objects:,}")
    row("  and crowd regions", lambda one: f"{one.crowd_regions:,}")
    row("  classes", lambda one: f"{one.used_classes} of {len(one.classes)}")
    row("  most to least frequent", lambda one: _ratio(one.imbalance))
    row("objects in an image", lambda one: _range(one.objects_per_image, is_count=True))
    row("  at most", lambda one: f"{one.objects_per_image.max:,.0f}")
    for queries in splits[0].images_over:
        row(f"  images with over {queries}", partial(_images_over, queries))
    row("boxes", lambda one: f"{one.objects - one.empty_boxes:,}")
    row("  small, below 32 × 32 px", lambda one: _share(one.small, one.objects))
    row("  medium", lambda one: _share(one.medium, one.objects))
    row("  large, from 96 × 96 px", lambda one: _share(one.large, one.objects))
    row("  side, % of the image's", lambda one: _range(one.relative_size, scale=100))
    row("  width : height", lambda one: _range(one.box_aspect))
    table.caption = Text("median (5 % to 95 % of the values)", style="dim")
    table.caption_justify = "left"
    return table


def _classes(splits: Sequence[SplitStats], most: int | None) -> Table:
    from detronome.report.formats import clean_text

    rows: dict[tuple[int, str], dict[str, tuple[int, int]]] = {}
    for one in splits:
        for found in one.classes:
            rows.setdefault((found.category_id, found.name), {})[one.split] = (found.objects, found.images)
    totals = {key: sum(objects for objects, _ in counts.values()) for key, counts in rows.items()}
    ranked = sorted(rows, key=lambda key: (-totals[key], key))
    total, largest = max(1, sum(totals.values())), max(1, *totals.values())

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("class", max_width=32, no_wrap=True, overflow="ellipsis")
    table.add_column("share", justify="right")
    table.add_column("", width=_BAR, no_wrap=True)
    for one in splits:
        table.add_column(Text(one.split), justify="right")
        table.add_column("images", justify="right", style="dim")

    def add(keys: Sequence[tuple[int, str]]) -> None:
        for key in keys:
            cells = [f"{n:,}" for one in splits for n in rows[key].get(one.split, (0, 0))]
            bar = Text(_bar_character() * math.ceil(_BAR * totals[key] / largest), style="cyan")
            table.add_row(Text(clean_text(key[1])), f"{100 * totals[key] / total:.2f} %", bar, *cells)

    if most is None or len(ranked) <= most:
        add(ranked)
    else:
        add(ranked[:_HEAD])
        table.add_row(Text(f"… {len(ranked) - _HEAD - _TAIL} more (--all-classes)", style="dim"))
        add(ranked[-_TAIL:])
    return table


def _frequent_size(one: SplitStats) -> str:
    height, width, count = one.frequent_sizes[0]
    share = "all" if one.num_image_sizes == 1 else f"{100 * count / one.images:.0f} %"
    return f"{width} × {height} ({share})"


def _images_over(queries: int, one: SplitStats) -> str:
    return _share(one.images_over[queries], one.images)


def _share(count: int, total: int) -> str:
    return f"{count:,} ({_percent(count / total)})" if count else "0"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{_number(value)} : 1"


def _range(spread: Spread, *, scale: float = 1.0, is_count: bool = False) -> str:
    if math.isnan(spread.median):
        return "-"
    write = _count if is_count else _number
    low, middle, high = (write(scale * value) for value in (spread.p5, spread.median, spread.p95))
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bar_character() -> str:
    return "━" if speaks_unicode(sys.stdout) else "#"
