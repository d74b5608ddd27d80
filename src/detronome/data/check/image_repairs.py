"""What is known of the image files once they were looked at, for repairing the records that name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from detronome.data.check.findings import phrase
from detronome.data.check.geometry import OVERHANG_PX
from detronome.data.check.image_cache import ImageCache
from detronome.data.check.image_kinds import IMAGE_KINDS
from detronome.data.check.image_verdict import judge_image
from detronome.data.check.images import name_images
from detronome.data.check.table import AnnotationTable
from detronome.data.split_files import SplitFiles
from detronome.data.store.index import AnnotationIndex

__all__ = ["ImageRepairs", "plan_image_repairs"]

_HOPELESS = frozenset({"empty", "not_an_image", "truncated", "corrupt", "zero_size"})
"""Defects of a file that no setting and no correction of the annotations makes good."""
_SAME_SHAPE = 0.02
_NEARLY_ALL = 0.98

_SizeWH = tuple[int, int]


@dataclass(frozen=True)
class ImageRepairs:
    """What to change in image records, by image id."""

    unusable: Mapping[int, str] = field(default_factory=dict)
    """Images to remove with their annotations, and why."""
    names: Mapping[int, str] = field(default_factory=dict)
    """The name on disk of files that are spelt otherwise in the record."""
    sizes_wh: Mapping[int, _SizeWH] = field(default_factory=dict)
    """The size of files that the boxes fit and the record contradicts."""
    left: tuple[str, ...] = ()
    """The errors that remain all the same, in words."""


def plan_image_repairs(files: SplitFiles, index: AnnotationIndex, table: AnnotationTable) -> ImageRepairs:
    """Return what to change in the image records of a split. Quick after `check_images`, whose verdicts are cached.

    Args:
        files: where the split lies.
        index: its images.
        table: its annotations, boxes as left, top, width, height.
    """
    if files.shards is not None:
        return ImageRepairs()
    named = name_images(files, index)
    cache = ImageCache(files.annotation_file, files.images_dir)
    unusable: dict[int, str] = {}
    names: dict[int, str] = {}
    found_wh: dict[int, _SizeWH] = {}
    left: Counter[str] = Counter()
    for i in range(len(index)):
        image = index.image(i)
        if i not in named.on_disk:
            if named.spellings[i]:
                left["image_name_ambiguous"] += 1
            else:
                unusable[image.image_id] = f"{image.file_name} is missing"
            continue
        path = files.images_dir / named.on_disk[i]
        verdict = cache.get(cache.key(path, image.size_hw)) or judge_image(path, image.size_hw)
        if verdict.defect in _HOPELESS:
            unusable[image.image_id] = f"{image.file_name}: {verdict.detail}"
            continue
        if named.on_disk[i] != image.file_name:
            names[image.image_id] = named.on_disk[i]
        if verdict.defect is not None:
            left[f"image_{verdict.defect}"] += 1
        if verdict.size_hw is not None:
            found_wh[image.image_id] = verdict.size_hw[::-1]
    sizes_wh = _that_boxes_fit(table, found_wh)
    left["image_size_differs"] -= len(sizes_wh)
    told = (f"{count:,} {phrase(IMAGE_KINDS[code].what, count)}" for code, count in left.items() if count > 0)
    return ImageRepairs(unusable, names, sizes_wh, tuple(told))


def _that_boxes_fit(table: AnnotationTable, found_wh: Mapping[int, _SizeWH]) -> dict[int, _SizeWH]:
    """Return the sizes that are surely right for the boxes too.

    An image that was scaled has boxes that fit by chance, so one of the same shape is left to its owner; and where
    many boxes of such images do not fit, those that do prove nothing.
    """
    rows = {identity: row for row, identity in enumerate(table.image_ids.tolist()) if identity in found_wh}
    sizes_wh = np.full((len(table.image_ids), 2), np.nan)
    for identity, row in rows.items():
        sizes_wh[row] = found_wh[identity]
    is_about = (table.image >= 0) & np.isfinite(table.boxes_xywh).all(1)
    is_about[is_about] = np.isfinite(sizes_wh[table.image[is_about]]).all(1)
    boxes, image = table.boxes_xywh[is_about], table.image[is_about]
    with np.errstate(over="ignore", invalid="ignore"):
        ends = boxes[:, :2] + boxes[:, 2:]
        fits = (boxes[:, :2] >= -OVERHANG_PX).all(1) & (ends <= sizes_wh[image] + OVERHANG_PX).all(1)
    if len(fits) and fits.mean() < _NEARLY_ALL:
        return {}
    misfits = set(image[~fits].tolist())
    return {
        identity: found_wh[identity]
        for identity, row in rows.items()
        if row not in misfits and not _is_same_shape(table.sizes_wh[row].tolist(), found_wh[identity])
    }


def _is_same_shape(recorded_wh: list[float], found_wh: _SizeWH) -> bool:
    ratio = (recorded_wh[0] / recorded_wh[1]) / (found_wh[0] / found_wh[1])
    return abs(ratio - 1) < _SAME_SHAPE
