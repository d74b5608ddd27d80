"""The COCO records of each image as they stand in the annotation file, for the `.json` members of shards.

The file is mapped, and its records are kept as places in it: memory does not grow with the polygons.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Int64

from detronome.data.coco.problems import parse_json
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards.format import image_ids
from detronome.errors import DataError

__all__ = ["CocoRecords"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Raws(msgspec.Struct, gc=False):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


class _ImageOf(msgspec.Struct, gc=False):
    image_id: int


class _Links(msgspec.Struct, gc=False):
    annotations: list[_ImageOf]


class CocoRecords:
    """The records of one annotation file, image by image.

    Args:
        annotation_file: a COCO JSON file.
        index: its annotations.

    Raises:
        DataError: the file cannot be read, or is no longer the one that was indexed.
    """

    def __init__(self, annotation_file: Path, index: AnnotationIndex) -> None:
        try:
            self._images, self._annotations, owners = _read(annotation_file)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"the annotation file cannot be read: {error}", where=str(annotation_file), fix="run the command again"
            ) from error
        ids = image_ids(index)
        by_id = np.argsort(ids)
        rank = np.searchsorted(ids[by_id], owners).clip(max=len(ids) - 1)
        if len(self._images) != len(index) or not np.array_equal(ids[by_id][rank], owners):
            raise DataError(
                "the annotation file changed while it was read", where=str(annotation_file), fix="run the command again"
            )
        image_of = by_id[rank]
        self._rows = np.argsort(image_of, kind="stable")
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(image_of, minlength=len(ids)))))

    def json_of(self, i: int) -> bytes:
        """Return `{"image": ..., "annotations": [...]}` of image `i`."""
        rows = self._rows[self._starts[i] : self._starts[i + 1]]
        annotations = b",".join(self._annotations[row] for row in rows.tolist())
        return b"".join((b'{"image":', self._images[i], b',"annotations":[', annotations, b"]}"))


def _read(annotation_file: Path) -> tuple[Sequence[bytes], Sequence[bytes], Int64[np.ndarray, " A"]]:
    """Return (image records, annotation records, the image id of each annotation)."""
    with annotation_file.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = len(_BYTE_ORDER_MARK) if mapped[: len(_BYTE_ORDER_MARK)] == _BYTE_ORDER_MARK else 0
    content = memoryview(mapped)[start:]
    try:
        raws = msgspec.json.decode(content, type=_Raws)
        links = msgspec.json.decode(content, type=_Links).annotations
    except (msgspec.MsgspecError, UnicodeError):
        return _read_unusual(bytes(mapped), annotation_file)
    owners = np.fromiter((link.image_id for link in links), np.int64, len(links))
    return raws.images, raws.annotations, owners


def _read_unusual(
    content: bytes, annotation_file: Path
) -> tuple[Sequence[bytes], Sequence[bytes], Int64[np.ndarray, " A"]]:
    """Do the same for spellings that only Python's json reads, such as UTF-16, NaN or 7.0 as an id."""
    root = parse_json(content, annotation_file)
    owners = np.fromiter((int(record["image_id"]) for record in root["annotations"]), np.int64)
    images, annotations = ([json.dumps(record).encode() for record in root[name]] for name in ("images", "annotations"))
    return images, annotations, owners
