"""Reading a COCO annotation file into columns, or saying everything that is wrong with it.

A sound file takes the fast path: typed decoding that never builds the polygons, some megabytes at a time, then checks
on whole columns. Any other file is read again as plain JSON by `problems`, which is slow and complete.

Shape letters: `I` images, `A` annotations.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from detronome.data.coco.problems import is_utf8, normalise_json
from detronome.data.coco.records import CocoCategory, CocoImage, WholeNumber
from detronome.errors import DataError
from detronome.types import Categories

__all__ = ["CocoAnnotations", "read_annotations"]

_CHUNK_BYTES = 2**22
_BETWEEN_OBJECTS = re.compile(rb"\}\s*,\s*\{")


class _Annotation(msgspec.Struct, gc=False):
    image_id: WholeNumber
    category_id: WholeNumber
    bbox: tuple[float, float, float, float]
    id: WholeNumber | None = None
    area: float | None = None
    iscrowd: int | bool | None = 0


class _File(msgspec.Struct, gc=False):
    images: Annotated[list[CocoImage], msgspec.Meta(min_length=1)]
    annotations: msgspec.Raw
    categories: Annotated[list[CocoCategory], msgspec.Meta(min_length=1)]


_ANNOTATIONS = msgspec.json.Decoder(list[_Annotation])


@dataclass(frozen=True)
class _Columns:
    """The annotations in the file's order."""

    image_ids: Int64[np.ndarray, " A"]
    category_ids: Int64[np.ndarray, " A"]
    boxes_xywh: Float64[np.ndarray, "A 4"]
    area: Float64[np.ndarray, " A"]
    """nan where the file has none."""
    annotation_ids: Int64[np.ndarray, " A"]
    iscrowd: Bool[np.ndarray, " A"]


@dataclass(frozen=True, kw_only=True)
class CocoAnnotations:
    """One annotation file as columns: images in the file's order, annotations grouped by image, in the file's order."""

    categories: Categories
    image_ids: Int64[np.ndarray, " I"]
    file_names: list[str]
    heights: Int32[np.ndarray, " I"]
    widths: Int32[np.ndarray, " I"]
    offsets: Int64[np.ndarray, " I+1"]
    """The annotations of image i are rows `offsets[i]` to `offsets[i + 1]` of the columns below."""
    annotation_ids: Int64[np.ndarray, " A"]
    boxes_xywh: Float64[np.ndarray, "A 4"]
    """As in the file: left, top, width, height in pixels; sizes may be zero or negative."""
    labels: Int32[np.ndarray, " A"]
    """Index into `categories`."""
    area: Float64[np.ndarray, " A"]
    """Square pixels; width x height where the file has none."""
    iscrowd: Bool[np.ndarray, " A"]
    map_names: list[str] | None = None
    """Of panoptic annotations: the file of each image's map."""


def read_annotations(annotation_file: Path) -> CocoAnnotations:
    """Return the annotations of a COCO JSON file.

    Missing `iscrowd`, `area` and annotation ids are filled in; a byte-order mark, unknown keys, empty boxes and
    images or whole files without annotations are fine.

    Raises:
        DataError: the file cannot be read or is not sound COCO JSON; all its problems at once, with JSON paths and ids.
    """
    content = _content(annotation_file)
    columns = _decode(content)
    if columns is None:
        columns = _decode(normalise_json(bytes(content), annotation_file))
        assert columns is not None, "the slow path accepted a file that the fast path refuses"
    return columns


def _content(annotation_file: Path) -> memoryview:
    """Return the file's content: mapped, so that it takes no memory that the machine could not take back."""
    try:
        with annotation_file.open("rb") as file:
            try:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError:  # nothing in it
                return memoryview(b"")
    except OSError as error:
        raise DataError(
            f"the annotation file cannot be read: {error.strerror or error}", where=str(annotation_file)
        ) from error


