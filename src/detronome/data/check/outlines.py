"""Findings about segmentations and crowd regions. Boxes are learned without them, masks are not."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from detronome.data.check.boxes import geometry_of
from detronome.data.check.collector import Collector
from detronome.data.check.geometry import OVERHANG_PX
from detronome.data.check.segments import SegmentKind
from detronome.data.check.table import AnnotationTable

__all__ = ["check_outlines"]

_MASKS_ONLY = "training on boxes does not read outlines; tools that make masks stop or draw something else"
_FEW_PX = 5.0
_SHARE = 0.05


def check_outlines(table: AnnotationTable, found: Collector, *, assume_xyxy: bool | None = None) -> None:
    """Add what is wrong with polygons, run-length codes and crowd regions."""
    _check_crowds(table, found)
    kind = table.segments.kind
    if not kind.any():
        return
    found.annotations(
        kind == SegmentKind.UNREADABLE,
        "segmentation_wrong_type",
        "warning",
        "segmentation is neither a list of polygons nor a run-length code",
        effect=_MASKS_ONLY,
        fix="write [[x1, y1, x2, y2, x3, y3, ...], ...], or {counts, size}",
    )
    found.annotations(
        (kind == SegmentKind.NONE) & (table.iscrowd != 1),
        "segmentation_missing",
        "note",
        "annotation has no outline though others of the file have one | "
        "annotations have no outline though others of the file have one",
        effect="none for boxes; masks of these objects are empty",
        fix="outline them, if masks are wanted",
    )
    _check_polygons(table, found, assume_xyxy)
    _check_codes(table, found)


def _check_crowds(table: AnnotationTable, found: Collector) -> None:
    readable = table.has_iscrowd & np.isfinite(table.iscrowd)
    found.annotations(
        readable & (table.iscrowd != 0) & (table.iscrowd != 1),
        "iscrowd_odd",
        "warning",
        "iscrowd is neither 0 nor 1",
        detail=lambda row: f"{table.iscrowd[row]:g}",
        effect="it counts as 1: training leaves the object out, evaluation ignores what is found there",
        fix="write 0 for single objects, 1 for groups; --fix writes 1",
        is_fixable=True,
    )
    found.annotations(
        ~table.has_iscrowd,
        "iscrowd_missing",
        "note",
        "annotation has no iscrowd | annotations have no iscrowd",
        effect="0 is taken, a single object; pycocotools and tools on top of it stop",
        fix="--fix writes 0",
        is_fixable=True,
    )
    is_outlined = (table.segments.kind == SegmentKind.POLYGONS) | (table.segments.kind == SegmentKind.NONE)
    found.annotations(
        readable & (table.iscrowd != 0) & is_outlined,
        "crowd_without_rle",
        "note",
        "crowd region is not a run-length code | crowd regions are not run-length codes",
        effect="training leaves them out as it does all crowd regions; single objects marked so by mistake are lost",
        fix="check that these are groups that nobody could box one by one; write iscrowd 0 for single objects",
    )


def _check_polygons(table: AnnotationTable, found: Collector, assume_xyxy: bool | None) -> None:
    segments = table.segments
    found.annotations(
        segments.has_odd_polygon,
        "polygon_odd_count",
        "warning",
        "annotation has a polygon with an odd count of numbers | "
        "annotations have polygons with an odd count of numbers",
        effect=_MASKS_ONLY,
        fix="write x and y of every point",
    )
    found.annotations(
        segments.has_short_polygon,
        "polygon_too_short",
        "warning",
        "annotation has a polygon of fewer than three points | annotations have polygons of fewer than three points",
        effect=_MASKS_ONLY,
        fix="remove these polygons; they enclose nothing",
    )
    geometry = geometry_of(table)
    bounds = segments.bounds_xyxy
    is_placed = np.isfinite(bounds).all(1) & geometry.is_placed
    overhang = np.maximum(-bounds[:, :2], bounds[:, 2:] - geometry.sizes_wh).max(1)
    found.annotations(
        is_placed & (overhang > OVERHANG_PX),
        "polygon_beyond_image",
        "note",
        "polygon reaches more than 1 px beyond its image | polygons reach more than 1 px beyond their image",
        detail=lambda row: f"by {overhang[row]:.6g} px",
        effect="none for boxes; masks are cut at the image",
        fix="check whether the image was cropped, scaled or turned after annotation",
    )
    if geometry.suspected_format(assume_xyxy) is not None:
        return
    is_whole = is_placed & geometry.is_solid & ~segments.has_odd_polygon & ~segments.has_short_polygon
    distance = _distance_px(table.boxes_xywh, bounds, geometry.sizes_wh)
    found.annotations(
        is_whole & (distance > np.maximum(_FEW_PX, _SHARE * table.boxes_xywh[:, 2:].max(1))),
        "polygon_box_mismatch",
        "warning",
        "box and polygons enclose different regions",
        detail=lambda row: f"{distance[row]:.6g} px apart",
        effect="one of them is wrong, and boxes are what training learns",
        fix="look at these objects; one of the two was edited without the other",
    )


def _check_codes(table: AnnotationTable, found: Collector) -> None:
    segments = table.segments
    is_code = segments.kind == SegmentKind.RLE
    if not is_code.any():
        return
    sizes_wh = geometry_of(table).sizes_wh
    is_other_size = is_code & np.isfinite(sizes_wh).all(1) & (segments.rle_hw != sizes_wh[:, ::-1]).any(1)
    found.annotations(
        is_other_size,
        "rle_size_mismatch",
        "warning",
        "run-length code is of another size than its image | run-length codes are of another size than their image",
        detail=lambda row: (
            f"{segments.rle_hw[row, 1]:.0f}x{segments.rle_hw[row, 0]:.0f} "
            f"in {sizes_wh[row, 0]:.0f}x{sizes_wh[row, 1]:.0f}"
        ),
        effect=_MASKS_ONLY,
        fix="write size as [height, width] of the image; make the code again if the image was scaled",
    )
    found.annotations(
        is_code & np.isnan(segments.rle_pixels),
        "rle_unreadable",
        "warning",
        "run-length code cannot be read | run-length codes cannot be read",
        effect=_MASKS_ONLY,
        fix="make these masks again",
    )
    found.annotations(
        is_code & np.isfinite(segments.rle_pixels) & (segments.rle_pixels != segments.rle_hw.prod(1)),
        "rle_sum_mismatch",
        "warning",
        "run-length code does not add up to height x width | run-length codes do not add up to height x width",
        detail=lambda row: f"{segments.rle_pixels[row]:.0f}, not {segments.rle_hw[row].prod():.0f}",
        effect=_MASKS_ONLY,
        fix="make these masks again",
    )


def _distance_px(
    boxes_xywh: Float64[np.ndarray, "A 4"],
    bounds_xyxy: Float64[np.ndarray, "A 4"],
    sizes_wh: Float64[np.ndarray, "A 2"],
) -> Float64[np.ndarray, " A"]:
    """Return how far apart the sides of box and bounds are at most, where both are cut at the image."""
    with np.errstate(over="ignore", invalid="ignore"):
        ends = boxes_xywh[:, :2] + boxes_xywh[:, 2:]
        corners = np.concatenate([boxes_xywh[:, :2], ends], 1)
        limits = np.concatenate([sizes_wh, sizes_wh], 1)
        return np.abs(corners.clip(0, limits) - bounds_xyxy.clip(0, limits)).max(1)
