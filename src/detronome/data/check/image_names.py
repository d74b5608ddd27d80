"""Which of the files that an annotation file names exist, by which other names, and which files nothing names."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

__all__ = ["ImageFolder", "is_there", "names_in"]

_SUFFIXES = frozenset((".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


class ImageFolder:
    """The entries below an image folder, each subfolder listed once and only if a name leads there."""

    def __init__(self, images_dir: Path) -> None:
        self._root = images_dir
        self._entries: dict[PurePosixPath, frozenset[str]] = {}

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of exactly this name."""
        path = PurePosixPath(name)
        return path.name in self._list(path.parent) or is_there(self._root / name)

    def in_other_case(self, name: str) -> str | None:
        """Return the name on disk that differs from a missing one in capital letters only."""
        found = PurePosixPath()
        for part in PurePosixPath(name).parts:
            entries = self._list(found)
            if part not in entries:
                alike = sorted(entry for entry in entries if entry.casefold() == part.casefold())
                if not alike:
                    return None
                part = alike[0]
            found /= part
        return str(found)

    def unnamed(self, names: Iterable[str]) -> list[str]:
        """Return the image files, sorted, that lie beside named ones without a name of their own."""
        paths = {PurePosixPath(name) for name in names}
        return sorted(
            str(folder / entry)
            for folder in {path.parent for path in paths}
            for entry in self._list(folder)
            if PurePosixPath(entry).suffix.lower() in _SUFFIXES and folder / entry not in paths
        )

    def _list(self, folder: PurePosixPath) -> frozenset[str]:
        if folder not in self._entries:
            try:
                self._entries[folder] = frozenset(os.listdir(self._root / folder))
            except (OSError, ValueError):
                self._entries[folder] = frozenset()
        return self._entries[folder]


def is_there(path: Path) -> bool:
    """Return whether a path leads to something, whatever characters and length it has."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def names_in(annotation_file: Path) -> Iterator[str]:
    """Yield the file names in a COCO file without parsing it; none where it cannot be read."""
    try:
        with annotation_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in _FILE_NAME.finditer(content):
                try:
                    yield msgspec.json.decode(match[1], type=str)
                except (msgspec.MsgspecError, UnicodeError):
                    continue
    except (OSError, ValueError):
        return
