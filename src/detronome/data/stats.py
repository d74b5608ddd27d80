"""What a data set is like: classes, sizes and crowding, counted on the whole columns of its indexes.

Crowd regions are counted and then left aside, as training leaves them aside. Shape letters: `I` images, `N` objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detronome.data.store.compile import CompiledSplit
from detronome.data.store.index import AnnotationIndex

__all__ = [
    "QUERY_COUNTS",
    "ClassStats",
    "DataStats",
    "SplitStats",
    "Spread",
    "count_data",
    "relative_boxes",
    "split_stats",
]

QUERY_COUNTS = (100, 300)
"""The usual numbers of queries: a model finds at most as many objects in an image."""
_MEDIUM_AREA, _LARGE_AREA = 32.0**2, 96.0**2
"""Where COCO's medium and large objects begin, in square pixels."""
_FREQUENT_SIZES = 5
_NAMED_CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a quantity is spread; nan where there is nothing."""

    mean: float
    min: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class ClassStats:
    """One class in one split."""

    category_id: int
    name: str
    objects: int
    images: int
    """Images with at least one object of the class."""
    share: float
    """Of the split's objects, 0-1."""


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """One split."""

    split: str
    annotation_file: str
    images: int
    images_without_objects: int
    annotations: int
    objects: int
    """Annotations, crowd regions aside."""
    crowd_regions: int
    empty_boxes: int
    """Objects whose box has no width or no height; left out of sizes and aspect ratios."""
    classes: tuple[ClassStats, ...]
    """All classes of the file, by id."""
    imbalance: float
    """How many times more objects the most frequent class has than the rarest that occurs; nan without objects."""
    objects_per_image: Spread
    images_over: dict[int, int]
    """How many images have more objects than a model has queries, for the usual numbers of queries."""
    small: int
    """Objects of less than 32 x 32 pixels, by the area that the file gives, as COCO's AP_small counts them."""
    medium: int
    large: int
    """Objects of 96 x 96 pixels or more."""
    relative_size: Spread
    """Square root of the box's share of the image."""
    box_aspect: Spread
    """Width over height."""
    image_height: Spread
    image_width: Spread
    image_aspect: Spread
    """Width over height."""
    num_image_sizes: int
    frequent_sizes: tuple[tuple[int, int, int], ...]
    """(height, width, number of images) of the most frequent sizes."""

    @property
    def used_classes(self) -> int:
        """Classes with at least one object."""
        return sum(one.objects > 0 for one in self.classes)


@dataclass(frozen=True, kw_only=True)
class DataStats:
    """All splits of a data set, and what in them deserves a second look."""

    data: str
    splits: tuple[SplitStats, ...]
    notes: tuple[str, ...]
    pictures: tuple[str, ...] = ()
    """The picture files, where some were asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def count_data(data: str, splits: Sequence[CompiledSplit]) -> DataStats:
    """Count what a data set holds; under a second for a hundred thousand images.

    Args:
        data: what the user calls it.
        splits: its indexes.
    """
    counted = tuple(split_stats(one.split, one.index) for one in splits)
    return DataStats(data=data, splits=counted, notes=tuple(_notes(counted)))


@np.errstate(over="ignore", invalid="ignore")  # boxes may be of any finite size
def split_stats(split: str, index: AnnotationIndex) -> SplitStats:
    """Count what one split holds."""
    is_object = index.is_object
    per_image = index.num_objects_per_image
    area = index.area[is_object]
    small, below_large = int((area < _MEDIUM_AREA).sum()), int((area < _LARGE_AREA).sum())
    relative = relative_boxes(index)
    sizes_px = index.boxes_xywh[_is_drawable(index), 2:]
    height, width = index.sizes_hw.T.astype(np.float64)
    classes = _class_stats(index, is_object)
    counts = [one.objects for one in classes if one.objects]
    num_image_sizes, frequent_sizes = _image_sizes(index)
    return SplitStats(
        split=split,
        annotation_file=str(index.annotation_file),
        images=len(index),
        images_without_objects=int((per_image == 0).sum()),
        annotations=len(is_object),
        objects=index.num_objects,
        crowd_regions=len(is_object) - index.num_objects,
        empty_boxes=index.num_objects - len(relative),
        classes=classes,
        imbalance=max(counts) / min(counts) if counts else math.nan,
        objects_per_image=_spread(per_image.astype(np.float64)),
        images_over={queries: int((per_image > queries).sum()) for queries in QUERY_COUNTS},
        small=small,
        medium=below_large - small,
        large=len(area) - below_large,
        relative_size=_spread(np.sqrt(relative[:, 2] * relative[:, 3])),
        box_aspect=_spread(sizes_px[:, 0] / sizes_px[:, 1]),
        image_height=_spread(height),
        image_width=_spread(width),
        image_aspect=_spread(width / height),
        num_image_sizes=num_image_sizes,
        frequent_sizes=frequent_sizes,
    )


def relative_boxes(index: AnnotationIndex) -> Float64[np.ndarray, "N 4"]:
    """Return centre and size of every object's box, relative to its image, (cx, cy, w, h); empty boxes are left out."""
    keep = _is_drawable(index)
    sizes_whwh = index.sizes_hw[:, [1, 0, 1, 0]].astype(np.float64)
    relative = index.boxes_xywh / np.repeat(sizes_whwh, index.num_annotations_per_image, axis=0)
    with np.errstate(over="ignore"):
        relative[:, :2] += relative[:, 2:] / 2
    return relative if keep.all() else relative[keep]


