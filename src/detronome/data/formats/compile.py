"""A folder of label files compiled into COCO annotation files in the user's cache, once for each state of the folder.

Everything that reads annotations then works on the compiled files. The key is made of the names, sizes and times of
change of all label files, images and lists, so a change to any of them compiles the folder again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detronome.data.formats.document import SplitDocument, to_json_bytes
from detronome.data.formats.labels import LabelFolder
from detronome.data.formats.read import read_documents
from detronome.data.formats.sidecar import SIDECAR_NAME
from detronome.data.store.cache_folder import cache_folders
from detronome.errors import DataError
from detronome.runtime.files import atomic_directory

__all__ = ["CompiledSplit", "compile_folder"]

_SCHEMA = 2
"""Raised whenever folders are understood differently, so that they are compiled again."""
_META = "meta.json"


@dataclass(frozen=True)
class CompiledSplit:
    """Where the annotations of a split were put."""

    annotation_file: Path
    images_dir: Path
    left_out: tuple[str, ...]
    """Image files whose size could not be read; see `SplitDocument.left_out`."""


def compile_folder(folder: LabelFolder) -> dict[str, CompiledSplit]:
    """Return the compiled annotation file of each split, by the split's name in the folder.

    Raises:
        DataError: the label files have defects (all of them at once), or there is no room for the result.
    """
    key = _key(folder)
    roots = cache_folders("converted")
    for root in roots:
        found = _load(root / key)
        if found is not None:
            return found
    documents = read_documents(folder, keep_text=False, leave_out_unreadable=True)
    failures = []
    for root in roots:
        try:
            _write(root / key, dict(zip(folder.split_names(), documents, strict=True)))
        except OSError as error:  # not writable, or another process has just published the same folder
            failures.append(f"{root}: {error.strerror or error}")
        found = _load(root / key)
        if found is not None:
            return found
    raise DataError(
        "the compiled annotations cannot be written anywhere",
        where="; ".join(failures),
        fix="set DETRONOME_CACHE to a folder with free space that you may write to",
    )


def _key(folder: LabelFolder) -> str:
    digest = hashlib.blake2b(repr((_SCHEMA, folder.layout, str(folder.root.resolve()))).encode(), digest_size=16)
    for name in folder.split_names():
        digest.update(f"\0split {name}".encode(errors="surrogateescape"))
        for file in _files(folder, name):
            digest.update(repr((str(file), *_state(file))).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _files(folder: LabelFolder, name: str) -> Iterator[Path]:
    yield from folder.settings_files()
    yield folder.root / SIDECAR_NAME
    for image in folder.read_split(name).images:
        yield image.image_file
        yield image.label_file


def _state(file: Path) -> tuple[int, int]:
    """Return (size, time of change); zeros for a file that is not there."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _write(target: Path, documents: dict[str, SplitDocument]) -> None:
    meta = {
        "annotation_file": next(iter(documents.values())).source,
        "images_dirs": {name: str(split.images_dir.absolute()) for name, split in documents.items()},
        "left_out": {name: split.left_out for name, split in documents.items()},
    }
    with atomic_directory(target) as temporary:
        for name, split in documents.items():
            (temporary / _file_name(name)).write_bytes(to_json_bytes(split.document))
        (temporary / _META).write_text(json.dumps(meta), encoding="utf-8")


def _load(target: Path) -> dict[str, CompiledSplit] | None:
    if not target.is_dir():
        return None
    try:
        meta = json.loads((target / _META).read_bytes())
        found = {
            name: CompiledSplit(target / _file_name(name), Path(folder), tuple(meta["left_out"][name]))
            for name, folder in meta["images_dirs"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = {}
    if not found or not all(split.annotation_file.is_file() for split in found.values()):
        # Folders are published whole, so this one was damaged later; a cache can always be made again.
        shutil.rmtree(target, ignore_errors=True)
        return None
    return found


def _file_name(split: str) -> str:
    return f"instances_{split}.json"
