"""Repairing a COCO object: whatever has one reasonable repair, each in its own step, with a list of all changes.

The steps build on each other: references are read after quotes are gone, areas after boxes are clamped. Keys that are
not repaired stay as they are, in their order, unknown ones too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detronome.data.check.findings import Change
from detronome.data.check.geometry import ROUNDING_PX, BoxFormat, BoxGeometry, is_plausible_area
from detronome.data.check.image_repairs import ImageRepairs
from detronome.data.check.segments import measure_segments
from detronome.data.check.table import encode_outline
from detronome.data.coco.problems import (
    FEWEST_SHIFTED,
    JsonObject,
    id_shift,
    is_finite_number,
    is_same_record,
    quoted_number,
    whole_number,
)
from detronome.errors import DataError

__all__ = ["MOST_REMOVED", "repair"]

_WHOLE_KEYS = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id",),
}
_LARGEST_ID = 2**53
MOST_REMOVED = 0.25
"""The share of annotations that a repair may remove."""
_REFUSED_BOXES: Mapping[BoxFormat, tuple[str, str]] = {
    "xyxy": (
        "[left, top, right, bottom]",
        "say which they are: --assume-xyxy, or --assume-xywh if they are as COCO has them",
    ),
    "cxcywh": (
        "[centre x, centre y, width, height]",
        "write left and top (centre minus half the size), or say --assume-xywh if they are as COCO has them",
    ),
    "normalised": (
        "shares of the image from 0 to 1",
        "multiply left and width by the image's width, top and height by its height, or say --assume-xywh if they "
        "are pixels",
    ),
}


def repair(
    root: JsonObject,
    annotation_file: Path,
    *,
    assume_xyxy: bool | None = None,
    image_repairs: ImageRepairs | None = None,
    most_removed: float = MOST_REMOVED,
) -> list[Change]:
    """Repair a COCO object in place and return what was changed. See `fix_annotations`."""
    about_images = image_repairs or ImageRepairs()
    work = _Repair(root)
    work.keep_objects()
    work.take_quotes_away()
    work.drop_repeated_records()
    work.correct_images(about_images)
    work.drop_images(about_images.unusable, annotation_file)
    work.refuse_shifted_ids(annotation_file)
    work.drop_dangling()
    work.convert_boxes(annotation_file, assume_xyxy)
    work.fill_boxes()
    work.clamp_boxes()
    work.set_crowd_flags()
    work.drop_repeated_annotations()
    work.compute_areas()
    work.number_annotations()
    work.refuse_losses(annotation_file, most_removed)
    return work.changes()


class _Repair:
    """The lists of one COCO object while they are repaired, and the changes so far."""

    def __init__(self, root: JsonObject) -> None:
        self._root = root
        self._cases: dict[str, list[str]] = {}
        self._num_before = 0
        self._lost: dict[str, int] = {}

    def changes(self) -> list[Change]:
        return [Change(what=what, count=len(cases), cases=tuple(cases)) for what, cases in self._cases.items()]

    def keep_objects(self) -> None:
        for name in _WHOLE_KEYS:
            entries = self._root.get(name)
            if isinstance(entries, list):
                for place, entry in enumerate(entries):
                    if not isinstance(entry, dict):
                        self._tell(f"removed entries of {name} that are not objects", f"$.{name}[{place}]")
                self._root[name] = [entry for entry in entries if isinstance(entry, dict)]

    def take_quotes_away(self) -> None:
        for name, keys in _WHOLE_KEYS.items():
            for record in self._list(name):
                before = record.get("id")
                for key in keys:
                    number = whole_number(quoted_number(record.get(key)))
                    if number is not None:
                        record[key] = number
                        self._tell(f"took {key} of {name} out of quotes", _name(name, record, before))
        for annotation in self._list("annotations"):
            for key in ("area", "iscrowd"):
                number_or_none = quoted_number(annotation.get(key))
                if number_or_none is not None:
                    annotation[key] = number_or_none
                    self._tell(f"took {key} of annotations out of quotes", _name("annotations", annotation))
            unquoted = _unquoted_box(annotation.get("bbox"))
            if unquoted is not None:
                annotation["bbox"] = unquoted
                self._tell("took numbers of bbox out of quotes", _name("annotations", annotation))

    def drop_repeated_records(self) -> None:
        for name in ("images", "categories"):
            first: dict[int, JsonObject] = {}
            kept = []
            for record in self._list(name):
                identity = whole_number(record.get("id"))
                earlier = first.get(identity) if identity is not None else None
                if earlier is not None and is_same_record(earlier, record):
                    self._tell(f"removed repeated records of {name}", _name(name, record))
                    continue
                kept.append(record)
                if identity is not None:
                    first.setdefault(identity, record)
            self._replace(name, kept)

    def correct_images(self, about: ImageRepairs) -> None:
        for image in self._list("images"):
            identity = whole_number(image.get("id"))
            if identity is None:
                continue
            if identity in about.names and image.get("file_name") != about.names[identity]:
                case = f"{_name('images', image)}: {image.get('file_name')} is now {about.names[identity]}"
                image["file_name"] = about.names[identity]
                self._tell("wrote file_name as the file is called on disk", case)
            if identity in about.sizes_wh and _size_wh(image) != about.sizes_wh[identity]:
                width, height = about.sizes_wh[identity]
                case = f"{_name('images', image)}: {image.get('width')}x{image.get('height')} is now {width}x{height}"
                image["width"], image["height"] = width, height
                self._tell("wrote width and height of images as their files have them", case)

    def drop_images(self, unusable: Mapping[int, str], annotation_file: Path) -> None:
        images = self._list("images")
        if unusable and all(whole_number(image.get("id")) in unusable for image in images):
            raise DataError(
                f"a repair would remove all {len(images):,} images, because none of their files can be used",
                where=str(annotation_file),
                fix="put the files where they are looked for, or correct the names; see image_missing and the like",
            )
        self._num_before = len(self._list("annotations"))
        if not unusable:
            return
        for image in images:
            identity = whole_number(image.get("id"))
            if identity is not None and identity in unusable:
                case = f"{_name('images', image)}: {unusable[identity]}"
                self._tell("removed images whose file cannot be used", case)
        self._replace("images", [image for image in images if whole_number(image.get("id")) not in unusable])
        self._drop_annotations(
            "removed annotations of these images",
            [whole_number(annotation.get("image_id")) in unusable for annotation in self._list("annotations")],
        )
        self._num_before = len(self._list("annotations"))
        self._lost.clear()

    def refuse_shifted_ids(self, annotation_file: Path) -> None:
        for name, key in (("images", "image_id"), ("categories", "category_id")):
            used = {whole_number(annotation.get(key)) for annotation in self._list("annotations")}
            shift = id_shift(self._ids(name), used, fewest=FEWEST_SHIFTED[key])
            if shift is not None:
                raise DataError(
                    f"the ids of {name} and the {key} of annotations count from different numbers, "
                    "so a repair would leave wrong ones behind",
                    where=str(annotation_file),
                    fix=f"{'subtract 1 from' if shift < 0 else 'add 1 to'} every {key}, or correct the ids of {name}",
                )

    def refuse_losses(self, annotation_file: Path, most: float) -> None:
        """Refuse a repair that is no repair: what images that cannot be used take along does not count."""
        num_lost = sum(self._lost.values())
        if num_lost > most * self._num_before:
            reasons = "; ".join(f"{count:,} {what.removeprefix('removed ')}" for what, count in self._lost.items())
            raise DataError(
                f"a repair would remove {num_lost:,} of {self._num_before:,} annotations: {reasons}",
                where=str(annotation_file),
                fix="so many wrong ones have one cause, probably in the export: correct it there",
            )

    def drop_dangling(self) -> None:
        for name, key in (("images", "image_id"), ("categories", "category_id")):
            ids = self._ids(name)
            self._drop_annotations(
                f"removed annotations without {key}",
                [annotation.get(key) is None for annotation in self._list("annotations")],
            )
            wanted = [whole_number(annotation.get(key)) for annotation in self._list("annotations")]
            self._drop_annotations(
                f"removed annotations whose {key} the file does not have",
                [bool(ids) and one is not None and one not in ids for one in wanted],
            )

    def convert_boxes(self, annotation_file: Path, assume_xyxy: bool | None) -> None:
        geometry = self._geometry()
        if assume_xyxy:
            self._write_sizes_of_corners(geometry)
            geometry = self._geometry()
        suspected = geometry.suspected_format(assume_xyxy)
        if suspected is not None:
            looks, fix = _REFUSED_BOXES[suspected]
            raise DataError(
                f"boxes look like {looks}, so a repair would ruin them", where=str(annotation_file), fix=fix
            )

    def _write_sizes_of_corners(self, geometry: BoxGeometry) -> None:
        for row in np.flatnonzero(geometry.is_readable).tolist():
            left, top, right, bottom = (annotation := self._list("annotations")[row])["bbox"]
            annotation["bbox"] = [left, top, right - left, bottom - top]
            self._tell(
                "rewrote boxes from [left, top, right, bottom] to [left, top, width, height]",
                _name("annotations", annotation),
            )

    def fill_boxes(self) -> None:
        """Take the bounds of the polygons where the box cannot be read; without polygons the annotation goes."""
        annotations = self._list("annotations")
        without = [annotation for annotation in annotations if not _is_box(annotation.get("bbox"))]
        measures = measure_segments([encode_outline(annotation.get("segmentation")) for annotation in without])
        hopeless = set()
        for annotation, (left, top, right, bottom) in zip(without, measures.bounds_xyxy.tolist(), strict=True):
            bbox = [left, top, right - left, bottom - top]
            if _is_box(bbox):
                annotation["bbox"] = bbox
                self._tell("took boxes from the bounds of the polygons", _name("annotations", annotation))
            else:
                hopeless.add(id(annotation))
        self._drop_annotations(
            "removed annotations without a readable box", [id(annotation) in hopeless for annotation in annotations]
        )

    def clamp_boxes(self) -> None:
        geometry = self._geometry()
        annotations = self._list("annotations")
        is_over = geometry.is_solid & geometry.is_placed & ~geometry.is_outside & (geometry.overhang_px > ROUNDING_PX)
        for row in np.flatnonzero(is_over).tolist():
            corners = np.concatenate([geometry.boxes_xywh[row, :2], geometry.ends_xy[row]])
            left, top, right, bottom = corners.clip(0, np.tile(geometry.sizes_wh[row], 2)).tolist()
            annotations[row]["bbox"] = [left, top, right - left, bottom - top]
            self._tell("clamped boxes to their image", _name("annotations", annotations[row]))
        for what, mask in (
            ("removed annotations with empty boxes", geometry.has_zero_size | geometry.has_negative_size),
            ("removed annotations with boxes outside their image", geometry.is_outside),
        ):
            self._tell_all(what, annotations, mask.tolist())
            self._count_loss(what, int(mask.sum()))
        keep = geometry.is_solid & ~geometry.is_outside
        self._replace("annotations", [one for one, stays in zip(annotations, keep.tolist(), strict=True) if stays])

    def drop_repeated_annotations(self) -> None:
        images, categories = self._ids("images"), self._ids("categories")
        seen: set[tuple[object, ...]] = set()
        is_repeat = []
        for annotation in self._list("annotations"):
            image_id, category_id = (whole_number(annotation.get(key)) for key in ("image_id", "category_id"))
            key = (image_id, category_id, annotation["iscrowd"], *map(float, annotation["bbox"]))
            is_repeat.append(key in seen and image_id in images and category_id in categories)
            seen.add(key)
        self._drop_annotations("removed repeated annotations", is_repeat, is_loss=False)

    def compute_areas(self) -> None:
        annotations = self._list("annotations")
        if not annotations:
            return
        geometry = self._geometry()
        with np.errstate(over="ignore", invalid="ignore"):
            box_area = geometry.boxes_xywh[:, 2] * geometry.boxes_xywh[:, 3]
        outline_area = measure_segments([encode_outline(one.get("segmentation")) for one in annotations]).area
        readable = [is_finite_number(annotation.get("area")) for annotation in annotations]
        area = np.array([one["area"] if good else np.nan for one, good in zip(annotations, readable, strict=True)])
        area = area.astype(np.float64)
        is_measurable = geometry.is_solid & (box_area > 0) & np.isfinite(box_area)
        is_sound = (area > 0) & is_plausible_area(area, box_area, outline_area)
        has_outline = np.isfinite(outline_area) & (outline_area > 0)
        best = np.where(has_outline, outline_area, box_area)
        for row in np.flatnonzero(is_measurable & ~is_sound).tolist():
            annotations[row]["area"] = float(best[row])
            self._tell("computed areas that were missing or wrong", _name("annotations", annotations[row]))
        for row in np.flatnonzero(~is_measurable & ~np.array(readable)).tolist():
            if annotations[row].pop("area", None) is not None:
                self._tell("removed areas that are not numbers", _name("annotations", annotations[row]))

    def set_crowd_flags(self) -> None:
        for annotation in self._list("annotations"):
            flag = annotation.get("iscrowd")
            if flag is None:
                annotation["iscrowd"] = 0
                self._tell("wrote iscrowd 0 where it was missing", _name("annotations", annotation))
            elif not isinstance(flag, int | float):
                annotation["iscrowd"] = 0
                self._tell("wrote iscrowd 0 where it was no number", _name("annotations", annotation))
            elif flag not in (0, 1):
                annotation["iscrowd"] = 1
                self._tell("wrote iscrowd 1 where it was neither 0 nor 1", _name("annotations", annotation))

    def number_annotations(self) -> None:
        annotations = self._list("annotations")
        ids = [whole_number(annotation.get("id")) for annotation in annotations]
        taken = {one for one in ids if one}
        following = max(taken, default=0) + 1
        if not 1 <= following < _LARGEST_ID:
            following = 1
        seen: set[int] = set()
        for annotation, identity in zip(annotations, ids, strict=True):
            if identity and identity not in seen:
                seen.add(identity)
                continue
            while following in taken:
                following += 1
            before = _name("annotations", annotation)
            annotation["id"] = following
            taken.add(following)
            self._tell("gave annotations a new id", f"{before}: now {following}")

    def _list(self, name: str) -> list[JsonObject]:
        entries = self._root.get(name)
        return entries if isinstance(entries, list) else []

    def _ids(self, name: str) -> set[int]:
        ids = (whole_number(record.get("id")) for record in self._list(name))
        return {identity for identity in ids if identity is not None}

    def _replace(self, name: str, records: list[JsonObject]) -> None:
        if isinstance(self._root.get(name), list):
            self._root[name] = records

    def _tell(self, what: str, case: str) -> None:
        self._cases.setdefault(what, []).append(case)

    def _tell_all(self, what: str, annotations: list[JsonObject], is_case: list[bool]) -> None:
        for annotation, applies in zip(annotations, is_case, strict=True):
            if applies:
                self._tell(what, _name("annotations", annotation))

    def _count_loss(self, what: str, count: int) -> None:
        if count:
            self._lost[what] = self._lost.get(what, 0) + count

    def _drop_annotations(self, what: str, is_case: list[bool], *, is_loss: bool = True) -> None:
        annotations = self._list("annotations")
        if is_loss:
            self._count_loss(what, sum(is_case))
        self._tell_all(what, annotations, is_case)
        self._replace("annotations", [one for one, goes in zip(annotations, is_case, strict=True) if not goes])

    def _geometry(self) -> BoxGeometry:
        nothing = (np.nan, np.nan)
        sizes: dict[int | None, tuple[float, float]] = {None: nothing}
        for image in self._list("images"):
            sizes.setdefault(whole_number(image.get("id")), _size_wh(image) or nothing)
        annotations = self._list("annotations")
        boxes = [one["bbox"] if _is_box(one.get("bbox")) else (np.nan,) * 4 for one in annotations]
        sizes_wh = [sizes.get(whole_number(one.get("image_id")), nothing) for one in annotations]
        return BoxGeometry(np.array(boxes, np.float64).reshape(-1, 4), np.array(sizes_wh, np.float64).reshape(-1, 2))


def _name(name: str, record: JsonObject, identity: Any = None) -> str:
    one = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
    identity = record.get("id") if identity is None else identity
    text = str(identity)[:40] if isinstance(identity, int | float | str) else "without id"
    if name == "annotations" and whole_number(record.get("image_id")) is not None:
        return f"{one} {text} of image {record['image_id']}"
    return f"{one} {text}"


def _size_wh(image: JsonObject) -> tuple[int, int] | None:
    width, height = whole_number(image.get("width")), whole_number(image.get("height"))
    if width is None or height is None or not (0 < width < 2**31 and 0 < height < 2**31):
        return None
    return width, height


def _is_box(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(is_finite_number(value) for value in bbox)


def _unquoted_box(bbox: Any) -> list[float] | None:
    """Return the box as numbers where some were in quotes and all are readable, else None."""
    if not isinstance(bbox, list) or len(bbox) != 4 or _is_box(bbox):
        return None
    numbers = [value if is_finite_number(value) else quoted_number(value) for value in bbox]
    return [number for number in numbers if number is not None] if None not in numbers else None
