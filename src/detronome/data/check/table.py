"""An annotation file as columns for checking: everything that can be read of it, however much is wrong.

Unlike `coco.read`, which is for training and refuses what is not sound, this keeps the file's order, dangling
references and missing values. A file whose records have the right types takes a fast path that never builds a
polygon; any other is examined as plain JSON, record by record.

Shape letters: `I` images, `K` categories, `A` annotations, all in the file's order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64

from detronome.data.check.no_gc import without_collector
from detronome.data.check.segments import Segments, measure_segments
from detronome.data.coco.problems import Defect, JsonObject, examine, is_utf8, parse_json
from detronome.data.coco.records import CocoCategory, CocoImage, WholeNumber
from detronome.errors import DataError

__all__ = ["AnnotationTable", "encode_outline", "read_table", "table_of"]

_Flag = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
_MISSING = msgspec.Raw(b"null")
_NO_BOX = (math.nan,) * 4


class _Annotation(msgspec.Struct, gc=False):
    image_id: WholeNumber
    category_id: WholeNumber
    bbox: tuple[float, float, float, float]
    id: WholeNumber | None = None
    area: float | None = None
    iscrowd: _Flag | bool | None = None
    segmentation: msgspec.Raw = _MISSING


class _File(msgspec.Struct, gc=False):
    images: Annotated[list[CocoImage], msgspec.Meta(min_length=1)]
    annotations: list[_Annotation]
    categories: Annotated[list[CocoCategory], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class AnnotationTable:
    """One annotation file as columns. Of images and categories, the first of each readable id counts."""

    annotation_file: Path
    image_ids: Int64[np.ndarray, " I"]
    file_names: list[str | None]
    sizes_wh: Float64[np.ndarray, "I 2"]
    """NaN where unreadable."""
    category_ids: Int64[np.ndarray, " K"]
    category_names: list[str | None]
    ids: Int64[np.ndarray, " A"]
    """Zero where `has_id` is False."""
    has_id: Bool[np.ndarray, " A"]
    lacks_id: Bool[np.ndarray, " A"]
    """There is no id, not even one that cannot be read."""
    image: Int64[np.ndarray, " A"]
    """Row of the annotation's image; -1 where there is none."""
    category: Int64[np.ndarray, " A"]
    """Row of its category; -1 where there is none."""
    boxes_xywh: Float64[np.ndarray, "A 4"]
    """Pixels; NaN where unreadable."""
    area: Float64[np.ndarray, " A"]
    """Square pixels; NaN where missing or unreadable."""
    has_area: Bool[np.ndarray, " A"]
    """False where missing."""
    iscrowd: Float64[np.ndarray, " A"]
    """As the file has it; NaN where missing or unreadable."""
    has_iscrowd: Bool[np.ndarray, " A"]
    """False where missing."""
    segments: Segments

    def __len__(self) -> int:
        return len(self.ids)

    def with_boxes_of_corners(self) -> AnnotationTable:
        """Return the table with boxes read as left, top, right, bottom."""
        with np.errstate(over="ignore", invalid="ignore"):
            sizes_wh = self.boxes_xywh[:, 2:] - self.boxes_xywh[:, :2]
        return replace(self, boxes_xywh=np.concatenate([self.boxes_xywh[:, :2], sizes_wh], 1))

    def with_sizes(self, sizes_wh: Mapping[int, tuple[int, int]]) -> AnnotationTable:
        """Return the table with other sizes for some images, given by id."""
        corrected = self.sizes_wh.copy()
        for row, identity in enumerate(self.image_ids.tolist()):
            if identity in sizes_wh:
                corrected[row] = sizes_wh[identity]
        return replace(self, sizes_wh=corrected)

    def name_annotation(self, row: int) -> str:
        """Return the words by which the user finds an annotation: its id and image, or its place in the file."""
        name = f"annotation {self.ids[row]}" if self.has_id[row] else f"$.annotations[{row}]"
        return f"{name} of image {self.image_ids[self.image[row]]}" if self.image[row] >= 0 else name

    def name_image(self, row: int) -> str:
        """Return the words by which the user finds an image: its id and file."""
        file_name = self.file_names[row]
        return f"image {self.image_ids[row]}" + (f" ({file_name})" if file_name else "")


def read_table(annotation_file: Path) -> tuple[AnnotationTable, list[Defect]]:
    """Return what can be read of an annotation file, and its structural defects.

    Raises:
        DataError: the file cannot be read, or is not a JSON object.
    """
    with without_collector():
        return _read(annotation_file)


def _read(annotation_file: Path) -> tuple[AnnotationTable, list[Defect]]:
    try:
        content = annotation_file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the annotation file cannot be read: {reason}", where=str(annotation_file)) from error
    file = _decode(content)
    if file is None:
        return table_of(parse_json(content, annotation_file), annotation_file)
    table = _table(
        annotation_file,
        images=file.images,
        categories=file.categories,
        annotations=file.annotations,
        segmentations=[annotation.segmentation for annotation in file.annotations],
    )
    if _has_sound_references(table):
        return table, []
    del table, file
    return table_of(parse_json(content, annotation_file), annotation_file)


