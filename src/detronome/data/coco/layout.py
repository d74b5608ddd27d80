"""Where the annotation file and the images of a split lie, in the layouts that COCO users have.

    data/annotations/instances_<split>.json     images in data/images/<split>/, data/images/, data/<split>/ or data/
    data/annotations/instances_train2017.json   the official release
    data/<split>/_annotations.coco.json         Roboflow: images beside the file

The image folder is the one in which the first images of the annotation file really lie.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from detronome.data.readable import cannot_be_read, require_readable
from detronome.errors import DataError

__all__ = ["ROBOFLOW_FILE", "coco_annotation_files", "coco_images_dir"]

ROBOFLOW_FILE = "_annotations.coco.json"
_PREFIX = "instances_"
_PROBED_NAMES = 8
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def coco_annotation_files(data_dir: Path) -> dict[str, Path]:
    """Return the annotation file of each split, by the split's name on disk.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        found = {path.parent.name: path for path in data_dir.glob(f"*/{ROBOFLOW_FILE}")}
        for path in (data_dir / "annotations").glob(f"{_PREFIX}*.json"):
            found[path.stem.removeprefix(_PREFIX)] = path
    except (OSError, ValueError) as error:
        raise cannot_be_read(error, data_dir) from error
    return found


def coco_images_dir(data_dir: Path, annotation_file: Path, name: str, split: str) -> Path:
    """Return the folder that holds the images of an annotation file.

    Args:
        data_dir: the data folder.
        annotation_file: one of `coco_annotation_files`.
        name: the split's name on disk.
        split: the split's name as it was asked for.

    Raises:
        DataError: none of the folders where the images could be exists, or those that do cannot be read.
    """
    if annotation_file.name == ROBOFLOW_FILE:
        folder = annotation_file.parent
        candidates = [folder, folder / "images", data_dir / "images"]
    else:
        images = data_dir / "images"
        candidates = [images / name, images / split, data_dir / name, data_dir / split, images, data_dir]
    probes = list(islice(_file_names(annotation_file), _PROBED_NAMES))
    hits = [sum(_is_file(folder / probe) for probe in probes) for folder in candidates]
    if max(hits) > 0:
        return candidates[hits.index(max(hits))]
    require_readable(*candidates)
    for folder in candidates:
        if folder != data_dir and folder.is_dir():
            return folder
    tried = ", ".join(dict.fromkeys(f"{folder.relative_to(data_dir)}/" for folder in candidates if folder != data_dir))
    raise DataError(
        f"the images of split {name!r} were not found",
        where=f"{data_dir} (looked in {tried})",
        fix=f"put the image files into {candidates[-2]}",
    )


def _file_names(annotation_file: Path) -> Iterator[str]:
    """Yield the file names in an annotation file without parsing it: only the pages that hold the first are read."""
    try:
        with annotation_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in _FILE_NAME.finditer(content):
                try:
                    yield json.loads(match[1])
                except ValueError:
                    continue
    except (OSError, ValueError):  # unreadable or empty: reading it in earnest says what is wrong
        return


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