def _decode(content: bytes | memoryview) -> CocoAnnotations | None:
    """Return the columns, or None when anything at all is wrong."""
    text = memoryview(content)
    if bytes(text[:3]) == b"\xef\xbb\xbf":
        text = text[3:]
    if not is_utf8(text):
        return None
    try:
        file = msgspec.json.decode(text, type=_File)
        for image in file.images:
            image.file_name.encode()
        rows = _concatenate([_columns(chunk, first) for first, chunk in _chunks(memoryview(file.annotations))])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if any("\0" in image.file_name for image in file.images):
        return None
    categories = sorted(file.categories, key=lambda category: category.id)
    category_ids = np.array([category.id for category in categories], np.int64)
    image_ids = np.array([image.id for image in file.images], np.int64)
    order = np.argsort(image_ids, kind="stable")
    sorted_ids = image_ids[order]
    if (np.diff(category_ids) == 0).any() or (np.diff(sorted_ids) == 0).any():
        return None

    rank = _positions(sorted_ids, rows.image_ids)
    labels = _positions(category_ids, rows.category_ids)
    if rank is None or labels is None or not np.isfinite(rows.boxes_xywh).all():
        return None
    image_of = order[rank]
    by_image = np.argsort(image_of, kind="stable")
    counts = np.bincount(image_of, minlength=len(image_ids))
    with np.errstate(over="ignore"):
        area = np.where(np.isnan(rows.area), rows.boxes_xywh[:, 2] * rows.boxes_xywh[:, 3], rows.area)
    return CocoAnnotations(
        categories=Categories(tuple(category_ids.tolist()), tuple(category.name for category in categories)),
        image_ids=image_ids,
        file_names=[image.file_name for image in file.images],
        heights=np.array([image.height for image in file.images], np.int32),
        widths=np.array([image.width for image in file.images], np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        annotation_ids=rows.annotation_ids[by_image],
        boxes_xywh=rows.boxes_xywh[by_image],
        labels=labels[by_image].astype(np.int32),
        area=area[by_image],
        iscrowd=rows.iscrowd[by_image],
    )


def _chunks(text: memoryview) -> Iterator[tuple[int, list[_Annotation]]]:
    """Yield (position of the first, annotations) of the pieces of a JSON list.

    A list is cut where one object may end and another begin. Should that place lie inside an annotation, in a string or
    in a list of objects, the piece is not JSON, and all that is left is decoded as one: never wrongly.
    """
    first, start, end = 0, 1, len(text) - 1
    if bytes(text[:1]) != b"[":
        raise msgspec.ValidationError("annotations is not a list")
    while start < end:
        cut = _BETWEEN_OBJECTS.search(text, start + _CHUNK_BYTES) if start + _CHUNK_BYTES < end else None
        stop = end if cut is None else cut.start() + 1
        try:
            chunk = _ANNOTATIONS.decode(b"".join((b"[", text[start:stop], b"]")))
        except msgspec.MsgspecError:
            cut, chunk = None, _ANNOTATIONS.decode(b"".join((b"[", text[start:end], b"]")))
        yield first, chunk
        first += len(chunk)
        start = end if cut is None else cut.end() - 1


def _columns(annotations: list[_Annotation], first: int) -> _Columns:
    """Return a piece as columns; annotations without id are numbered by their position in the file, from 1."""
    count = len(annotations)
    numbered = ((i if a.id is None else a.id) for i, a in enumerate(annotations, first + 1))
    return _Columns(
        image_ids=np.fromiter((a.image_id for a in annotations), np.int64, count),
        category_ids=np.fromiter((a.category_id for a in annotations), np.int64, count),
        boxes_xywh=np.array([a.bbox for a in annotations], np.float64).reshape(-1, 4),
        area=np.fromiter((np.nan if a.area is None else a.area for a in annotations), np.float64, count),
        annotation_ids=np.fromiter(numbered, np.int64, count),
        iscrowd=np.fromiter((bool(a.iscrowd) for a in annotations), np.bool_, count),
    )


def _concatenate(pieces: list[_Columns]) -> _Columns:
    pieces = pieces or [_columns([], 0)]
    return _Columns(*(np.concatenate([getattr(p, f.name) for p in pieces]) for f in fields(_Columns)))


def _positions(sorted_keys: Int64[np.ndarray, " K"], wanted: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"] | None:
    """Return where each wanted key stands among the sorted keys, or None when one is not there."""
    positions = np.searchsorted(sorted_keys, wanted).clip(max=len(sorted_keys) - 1)
    return positions if np.array_equal(sorted_keys[positions], wanted) else None