def table_of(root: JsonObject, annotation_file: Path) -> tuple[AnnotationTable, list[Defect]]:
    """Return what can be read of a COCO object, and its structural defects. See `read_table`."""
    examined = examine(root)
    strict, records = examined.strict, examined.records["annotations"]
    table = _table(
        annotation_file,
        images=[CocoImage(**image) for image in _first_of_each_id(strict["images"])],
        categories=[CocoCategory(**category) for category in _first_of_each_id(strict["categories"])],
        annotations=[
            _Annotation(**annotation | {"bbox": annotation["bbox"] or _NO_BOX, "iscrowd": _crowd_flag(record)})
            for annotation, record in zip(strict["annotations"], records, strict=True)
        ],
        segmentations=[encode_outline(record.get("segmentation")) for record in records],
    )
    lacks_id = np.array([record.get("id") is None for record in records], np.bool_)
    return replace(table, lacks_id=lacks_id), examined.defects


def _first_of_each_id(records: Sequence[JsonObject]) -> Iterator[JsonObject]:
    seen = {None}
    for record in records:
        if record["id"] not in seen:
            seen.add(record["id"])
            yield record


def _decode(content: bytes) -> _File | None:
    """Return the records, or None when any of them has a wrong type."""
    if not is_utf8(content):
        return None
    try:
        file = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=_File)
        for image in file.images:
            image.file_name.encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return None if any("\0" in image.file_name for image in file.images) else file


def _has_sound_references(table: AnnotationTable) -> bool:
    return (
        len(np.unique(table.image_ids)) == len(table.image_ids)
        and len(np.unique(table.category_ids)) == len(table.category_ids)
        and bool((table.image >= 0).all() and (table.category >= 0).all())
    )


def _table(
    annotation_file: Path,
    *,
    images: Sequence[CocoImage],
    categories: Sequence[CocoCategory],
    annotations: Sequence[_Annotation],
    segmentations: Sequence[bytes | msgspec.Raw],
) -> AnnotationTable:
    """Columns of records whose values may be None, or of an id that is not there."""
    image_ids = np.array([image.id for image in images], np.int64)
    category_ids = np.array([category.id for category in categories], np.int64)
    return AnnotationTable(
        annotation_file=annotation_file,
        image_ids=image_ids,
        file_names=[image.file_name for image in images],
        sizes_wh=np.array([(image.width, image.height) for image in images], np.float64).reshape(-1, 2),
        category_ids=category_ids,
        category_names=[category.name for category in categories],
        ids=np.array([annotation.id or 0 for annotation in annotations], np.int64),
        has_id=np.array([annotation.id is not None for annotation in annotations], np.bool_),
        lacks_id=np.array([annotation.id is None for annotation in annotations], np.bool_),
        image=_rows(image_ids, [annotation.image_id for annotation in annotations]),
        category=_rows(category_ids, [annotation.category_id for annotation in annotations]),
        boxes_xywh=np.array([annotation.bbox for annotation in annotations], np.float64).reshape(-1, 4),
        area=np.array([annotation.area for annotation in annotations], np.float64),
        has_area=np.array([annotation.area is not None for annotation in annotations], np.bool_),
        iscrowd=np.array([annotation.iscrowd for annotation in annotations], np.float64),
        has_iscrowd=np.array([annotation.iscrowd is not None for annotation in annotations], np.bool_),
        segments=measure_segments(segmentations),
    )


def _rows(ids: Int64[np.ndarray, " K"], wanted: Sequence[int | None]) -> Int64[np.ndarray, " N"]:
    """Return where each wanted id (None for unreadable) first stands among the ids, -1 where it does not."""
    if not len(ids) or not wanted:
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(ids, kind="stable")
    is_known = np.array([one is not None for one in wanted], np.bool_)
    keys = np.array([one or 0 for one in wanted], np.int64)
    places = np.searchsorted(ids[order], keys).clip(max=len(ids) - 1)
    rows = order[places]
    return np.where(is_known & (ids[rows] == keys), rows, -1)


def _crowd_flag(record: JsonObject) -> float | None:
    """Return the flag as it stands, NaN where it is no number, None where there is none."""
    flag = record.get("iscrowd")
    if flag is None:
        return None
    if not isinstance(flag, int | float):
        return math.nan
    return float(flag) if abs(flag) <= 2**53 else 2.0  # NaN too is a number that is neither 0 nor 1


def encode_outline(segmentation: Any) -> bytes:
    """Return the JSON text of an outline; of one that no JSON can hold, a text that is no outline."""
    try:
        return msgspec.json.encode(segmentation)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, ValueError):
        return b"false"