def _is_drawable(index: AnnotationIndex) -> Bool[np.ndarray, " A"]:
    sizes = index.boxes_xywh[:, 2:]
    return index.is_object & (sizes[:, 0] > 0) & (sizes[:, 1] > 0)


def _class_stats(index: AnnotationIndex, is_object: Bool[np.ndarray, " A"]) -> tuple[ClassStats, ...]:
    num_classes = len(index.categories)
    labels = index.labels[is_object].astype(np.int64)
    image_of = np.repeat(np.arange(len(index)), index.num_objects_per_image)
    objects = np.bincount(labels, minlength=num_classes)
    pairs = np.sort(image_of * num_classes + labels)
    is_first = np.diff(pairs, prepend=-1) > 0
    images = np.bincount(pairs[is_first] % num_classes, minlength=num_classes)
    total = max(1, len(labels))
    return tuple(
        ClassStats(category_id=category_id, name=name, objects=count, images=seen, share=count / total)
        for category_id, name, count, seen in zip(
            index.categories.ids, index.categories.names, objects.tolist(), images.tolist(), strict=True
        )
    )


def _image_sizes(index: AnnotationIndex) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """Return how many sizes there are, and (height, width, number of images) of the most frequent."""
    height, width = index.sizes_hw.T.astype(np.int64)
    sizes, counts = np.unique(height << 32 | width, return_counts=True)
    order: Int64[np.ndarray, " S"] = np.argsort(-counts, kind="stable")[:_FREQUENT_SIZES]
    frequent = zip(sizes[order].tolist(), counts[order].tolist(), strict=True)
    return len(sizes), tuple((size >> 32, size & 0xFFFFFFFF, count) for size, count in frequent)


def _spread(values: Float64[np.ndarray, " K"]) -> Spread:
    values = values[np.isfinite(values)]  # a side of 1e300 may give a ratio that is none
    if len(values) == 0:
        return Spread(**dict.fromkeys(("mean", "min", "p5", "p25", "median", "p75", "p95", "max"), math.nan))
    low, p5, p25, median, p75, p95, high = np.quantile(values, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)).tolist()
    return Spread(mean=float(values.mean()), min=low, p5=p5, p25=p25, median=median, p75=p75, p95=p95, max=high)


def _notes(splits: Sequence[SplitStats]) -> list[str]:
    notes: list[str] = []
    for one in splits:
        for queries, images in one.images_over.items():
            if images:
                have = "images have" if images > 1 else "image has"
                notes.append(
                    f"{one.split}: {images:,} {have} more than {queries} objects (at most "
                    f"{one.objects_per_image.max:.0f}); a model with {queries} queries cannot find them all"
                )
        if one.empty_boxes:
            boxes = "box has" if one.empty_boxes == 1 else "boxes have"
            notes.append(f"{one.split}: {one.empty_boxes:,} {boxes} no width or no height; see detronome data check")
    names = {one.split: {(c.category_id, c.name) for c in one.classes} for one in splits}
    first = next(iter(names), "")
    for split, classes in names.items():
        if classes != names[first]:
            notes.append(f"{split}: its list of classes is not that of {first}")
    return notes + _missing_classes(splits)


def _missing_classes(splits: Sequence[SplitStats]) -> list[str]:
    """Say which classes cannot be learnt, or not be measured."""
    train = next((one for one in splits if one.split.startswith("train")), None)
    if train is None:
        return []
    notes = []
    in_train = {one.name for one in train.classes if one.objects}
    unused = [one.name for one in train.classes if not one.objects]
    if unused:
        notes.append(f"{train.split}: no object of {_some(unused)}")
    for other in splits:
        unlearnt = [one.name for one in other.classes if one.objects and one.name not in in_train]
        if unlearnt:
            notes.append(f"{other.split}: has objects of {_some(unlearnt)}, {train.split} has none")
    return notes


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_CLASSES
    shown = ", ".join(repr(name) for name in names[:_NAMED_CLASSES])
    return f"{shown} and {more} more" if more > 0 else shown
