"""The records of a panoptic annotation file, with whatever values the file gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from detronome.data.coco.problems import parse_json
from detronome.errors import DataError

__all__ = [
    "Category",
    "Image",
    "MapAnnotation",
    "PanopticFile",
    "PanopticResults",
    "Segment",
    "is_text",
    "is_whole",
    "read_panoptic",
    "read_panoptic_results",
]

_File = TypeVar("_File")


class Segment(msgspec.Struct, gc=False):
    """One entry of `segments_info`."""

    id: Any = None
    category_id: Any = None
    area: Any = None
    bbox: Any = None
    iscrowd: Any = None


class MapAnnotation(msgspec.Struct, gc=False):
    """One entry of `annotations`: the segments of an image, and the file that holds their pixels."""

    image_id: Any = None
    file_name: Any = None
    segments_info: list[Segment] = []


class Image(msgspec.Struct, gc=False):
    """One entry of `images`."""

    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None


class Category(msgspec.Struct, gc=False):
    """One entry of `categories`."""

    id: Any = None
    name: Any = None
    isthing: Any = None
    color: Any = None


class PanopticFile(msgspec.Struct, gc=False):
    """A panoptic annotation file."""

    images: list[Image]
    annotations: list[MapAnnotation]
    categories: list[Category]


class PanopticResults(msgspec.Struct, gc=False):
    """A file of panoptic predictions; other parts of it are not read."""

    annotations: list[MapAnnotation]


def read_panoptic(json_file: Path) -> PanopticFile:
    """Return the records of a panoptic annotation file.

    Raises:
        DataError: the file cannot be read, is not JSON, or its lists and objects are not where they belong.
    """
    return _read(json_file, PanopticFile)


def read_panoptic_results(json_file: Path) -> PanopticResults:
    """Return the records of a file of panoptic predictions.

    Raises:
        DataError: as above.
    """
    return _read(json_file, PanopticResults)


def _read(json_file: Path, form: type[_File]) -> _File:
    try:
        content = json_file.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        return msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=form)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        root = parse_json(content, json_file)  # says where the JSON ends, and knows NaN and UTF-16
    try:
        return msgspec.convert(root, form)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DataError(f"a part has not the form of panoptic annotations: {error}") from error


def is_text(name: str) -> bool:
    """Return whether a string can be written: JSON can spell halves of characters."""
    try:
        name.encode()
    except UnicodeError:
        return False
    return True


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number; `7.0` is one, `true` is not."""
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
