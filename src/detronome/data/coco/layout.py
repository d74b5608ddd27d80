"""Finding the annotation file and the image folder of a split, in the layouts that COCO users have.

    data/annotations/instances_<split>.json     images in data/images/<split>/, data/images/, data/<split>/ or data/
    data/annotations/instances_train2017.json   the official release: the split may be called `train`
    data/<split>/_annotations.coco.json         Roboflow: images beside the file; `val` may be called `valid`

The image folder is the one in which the first images of the annotation file really lie.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from detronome.errors import DataError, nearest_name_hint

__all__ = ["SplitFiles", "available_splits", "find_split"]

_PREFIX = "instances_"
_ROBOFLOW_FILE = "_annotations.coco.json"
_SYNONYMS = {"val": "valid", "valid": "val"}
_PROBED_NAMES = 8
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class SplitFiles:
    """Where one split lies on disk."""

    annotation_file: Path
    images_dir: Path
    name: str
    """The split's name on disk, e.g. `train2017` for the split asked for as `train`."""
    shards: str | None = None
    """Folder or address of the shards that hold the images, where they are not files in `images_dir`."""


def available_splits(data_dir: Path) -> list[str]:
    """Return the names of the splits in a data folder, as they are on disk, sorted.

    Raises:
        DataError: the folder does not exist or cannot be read.
    """
    return sorted(_annotation_files(data_dir))


def find_split(data_dir: Path, split: str) -> SplitFiles:
    """Return the annotation file and the image folder of a split.

    Args:
        data_dir: the folder that holds the data set.
        split: `train`, `val`, ...; the official names with a year and Roboflow's `valid` are found too.

    Raises:
        DataError: the folder, the split or the split's image folder is missing.
    """
    files = _annotation_files(data_dir)
    if not files:
        raise DataError(
            "the data folder holds no COCO annotations",
            where=str(data_dir),
            fix=f"expected annotations/{_PREFIX}{split}.json or {split}/{_ROBOFLOW_FILE} in it",
        )
    name = _resolve_name(split, list(files))
    if name is None:
        raise DataError(
            f"the data set has no split {split!r}; it has {', '.join(sorted(files))}",
            where=str(data_dir),
            fix=f"use one of these, or add annotations/{_PREFIX}{split}.json",
        )
    annotation_file = files[name]
    return SplitFiles(annotation_file, _find_images_dir(data_dir, annotation_file, name, split), name)


def _annotation_files(data_dir: Path) -> dict[str, Path]:
    try:
        if not data_dir.is_dir():
            raise _folder_error(data_dir)
        found = {path.parent.name: path for path in data_dir.glob(f"*/{_ROBOFLOW_FILE}")}
        for path in (data_dir / "annotations").glob(f"{_PREFIX}*.json"):
            found[path.stem.removeprefix(_PREFIX)] = path
    except (OSError, ValueError) as error:
        raise DataError(f"the data folder cannot be read: {error}", where=str(data_dir)) from error
    return found


def _folder_error(data_dir: Path) -> DataError:
    if data_dir.exists():
        return DataError(
            "the data folder is a file", where=str(data_dir), fix="give the folder that holds annotations/ and images/"
        )
    missing = data_dir.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    siblings = [path.name for path in missing.parent.iterdir() if path.is_dir()]
    hint = nearest_name_hint(missing.name, siblings)
    return DataError(
        "the data folder does not exist",
        where=str(data_dir),
        fix=f"{missing.parent} has no {missing.name!r}" + (f"; {hint}" if hint.startswith("did you mean") else ""),
    )


def _resolve_name(split: str, names: list[str]) -> str | None:
    wanted = [split, _SYNONYMS.get(split, split)]
    for name in wanted:
        if name in names:
            return name
    dated = [name for name in names if any(re.fullmatch(re.escape(base) + r"\d{4}", name) for base in wanted)]
    return max(dated, default=None)


def _find_images_dir(data_dir: Path, annotation_file: Path, name: str, split: str) -> Path:
    if annotation_file.name == _ROBOFLOW_FILE:
        folder = annotation_file.parent
        candidates = [folder, folder / "images", data_dir / "images"]
    else:
        images = data_dir / "images"
        candidates = [images / name, images / split, data_dir / name, data_dir / split, images, data_dir]
    probes = list(islice(_file_names(annotation_file), _PROBED_NAMES))
    hits = [sum(_is_file(folder / probe) for probe in probes) for folder in candidates]
    if max(hits) > 0:
        return candidates[hits.index(max(hits))]
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
