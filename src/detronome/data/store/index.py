"""The annotations of one file as memory-mapped columns: compiled once, opened in milliseconds, shared by processes.

A loader worker that maps the columns adds next to nothing to the memory of the machine, whatever the size of the data
set; no process but the one that compiles ever holds the JSON. The columns lie in the user's cache, never beside the
data, in a folder named by the hash of the annotation file's content: a file that was copied, moved or touched is not
compiled again, a file that says something else is. What a path's content hashed to is remembered beside them, for as
long as size, times and inode stay.

Shape letters: `I` images, `A` annotations, `T` annotations of one image.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from detronome.data.coco.panoptic import read_panoptic_annotations
from detronome.data.coco.read import CocoAnnotations, read_annotations
from detronome.data.split_files import AnnotationKind
from detronome.data.store.cache_folder import cache_folders
from detronome.errors import DataError
from detronome.runtime.files import atomic_directory, sha256_of, write_atomic
from detronome.types import Categories

__all__ = ["AnnotationIndex", "ImageRecord"]

_SCHEMA = 2
"""Raised whenever the columns change, so that indexes compiled by an older version are compiled again."""
_META = "meta.json"
_KNOWN = "known"
"""The folder, beside the indexes, of what each path's content hashed to."""
_SETTLED_NS = 100_000_000
"""A file that changed this recently may change again within the same tick of the file system's clock."""
_COLUMNS = (
    "image_ids",
    "sizes_hw",
    "name_bytes",
    "name_offsets",
    "offsets",
    "annotation_ids",
    "boxes_xywh",
    "labels",
    "area",
    "iscrowd",
)
_MAP_COLUMNS = ("map_name_bytes", "map_name_offsets")
"""Of panoptic annotations only."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of the annotation file."""

    image_id: int
    file_name: str
    """Relative to the split's image folder."""
    size_hw: tuple[int, int]
    """Height and width in pixels, as the annotation file has them."""


