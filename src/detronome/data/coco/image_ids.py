"""Image ids by file name, from a COCO annotation file of any kind: instances, panoptic, or images alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec

from detronome.data.inputs import Input
from detronome.errors import ConfigError, DataError, first_few

__all__ = ["ImageIds", "ids_of_inputs", "read_image_ids"]


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


def ids_of_inputs(inputs: Sequence[Input], annotation_file: Path | None) -> dict[str, int] | None:
    """Return the image ids of some files, by their names as inputs; None where only their order can number them.

    Those of the annotation file; without one, the numbers in the file names, where all names are different numbers.

    Raises:
        ConfigError: there are videos, whose frames no annotation file knows.
        DataError: the annotation file cannot be read, or does not give each input an id of its own.
    """
    if annotation_file is not None:
        return _annotated_ids(inputs, annotation_file)
    stems = [one.path.stem for one in inputs]
    if all(stem.isdecimal() and len(stem) < 19 for stem in stems) and not any(one.is_video for one in inputs):
        ids = {one.name: int(stem) for one, stem in zip(inputs, stems, strict=True)}
        if len(set(ids.values())) == len(inputs):
            return ids
    return None


def _annotated_ids(inputs: Sequence[Input], annotation_file: Path) -> dict[str, int]:
    if videos := [str(one.path) for one in inputs if one.is_video]:
        raise ConfigError(
            f"frames of a video have no names that an annotation file could give ids to: {first_few(videos)}",
            where=str(annotation_file),
            fix="leave the annotation file out, or predict images and videos one after the other",
        )
    known = read_image_ids(annotation_file)
    ids = {one.name: known.of(one.file_name) for one in inputs}
    if unknown := [one.file_name for one in inputs if ids[one.name] is None]:
        raise DataError(
            f"the annotation file does not list {len(unknown):,} of {len(inputs):,} images: {first_few(unknown)}",
            where=str(annotation_file),
            fix="name the annotation file of these images, or leave out the others",
        )
    found = {name: image_id for name, image_id in ids.items() if image_id is not None}
    if repeated := [image_id for image_id, count in Counter(found.values()).items() if count > 1]:
        names = [name for name, image_id in found.items() if image_id == repeated[0]]
        raise DataError(
            f"several files are the image with id {repeated[0]}: {first_few(names)}",
            where=str(annotation_file),
            fix="give each image once",
        )
    return found
