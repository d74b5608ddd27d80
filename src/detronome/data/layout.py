"""Recognising the layout of a data folder, and finding its splits: whatever the layout, as COCO annotations.

    shards      data/shards/<split>/, also at an address: see `store.shards`
    COCO        data/annotations/instances_<split>.json, or Roboflow's data/<split>/_annotations.coco.json
    YOLO        data/data.yaml, or images/<split>/ with labels/<split>/, or <split>/images/ with <split>/labels/
    Pascal VOC  data/Annotations/*.xml with JPEGImages/ and ImageSets/, or <split>/*.xml beside the images

Panoptic annotations, where they are asked for, are those of COCO: see `coco.panoptic_files`.

The first that is there counts. YOLO and VOC folders are compiled into COCO annotation files in the user's cache;
nothing is written into the data folder.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from detronome.data.coco.layout import ROBOFLOW_FILE, coco_annotation_files, coco_images_dir
from detronome.data.coco.panoptic_files import panoptic_splits
from detronome.data.formats.compile import compile_folder
from detronome.data.formats.images import is_image_name
from detronome.data.formats.labels import LabelFolder, is_split_name
from detronome.data.formats.voc import find_voc
from detronome.data.formats.yolo import find_yolo
from detronome.data.readable import cannot_be_read, require_readable
from detronome.data.split_files import AnnotationKind, SplitFiles, resolve_name
from detronome.data.store.shards.cloud import is_url
from detronome.data.store.shards.find import find_shard_split, shard_splits
from detronome.errors import DataError, nearest_name_hint

__all__ = ["Layout", "available_splits", "find_label_folder", "find_split", "recognise"]

Layout = Literal["shards", "coco", "roboflow", "yolo", "voc"]
_SPLIT_FOLDER = re.compile(r"(train|val|valid|validation|test)(\d{4})?")
_LOOKED_INTO = 1000
_SHOWN = 3
_COCO_KEYS = (re.compile(rb'"images"\s*:\s*\['), re.compile(rb'"annotations"\s*:\s*\['))
_KNOWN_FOLDERS = ("annotations", "images", "labels", "Annotations", "JPEGImages", "ImageSets", "ImageSets/Main")
_EXPECTED = """\
annotations/instances_{split}.json with images/ (COCO), {split}/_annotations.coco.json (Roboflow), \
data.yaml or images/{split}/ with labels/{split}/ (YOLO), \
Annotations/*.xml with JPEGImages/ or {split}/*.xml beside the images (Pascal VOC)"""


def recognise(data_dir: str | Path) -> Layout | None:
    """Return the layout of a data folder, or None where it has none that is known.

    Raises:
        DataError: the folder does not exist, or its description (data.yaml) cannot be read.
    """
    if shard_splits(str(data_dir)):
        return "shards"
    folder = _folder(data_dir)
    files = coco_annotation_files(folder)
    if files:
        return "roboflow" if all(file.name == ROBOFLOW_FILE for file in files.values()) else "coco"
    labels = find_label_folder(folder)
    return labels.layout if labels is not None and labels.split_names() else None


def available_splits(data_dir: str | Path, annotations: AnnotationKind = "instances") -> list[str]:
    """Return the names of the splits in a data folder, as they are on disk, sorted.

    Args:
        data_dir: the folder that holds the data set, or the address of a sharded one.
        annotations: which kind of them the splits must have.

    Raises:
        DataError: the folder does not exist or cannot be read.
    """
    if annotations == "panoptic":
        return sorted(panoptic_splits(_panoptic_folder(data_dir)))
    sharded = shard_splits(str(data_dir))
    if sharded:
        return sharded
    folder = _folder(data_dir)
    files = coco_annotation_files(folder)
    if files:
        return sorted(files)
    labels = find_label_folder(folder)
    return sorted(labels.split_names()) if labels is not None else []


def find_split(data_dir: str | Path, split: str, annotations: AnnotationKind = "instances") -> SplitFiles:
    """Return the annotation file and the image folder of a split.

    A folder in YOLO or VOC layout is compiled into COCO files first, unless that was done for the folder as it is.

    Args:
        data_dir: the folder that holds the data set.
        split: `train`, `val`, ...; the official names with a year and Roboflow's `valid` are found too.
        annotations: which kind of them is wanted.

    Raises:
        DataError: the folder, the split or the split's image folder is missing, or label files have defects.
    """
    if annotations == "panoptic":
        return _find_panoptic_split(_panoptic_folder(data_dir), split)
    if shard_splits(str(data_dir)):
        return _find_shard_split(data_dir, split)
    folder = _folder(data_dir)
    files = coco_annotation_files(folder)
    if files:
        name = resolve_name(split, list(files))
        if name is None:
            raise _split_error(folder, split, list(files), f"add annotations/instances_{split}.json")
        return SplitFiles(files[name], coco_images_dir(folder, files[name], name, split), name)
    labels = find_label_folder(folder)
    if labels is None or not labels.split_names():
        raise _nothing_found(folder, split, labels)
    name = resolve_name(split, labels.split_names())
    if name is None:
        raise _split_error(folder, split, labels.split_names(), labels.missing_split(split))
    compiled = compile_folder(labels)[name]
    return SplitFiles(compiled.annotation_file, compiled.images_dir, name, left_out=compiled.left_out)


def find_label_folder(data_dir: Path) -> LabelFolder | None:
    """Return the YOLO or VOC data set in a folder, or None where there is none.

    Raises:
        DataError: the folder, or its description (data.yaml), cannot be read.
    """
    try:
        folder = find_yolo(data_dir) or find_voc(data_dir)
        if folder is not None:
            folder.split_names()  # reads the lists
        return folder
    except OSError as error:
        raise cannot_be_read(error, data_dir) from error


def _panoptic_folder(data_dir: str | Path) -> Path:
    if shard_splits(str(data_dir)):
        raise DataError(
            "shards hold no panoptic maps",
            where=str(data_dir),
            fix="give the folder with annotations/panoptic_<split>.json, or use data.annotations=instances",
        )
    return _folder(data_dir)


def _find_panoptic_split(folder: Path, split: str) -> SplitFiles:
    try:
        splits = panoptic_splits(folder)
    except OSError as error:
        raise cannot_be_read(error, folder) from error
    if not splits:
        raise DataError(
            "the data folder holds no panoptic annotations",
            where=str(folder),
            fix=f"add annotations/panoptic_{split}.json with its maps in annotations/panoptic_{split}/, "
            "or use data.annotations=instances",
        )
    name = resolve_name(split, list(splits))
    if name is None:
        raise _split_error(folder, split, list(splits), f"add annotations/panoptic_{split}.json")
    json_file, maps_dir = splits[name]
    if not maps_dir.is_dir():
        raise DataError(
            f"the panoptic maps of split {name!r} were not found",
            where=str(maps_dir),
            fix="unpack the PNG files into this folder",
        )
    return SplitFiles(json_file, coco_images_dir(folder, json_file, name, split), name, maps_dir=maps_dir)


def _find_shard_split(data_dir: str | Path, split: str) -> SplitFiles:
    found = find_shard_split(str(data_dir), split)
    if found is None:
        raise _split_error(data_dir, split, shard_splits(str(data_dir)), "")
    return found


def _folder(data_dir: str | Path) -> Path:
    if is_url(str(data_dir)):
        raise DataError(
            "there is no sharded data set at this address",
            where=str(data_dir),
            fix="give the address that `detronome data shard` wrote to; other data has to be on this machine",
        )
    folder = Path(data_dir)
    try:
        if not folder.is_dir():
            raise _folder_error(folder)
        require_readable(folder)
        splits = [path for path in folder.iterdir() if is_split_name(path.name)]
    except (OSError, ValueError) as error:
        raise cannot_be_read(error, folder) from error
    require_readable(*(folder / name for name in _KNOWN_FOLDERS), *splits)
    return folder


def _folder_error(data_dir: Path) -> DataError:
    if data_dir.exists():
        fix = "give the folder that holds annotations/ and images/"
        if data_dir.suffix in (".yaml", ".yml"):
            fix = f"give its folder: {data_dir.parent}"
        return DataError("the data folder is a file", where=str(data_dir), fix=fix)
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


def _split_error(data_dir: str | Path, split: str, names: Sequence[str], detail: str) -> DataError:
    hint = nearest_name_hint(split, names)
    advice = hint if hint.startswith("did you mean") else "use one of these"
    return DataError(
        f"the data set has no split {split!r}; it has {', '.join(sorted(names))}",
        where=str(data_dir),
        fix=f"{advice}; {detail}" if detail else advice,
    )


def _nothing_found(data_dir: Path, split: str, labels: LabelFolder | None) -> DataError:
    what = "the data folder holds no COCO annotations, and no YOLO or Pascal VOC data set"
    if labels is not None:
        reason = labels.missing_split(split)
        what = f"the data folder looks like a {labels.layout.upper()} data set without images" + (
            f": {reason}" if reason else ""
        )
    nearest = _nearest(data_dir)
    return DataError(
        f"{what}; {nearest}" if nearest else what,
        where=str(data_dir),
        fix="looked for " + _EXPECTED.format(split=split),
    )


def _nearest(data_dir: Path) -> str:
    """Return what in the folder, or around this part of a data set, comes nearest to one; empty where nothing does."""
    if data_dir.absolute() == data_dir.absolute().parent:  # the whole disk
        return ""
    inside = islice((folder for pattern in ("*/", "*/*/") for folder in data_dir.glob(pattern)), _LOOKED_INTO)
    found = _sets_in(sorted(inside)) or _sets_in(_whole_of(data_dir))
    if len(found) == 1:
        ((folder, layout),) = found.items()
        return f"there is one ({layout}) in {folder}: give that folder"
    if found:
        listed = ", ".join(f"{folder} ({layout})" for folder, layout in found.items())
        return f"there are several inside, such as {listed}: give one of them"
    files = islice((file for pattern in ("*.json", "*/*.json") for file in data_dir.glob(pattern)), _LOOKED_INTO)
    documents = [file for file in sorted(files) if _is_coco(file)]
    if documents:
        shown = ", ".join(str(file.relative_to(data_dir)) for file in documents[:3])
        return f"{shown} looks like COCO: call it annotations/instances_<split>.json"
    for pattern, meaning in (("*.xml", "XML files"), ("*.txt", "text files"), ("*.json", "JSON files")):
        file = next(data_dir.rglob(pattern), None)
        if file is not None:
            return f"it has {meaning} such as {file.relative_to(data_dir)}"
    picture = next((path for path in data_dir.rglob("*") if is_image_name(path.name)), None)
    return "" if picture is None else f"it has images such as {picture.relative_to(data_dir)} and no annotations"


def _sets_in(folders: Iterable[Path]) -> dict[Path, Layout]:
    """Return the first few folders that are data sets, without those inside another of them."""
    found: dict[Path, Layout] = {}
    for folder in folders:
        layout = None if found.keys() & set(folder.parents) else _layout_of(folder)
        if layout is not None:
            found[folder] = layout
        if len(found) == _SHOWN:
            break
    return found


def _whole_of(data_dir: Path) -> Iterator[Path]:
    """Yield the folders around one that is called like a part of a data set: images/train is in images, in the set."""
    folder = data_dir.absolute()
    while folder.name in _KNOWN_FOLDERS or _SPLIT_FOLDER.fullmatch(folder.name):
        folder = folder.parent
        yield folder


def _layout_of(folder: Path) -> Layout | None:
    try:
        return recognise(folder)
    except (DataError, OSError):
        return None


def _is_coco(file: Path) -> bool:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(key.search(content) is not None for key in _COCO_KEYS)
    except (OSError, ValueError):  # unreadable, or empty
        return False
