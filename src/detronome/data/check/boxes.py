"""Findings about boxes and areas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from detronome.data.check.collector import Collector
from detronome.data.check.geometry import OVERHANG_PX, BoxGeometry, is_plausible_area
from detronome.data.check.table import AnnotationTable

__all__ = ["check_boxes", "geometry_of"]

_LEFT_OUT = "training leaves these objects out and learns them as background"


def geometry_of(table: AnnotationTable) -> BoxGeometry:
    """Return the boxes of a table against their images."""
    sizes_wh = np.full((len(table), 2), np.nan)
    has_image = table.image >= 0
    sizes_wh[has_image] = table.sizes_wh[table.image[has_image]]
    return BoxGeometry(table.boxes_xywh, sizes_wh)


def check_boxes(table: AnnotationTable, found: Collector, *, assume_xyxy: bool | None = None) -> None:
    """Add what is wrong with boxes, their repetition and their areas.

    In a file whose boxes look like another format the defects of single boxes would be noise, and are not told.

    Args:
        table: the file; corners that `assume_xyxy` speaks of were turned into left, top, width, height.
        found: gets the findings.
        assume_xyxy: see `BoxGeometry.suspected_format`.
    """
    geometry = geometry_of(table)
    suspected = geometry.suspected_format(assume_xyxy)
    if assume_xyxy:
        _tell_said_xyxy(geometry, found)
    if suspected == "xyxy":
        _tell_xyxy(table, geometry, found)
        _check_repeats(table, found)
        return
    _check_empty(table, geometry, found)
    if suspected is not None:
        (_tell_normalised if suspected == "normalised" else _tell_cxcywh)(table, geometry, found)
        _check_repeats(table, found)
        return
    _check_places(table, geometry, found)
    _check_repeats(table, found)
    _check_areas(table, geometry, found)


def _tell_said_xyxy(geometry: BoxGeometry, found: Collector) -> None:
    found.annotations(
        geometry.is_readable,
        "boxes_are_xyxy",
        "error",
        "box is [left, top, right, bottom], as was said; COCO has [left, top, width, height] | "
        "boxes are [left, top, right, bottom], as was said; COCO has [left, top, width, height]",
        effect="every box is learned too large",
        fix="write width and height (right - left, bottom - top); --fix OUT --assume-xyxy does",
        is_fixable=True,
    )


def _tell_xyxy(table: AnnotationTable, geometry: BoxGeometry, found: Collector) -> None:
    found.annotations(
        geometry.is_placed & (geometry.overhang_px > OVERHANG_PX),
        "boxes_look_like_xyxy",
        "error",
        "boxes look like [left, top, right, bottom]; COCO has [left, top, width, height]",
        detail=_box(table),
        effect="every box is learned too large; these do not even fit into their image",
        fix="write width and height (right - left, bottom - top); --fix OUT --assume-xyxy does",
    )


def _tell_cxcywh(table: AnnotationTable, geometry: BoxGeometry, found: Collector) -> None:
    found.annotations(
        geometry.is_placed & (geometry.overhang_px > OVERHANG_PX),
        "boxes_look_like_cxcywh",
        "error",
        "boxes look like [centre x, centre y, width, height]; COCO has [left, top, width, height]",
        detail=_box(table),
        effect="every box is learned half its size too far right and down; these do not even fit into their image",
        fix="write left and top (centre minus half the size); --assume-xywh if they are as COCO has them",
    )


def _tell_normalised(table: AnnotationTable, geometry: BoxGeometry, found: Collector) -> None:
    found.annotations(
        geometry.is_placed,
        "boxes_look_normalised",
        "error",
        "boxes look like shares of the image from 0 to 1; COCO has pixels",
        detail=_box(table),
        effect="every object is learned as a speck of a pixel in the top left corner",
        fix="multiply left and width by the image's width, top and height by its height; "
        "--assume-xywh if they are pixels",
    )


def _check_empty(table: AnnotationTable, geometry: BoxGeometry, found: Collector) -> None:
    for mask, code, what in (
        (geometry.has_zero_size, "box_zero_size", "box has no width or no height | boxes have no width or no height"),
        (
            geometry.has_negative_size,
            "box_negative_size",
            "box has a negative width or height | boxes have a negative width or height",
        ),
    ):
        found.annotations(
            mask,
            code,
            "warning",
            what,
            detail=_box(table),
            effect=_LEFT_OUT + ("; official COCO has two such boxes" if code == "box_zero_size" else ""),
            fix="draw the boxes anew or remove the annotations; --fix removes them",
            is_fixable=True,
        )


def _check_places(table: AnnotationTable, geometry: BoxGeometry, found: Collector) -> None:
    def box_and_size(row: int) -> str:
        width, height = geometry.sizes_wh[row].tolist()
        return f"{_box(table)(row)} in {width:.0f}x{height:.0f}"

    found.annotations(
        geometry.is_outside,
        "box_outside_image",
        "warning",
        "box lies wholly outside its image | boxes lie wholly outside their image",
        detail=box_and_size,
        effect=_LEFT_OUT,
        fix="check whether the image was cropped, scaled or turned after annotation; --fix removes them",
        is_fixable=True,
    )
    found.annotations(
        geometry.reaches_beyond,
        "box_beyond_image",
        "warning",
        "box reaches more than 1 px beyond its image | boxes reach more than 1 px beyond their image",
        detail=box_and_size,
        effect="training clamps them to the image, evaluation does not: such objects are matched worse",
        fix="check whether the image was cropped, scaled or turned after annotation; --fix clamps them",
        is_fixable=True,
    )
    found.annotations(
        geometry.is_rounded_beyond,
        "box_rounded_beyond_image",
        "note",
        "box reaches up to 1 px beyond its image | boxes reach up to 1 px beyond their image",
        detail=box_and_size,
        effect="none worth naming: training clamps them to the image",
        fix="nothing to do; --fix clamps them",
        is_fixable=True,
    )
    found.annotations(
        geometry.is_tiny,
        "box_tiny",
        "note",
        "box is thinner than 1 px even after the usual resize (short side 800) | "
        "boxes are thinner than 1 px even after the usual resize (short side 800)",
        detail=_box(table),
        effect="they are learned but can hardly be found",
        fix="check whether they are slips of the mouse",
    )


def _check_repeats(table: AnnotationTable, found: Collector) -> None:
    found.annotations(
        _repeats(table),
        "annotation_repeated",
        "warning",
        "annotation repeats another one: same image, category and box | "
        "annotations repeat another one: same image, category and box",
        detail=_box(table),
        effect="the model is taught to find each of these objects twice, and evaluation misses one of them",
        fix="remove the repetitions; --fix does",
        is_fixable=True,
    )


def _repeats(table: AnnotationTable) -> Bool[np.ndarray, " A"]:
    """Return which annotations repeat an earlier one: same image, category, crowd flag and box."""
    readable = np.flatnonzero((table.image >= 0) & (table.category >= 0) & np.isfinite(table.boxes_xywh).all(1))
    crowd = np.nan_to_num(table.iscrowd, nan=0.0) != 0
    keys = np.column_stack([table.image, table.category, crowd, table.boxes_xywh + 0.0])[readable]
    with np.errstate(over="ignore"):
        mixed = np.zeros(len(keys), np.uint64)
        for column in np.ascontiguousarray(keys.T).view(np.uint64):
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")  # equal rows become neighbours, the first of the file first
    is_repeat = np.zeros(len(table), np.bool_)
    same = (keys[order[1:]] == keys[order[:-1]]).all(1)
    is_repeat[readable[order[1:][same]]] = True
    return is_repeat


def _check_areas(table: AnnotationTable, geometry: BoxGeometry, found: Collector) -> None:
    def area(row: int) -> str:
        return f"area {_number(table.area[row])}, {_box(table)(row)}"

    with np.errstate(over="ignore", invalid="ignore"):
        box_area = table.boxes_xywh[:, 2] * table.boxes_xywh[:, 3]
    is_known = np.isfinite(table.area)
    measurable = geometry.is_solid & (box_area > 0) & np.isfinite(box_area)
    found.annotations(
        ~table.has_area & measurable,
        "area_missing",
        "note",
        "annotation has no area | annotations have no area",
        effect="width x height is taken instead; pycocotools and tools on top of it stop",
        fix="--fix fills it in",
        is_fixable=True,
    )
    is_positive = table.area > 0
    found.annotations(
        is_known & measurable & ~is_positive,
        "area_not_positive",
        "warning",
        "area is zero or negative though the box is not empty | areas are zero or negative though the box is not empty",
        detail=area,
        effect="evaluation counts these objects among the small ones, or in no size at all",
        fix="--fix computes them from the outline, or the box",
        is_fixable=True,
    )
    plausible = is_plausible_area(table.area, box_area, table.segments.area)
    found.annotations(
        is_known & measurable & is_positive & ~plausible,
        "area_implausible",
        "warning",
        "area contradicts the box or the outline by more than a factor of two | "
        "areas contradict the box or the outline by more than a factor of two",
        detail=area,
        effect="AP of small, medium and large objects sorts them wrongly; training does not use the area",
        fix="--fix computes them from the outline, or the box",
        is_fixable=True,
    )


def _box(table: AnnotationTable) -> Callable[[int], str]:
    """Return a function that spells the box of a row."""
    return lambda row: f"[{', '.join(_number(value) for value in table.boxes_xywh[row].tolist())}]"


def _number(value: float) -> str:
    return f"{value:.6g}"
