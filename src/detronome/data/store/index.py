"""The annotations of one file as memory-mapped columns: compiled once, opened in milliseconds, shared by processes.

A loader worker that maps the columns adds next to nothing to the memory of the machine, whatever the size of the data
set; no process but the one that compiles ever holds the JSON. The columns lie in a cache folder of the user's, never
beside the data, under a key made of the annotation file's path, size and time of change.

Shape letters: `I` images, `A` annotations, `T` annotations of one image.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from detronome.data.coco.read import CocoAnnotations, read_annotations
from detronome.errors import DataError
from detronome.runtime.files import atomic_directory
from detronome.types import Categories

__all__ = ["AnnotationIndex", "ImageRecord"]

_SCHEMA = 1
"""Raised whenever the columns change, so that indexes compiled by an older version are compiled again."""
_META = "meta.json"
_COLUMNS = (
    "image_ids",
    "heights",
    "widths",
    "name_bytes",
    "name_offsets",
    "offsets",
    "annotation_ids",
    "boxes_xywh",
    "labels",
    "area",
    "iscrowd",
)


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

    Pickling keeps only where the columns lie, so each process maps them anew.
    """

    def __init__(self, folder: Path, annotation_file: Path) -> None:
        self._folder = folder
        self._annotation_file = annotation_file
        meta = json.loads((folder / _META).read_text())
        self.categories = Categories(tuple(meta["category_ids"]), tuple(meta["category_names"]))
        """Sorted by id; labels are indices into it."""
        self.fingerprint: str = meta["fingerprint"]
        """SHA-256 of ids, sizes and annotations: equal for files that train alike, whatever their formatting."""
        self.max_objects_per_image: int = meta["max_objects_per_image"]
        """Most annotations of one image, crowd regions aside."""
        self.num_objects: int = meta["num_objects"]
        """All annotations of the file, crowd regions aside."""
        # As base-class views: indexing the memmap subclass costs several microseconds more, each time.
        self._columns: dict[str, np.ndarray[Any, Any]] = {
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _COLUMNS
        }

    @classmethod
    def open(cls, annotation_file: Path) -> AnnotationIndex:
        """Return the index of a COCO annotation file, compiled now if there is none for the file as it is.

        Raises:
            DataError: the file cannot be read or is not sound COCO JSON.
        """
        try:
            key = _key(annotation_file)
        except OSError as error:
            raise DataError(
                f"the annotation file cannot be read: {error.strerror or error}", where=str(annotation_file)
            ) from error
        roots = _cache_roots()
        for root in roots:
            found = cls._load(root / key, annotation_file)
            if found is not None:
                return found
        compiled = read_annotations(annotation_file)
        failures = []
        for root in roots:
            try:
                _write(root / key, compiled)
            except OSError as error:  # not writable, or another process has just published the same index
                failures.append(f"{root}: {error.strerror or error}")
            found = cls._load(root / key, annotation_file)
            if found is not None:
                return found
        raise DataError(
            "the annotation index cannot be written anywhere",
            where="; ".join(failures),
            fix="set DETRONOME_CACHE to a folder with free space that you may write to",
        )

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
        return _reopen, (self._folder, self._annotation_file)

    def __len__(self) -> int:
        return len(self._columns["image_ids"])

    @property
    def annotation_file(self) -> Path:
        """The file that the index was compiled from."""
        return self._annotation_file

    def image(self, i: int) -> ImageRecord:
        """Return image `i` of the file, counted from 0."""
        columns = self._columns
        start, stop = columns["name_offsets"][i], columns["name_offsets"][i + 1]
        return ImageRecord(
            image_id=int(columns["image_ids"][i]),
            file_name=columns["name_bytes"][start:stop].tobytes().decode(),
            size_hw=(int(columns["heights"][i]), int(columns["widths"][i])),
        )

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
        labels: list[int] = np.unique(self._columns["labels"]).tolist()
        return labels


def _reopen(folder: Path, annotation_file: Path) -> AnnotationIndex:
    try:
        return AnnotationIndex(folder, annotation_file)
    except (OSError, ValueError, KeyError):
        return AnnotationIndex.open(annotation_file)


def _key(annotation_file: Path) -> str:
    status = annotation_file.stat()
    identity = repr((_SCHEMA, str(annotation_file.resolve()), status.st_size, status.st_mtime_ns))
    return hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _cache_roots() -> list[Path]:
    """Return the folders to look for indexes and to write them in, the preferred first."""
    chosen = os.environ.get("DETRONOME_CACHE") or os.path.expanduser("~/.cache/detronome")
    return [Path(chosen) / "index", Path(tempfile.gettempdir()) / f"detronome-{os.getuid()}" / "index"]


def _write(folder: Path, annotations: CocoAnnotations) -> None:
    names = [name.encode() for name in annotations.file_names]
    columns: dict[str, np.ndarray[Any, Any]] = {
        "name_bytes": np.frombuffer(b"".join(names), np.uint8),
        "name_offsets": np.concatenate(([0], np.cumsum([len(name) for name in names]))).astype(np.int64),
    }
    columns.update((name, getattr(annotations, name)) for name in _COLUMNS if name not in columns)
    objects = np.diff(np.concatenate(([0], np.cumsum(~annotations.iscrowd)))[annotations.offsets])
    meta = {
        "category_ids": annotations.categories.ids,
        "category_names": annotations.categories.names,
        "fingerprint": _fingerprint(annotations),
        "max_objects_per_image": int(objects.max()),
        "num_objects": int(objects.sum()),
    }
    with atomic_directory(folder) as temporary:
        for name, column in columns.items():
            np.save(temporary / f"{name}.npy", column, allow_pickle=False)
        (temporary / _META).write_text(json.dumps(meta))


def _fingerprint(annotations: CocoAnnotations) -> str:
    digest = hashlib.sha256(repr(annotations.categories.ids).encode())
    for name in ("image_ids", "heights", "widths", "offsets", "boxes_xywh", "labels", "iscrowd"):
        digest.update(np.ascontiguousarray(getattr(annotations, name)).tobytes())
    return digest.hexdigest()
