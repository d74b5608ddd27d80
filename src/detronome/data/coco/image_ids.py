"""Image ids by file name, from a COCO annotation file of any kind: instances, panoptic, or images alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import msgspec

from detronome.errors import DataError

__all__ = ["ImageIds", "read_image_ids"]


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str


class _File(msgspec.Struct):
    images: list[_Image]


class ImageIds:
    """The ids of an annotation file's images.

    Args:
        by_name: by file name, as the annotation file has it.
    """

    def __init__(self, by_name: dict[str, int]) -> None:
        self._by_name = by_name
        last_parts = Counter(PurePosixPath(name).name for name in by_name)
        self._by_last_part = {
            PurePosixPath(name).name: image_id
            for name, image_id in by_name.items()
            if last_parts[PurePosixPath(name).name] == 1
        }

    def of(self, file_name: str) -> int | None:
        """Return the id of a file: by its whole name, or by the last part where that is one image's only."""
        whole = self._by_name.get(file_name)
        return whole if whole is not None else self._by_last_part.get(PurePosixPath(file_name).name)


def read_image_ids(annotation_file: Path) -> ImageIds:
    """Read the ids.

    Raises:
        DataError: the file cannot be read, is not COCO JSON, or gives two images one name.
    """
    try:
        images = msgspec.json.decode(annotation_file.read_bytes(), type=_File).images
    except OSError as error:
        raise DataError(
            f"the annotation file cannot be read: {error.strerror or error}", where=str(annotation_file)
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"the file lists no images with an id and a file_name: {error}",
            where=str(annotation_file),
            fix="name a COCO annotation file",
        ) from error
    counts = Counter(image.file_name for image in images)
    if len(counts) < len(images):
        name = next(name for name, count in counts.items() if count > 1)
        raise DataError(
            f"two images have the name {name!r}",
            where=str(annotation_file),
            fix=f"see all of it: detronome data check {annotation_file}",
        )
    return ImageIds({image.file_name: image.id for image in images})
