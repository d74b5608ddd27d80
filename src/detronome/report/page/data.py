"""The labels: how many, how large, and whether training and validation are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detronome.report.formats import clean_text, format_count, format_significant
from detronome.report.frame import Chart
from detronome.report.histogram_chart import Spread, draw_histogram
from detronome.report.run_files import DataFile, Histogram, SplitCounts
from detronome.report.stacked_bar import Look, Part, parts_of

__all__ = ["ClassShare", "DataView", "SplitView", "data_of"]

_MAX_CLASSES = 30
_AREA_LOOKS = {
    "small": Look(name="small", color=1),
    "medium": Look(name="medium", color=5),
    "large": Look(name="large", color=0),
}


@dataclass(frozen=True, kw_only=True)
class SplitView:
    """One split in numbers."""

    name: str
    color: int
    facts: Sequence[tuple[str, str]]
    areas: Sequence[Part]
    """Of the objects: below 32 x 32 pixels, up to 96 x 96, and beyond."""


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """One class: for each split its share of the objects as a bar, 0-100 of the largest, and how many."""

    name: str
    bars: Sequence[tuple[int, float, str]]
    """Series colour, length, number of objects."""
    note: str


@dataclass(frozen=True, kw_only=True)
class DataView:
    """All of it."""

    splits: Sequence[SplitView]
    classes: Sequence[ClassShare]
    num_classes: int
    charts: Sequence[Chart]


def data_of(data: DataFile | None) -> DataView | None:
    """Return the label statistics; None where there are none."""
    if data is None or not data.splits:
        return None
    per_image = [_spread(name, split.objects_per_image) for name, split in data.splits.items()]
    sizes = [_spread(name, split.box_size_px) for name, split in data.splits.items()]
    charts = [
        draw_histogram("Objects in an image", per_image, x_label="objects"),
        draw_histogram("Size of boxes", sizes, x_label="square root of the area, pixels"),
    ]
    classes = _classes(data.splits)
    return DataView(
        splits=[_split(color, name, split) for color, (name, split) in enumerate(data.splits.items())],
        classes=classes[:_MAX_CLASSES],
        num_classes=len(classes),
        charts=[chart for chart in charts if not chart.is_empty],
    )


def _split(color: int, name: str, split: SplitCounts) -> SplitView:
    used = sum(one.num_objects > 0 for one in split.classes)
    per_image = split.num_objects / split.num_images if split.num_images else None
    areas = {"small": split.areas.small, "medium": split.areas.medium, "large": split.areas.large}
    return SplitView(
        name=clean_text(name),
        color=color,
        facts=[
            ("images", format_count(split.num_images)),
            ("objects", format_count(split.num_objects)),
            ("per image", format_significant(per_image)),
            ("classes", f"{used:,} of {len(split.classes):,}" if split.classes else "-"),
        ],
        areas=parts_of(areas, _AREA_LOOKS),
    )


def _classes(splits: Mapping[str, SplitCounts]) -> list[ClassShare]:
    """Return the classes, the most frequent of the first split first."""
    counts = [{one.name: max(one.num_objects, 0) for one in split.classes} for split in splits.values()]
    totals = [max(sum(of_split.values()), 1) for of_split in counts]
    names = dict.fromkeys(name for of_split in counts for name in of_split)
    shares = {
        name: [of_split.get(name, 0) / total for of_split, total in zip(counts, totals, strict=True)] for name in names
    }
    largest = max((max(values) for values in shares.values()), default=0.0) or 1.0
    order = sorted(names, key=lambda name: [-share for share in shares[name]])
    return [
        ClassShare(
            name=clean_text(name),
            bars=[
                (color, 100 * share / largest, format_count(of_split.get(name, 0)))
                for color, (share, of_split) in enumerate(zip(shares[name], counts, strict=True))
            ],
            note=_note(name, dict(zip(splits, counts, strict=True))),
        )
        for name in order
    ]


def _note(name: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    missing = [clean_text(split) for split, of_split in counts.items() if not of_split.get(name)]
    return f"none in {' and '.join(missing)}" if missing else ""


def _spread(name: str, histogram: Histogram) -> Spread:
    return Spread(name=name, bins=histogram.bins, counts=histogram.counts)