class AnnotationIndex:
    """The annotations of one file, image by image, in the file's order. Use `AnnotationIndex.open`.

    The segments of panoptic annotations are annotations like others; their pixels stay in the maps.

    Pickling keeps only where the columns lie, so each process maps them anew.
    """

    def __init__(self, folder: Path, annotation_file: Path) -> None:
        self._folder = folder
        self._annotation_file = annotation_file
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        is_thing = meta.get("is_thing")
        self.categories = Categories(
            tuple(meta["category_ids"]), tuple(meta["category_names"]), None if is_thing is None else tuple(is_thing)
        )
        """Sorted by id; labels are indices into it."""
        self.fingerprint: str = meta["fingerprint"]
        """SHA-256 of ids, sizes and annotations: equal for files that train alike, whatever their formatting."""
        self.max_objects_per_image: int = meta["max_objects_per_image"]
        """Most annotations of one image, crowd regions aside; panoptic crowds are learnt as objects, and count."""
        self.num_objects: int = meta["num_objects"]
        """All annotations of the file, counted alike."""
        self.kind: AnnotationKind = meta.get("kind", "instances")
        """What the file holds."""
        # As base-class views: indexing the memmap subclass costs several microseconds more, each time.
        self._columns: dict[str, np.ndarray[Any, Any]] = {
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in (*_COLUMNS, *(_MAP_COLUMNS if self.kind == "panoptic" else ()))
        }

    @classmethod
    def open(cls, annotation_file: Path, kind: AnnotationKind = "instances") -> AnnotationIndex:
        """Return the index of a COCO annotation file, compiled now if there is none for the file as it is.

        Args:
            annotation_file: the file.
            kind: what it holds.

        Raises:
            DataError: the file cannot be read, is not sound COCO JSON, or changes while it is read.
        """
        folders = cache_folders("index")
        try:
            before = _identity(annotation_file)
            name = f"v{_SCHEMA}-{_content_hash(annotation_file, before, folders)}"
            name += "" if kind == "instances" else f"-{kind}"
            found = cls._load_any(folders, name, annotation_file)
            if found is not None:
                return found
            read = read_annotations if kind == "instances" else read_panoptic_annotations
            compiled = read(annotation_file)
            is_changed = _identity(annotation_file) != before
        except OSError as error:
            raise DataError(
                f"the annotation file cannot be read: {error.strerror or error}", where=str(annotation_file)
            ) from error
        if is_changed:
            raise DataError(
                "the annotation file changed while it was read",
                where=str(annotation_file),
                fix="start again when whatever writes it has finished",
            )
        failures = []
        for folder in folders:
            try:
                _write(folder / name, compiled, annotation_file)
            except OSError as error:  # not writable, or another process has just published the same index
                failures.append(f"{folder}: {error.strerror or error}")
            found = cls._load(folder / name, annotation_file)
            if found is not None:
                return found
        raise DataError(
            "the annotation index cannot be written anywhere",
            where="; ".join(failures),
            fix="set DETRONOME_CACHE to a folder with free space that you may write to",
        )

    @classmethod
    def _load_any(cls, folders: list[Path], name: str, annotation_file: Path) -> AnnotationIndex | None:
        loaded = (cls._load(folder / name, annotation_file) for folder in folders)
        return next((index for index in loaded if index is not None), None)

    @classmethod
    def _load(cls, folder: Path, annotation_file: Path) -> AnnotationIndex | None:
        if not folder.is_dir():
            return None
        try:
            return cls(folder, annotation_file)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            # Folders are published whole, so this one was damaged later; a cache can always be made again.
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._folder, self._annotation_file, self.kind)

    def __len__(self) -> int:
        return len(self._columns["image_ids"])

    @property
    def annotation_file(self) -> Path:
        """The file that the index was opened for."""
        return self._annotation_file

    @property
    def folder(self) -> Path:
        """Where the columns lie."""
        return self._folder

    @property
    def sizes_hw(self) -> Int32[np.ndarray, "I 2"]:
        """Height and width of every image in pixels, as the annotation file has them; read-only."""
        return self._columns["sizes_hw"]

    @property
    def boxes_xywh(self) -> Float64[np.ndarray, "A 4"]:
        """The boxes of all images, in pixels, image by image, as they are in the file; read-only."""
        return self._columns["boxes_xywh"]

    @property
    def labels(self) -> Int32[np.ndarray, " A"]:
        """The label of every annotation; read-only."""
        return self._columns["labels"]

    @property
    def area(self) -> Float64[np.ndarray, " A"]:
        """The area of every annotation in square pixels; read-only."""
        return self._columns["area"]

    @property
    def iscrowd(self) -> Bool[np.ndarray, " A"]:
        """Whether an annotation is a crowd region; read-only."""
        return self._columns["iscrowd"]

    @property
    def num_annotations_per_image(self) -> Int64[np.ndarray, " I"]:
        """How many annotations each image has, crowd regions included."""
        return np.diff(self._columns["offsets"])

    @property
    def is_object(self) -> Bool[np.ndarray, " A"]:
        """Whether an annotation is something to learn: no crowd region, but panoptic crowds are."""
        return _is_object(self.iscrowd, self.kind)

    @property
    def num_objects_per_image(self) -> Int64[np.ndarray, " I"]:
        """How many annotations each image has, crowd regions aside; panoptic crowds count."""
        return _objects_per_image(self.iscrowd, self._columns["offsets"], self.kind)

    def image(self, i: int) -> ImageRecord:
        """Return image `i` of the file, counted from 0."""
        columns = self._columns
        start, stop = columns["name_offsets"][i], columns["name_offsets"][i + 1]
        return ImageRecord(
            image_id=int(columns["image_ids"][i]),
            file_name=columns["name_bytes"][start:stop].tobytes().decode(),
            size_hw=(int(columns["sizes_hw"][i, 0]), int(columns["sizes_hw"][i, 1])),
        )

    def annotation_ids(self, i: int) -> Int64[np.ndarray, " T"]:
        """Return the ids of the annotations of image `i`, as a copy: of its segments, where they are panoptic."""
        columns = self._columns
        ids: Int64[np.ndarray, " T"] = columns["annotation_ids"][columns["offsets"][i] : columns["offsets"][i + 1]]
        return ids.copy()

    def map_name(self, i: int) -> str:
        """Return the file of the panoptic map of image `i`, relative to the folder of the maps."""
        start, stop = self._columns["map_name_offsets"][i], self._columns["map_name_offsets"][i + 1]
        return self._columns["map_name_bytes"][start:stop].tobytes().decode()

    def annotations(
        self, i: int
    ) -> tuple[Float64[np.ndarray, "T 4"], Int32[np.ndarray, " T"], Float64[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
        """Return (boxes_xywh in pixels, labels, area in square pixels, iscrowd) of image `i`, as copies.

        Everything the file has is here, in its order: crowd regions, empty boxes and boxes outside the image too.
        """
        columns = self._columns
        rows = slice(columns["offsets"][i], columns["offsets"][i + 1])
        return (
            columns["boxes_xywh"][rows].copy(),
            columns["labels"][rows].copy(),
            columns["area"][rows].copy(),
            columns["iscrowd"][rows].copy(),
        )

    def used_labels(self) -> list[int]:
        """Return the labels that occur, ascending."""
        labels: list[int] = np.flatnonzero(np.bincount(self._columns["labels"])).tolist()
        return labels


def _reopen(folder: Path, annotation_file: Path, kind: AnnotationKind) -> AnnotationIndex:
    try:
        return AnnotationIndex(folder, annotation_file)
    except (OSError, ValueError, KeyError):
        return AnnotationIndex.open(annotation_file, kind)


def _identity(annotation_file: Path) -> list[int]:
    """Return what changes whenever a file is written or replaced."""
    status = annotation_file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]


def _content_hash(annotation_file: Path, identity: list[int], folders: list[Path]) -> str:
    """Return the SHA-256 of the content, from memory where the file is the one that was hashed before."""
    path = str(annotation_file.resolve()).encode(errors="surrogateescape")
    memo = Path(_KNOWN, f"{hashlib.blake2b(path, digest_size=16).hexdigest()}.json")
    for folder in folders:
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((folder / memo).read_text(encoding="utf-8"))
            if known["identity"] == identity:
                return str(known["sha256"])
    is_settled = time.time_ns() - identity[2] > _SETTLED_NS
    content = sha256_of(annotation_file)
    for folder in folders if is_settled and _identity(annotation_file) == identity else ():
        with suppress(OSError):
            write_atomic(folder / memo, json.dumps({"identity": identity, "sha256": content}))
            break
    return content


def _write(folder: Path, annotations: CocoAnnotations, annotation_file: Path) -> None:
    kind: AnnotationKind = "instances" if annotations.map_names is None else "panoptic"
    columns: dict[str, np.ndarray[Any, Any]] = {
        "sizes_hw": np.column_stack([annotations.heights, annotations.widths]),
        **_text_columns("name", annotations.file_names),
        **({} if annotations.map_names is None else _text_columns("map_name", annotations.map_names)),
    }
    columns.update((name, getattr(annotations, name)) for name in _COLUMNS if name not in columns)
    objects = _objects_per_image(annotations.iscrowd, annotations.offsets, kind)
    meta = {
        "annotation_file": str(annotation_file.resolve()),
        "category_ids": annotations.categories.ids,
        "category_names": annotations.categories.names,
        "is_thing": annotations.categories.is_thing,
        "kind": kind,
        "fingerprint": _fingerprint(annotations),
        "max_objects_per_image": int(objects.max()),
        "num_objects": int(objects.sum()),
    }
    with atomic_directory(folder) as temporary:
        for name, column in columns.items():
            np.save(temporary / f"{name}.npy", column, allow_pickle=False)
        (temporary / _META).write_text(json.dumps(meta), encoding="utf-8")


def _text_columns(name: str, texts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    encoded = [text.encode() for text in texts]
    return {
        f"{name}_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_offsets": np.concatenate(([0], np.cumsum([len(text) for text in encoded]))).astype(np.int64),
    }


def _objects_per_image(
    iscrowd: Bool[np.ndarray, " A"], offsets: Int64[np.ndarray, " I+1"], kind: AnnotationKind
) -> Int64[np.ndarray, " I"]:
    return np.diff(np.concatenate(([0], np.cumsum(_is_object(iscrowd, kind))))[offsets])


def _is_object(iscrowd: Bool[np.ndarray, " A"], kind: AnnotationKind) -> Bool[np.ndarray, " A"]:
    return ~iscrowd if kind == "instances" else np.ones_like(iscrowd)


def _fingerprint(annotations: CocoAnnotations) -> str:
    digest = hashlib.sha256(repr(annotations.categories.ids).encode())
    for name in ("image_ids", "heights", "widths", "offsets", "boxes_xywh", "labels", "iscrowd"):
        digest.update(np.ascontiguousarray(getattr(annotations, name)).tobytes())
    return digest.hexdigest()
