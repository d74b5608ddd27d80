"""Which of the files that an annotation file names exist, by which other names, and which files nothing names."""

from __future__ import annotations

import mmap
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from detronome.data.formats.images import is_image_name

__all__ = ["ImageFolder", "is_there", "names_in"]

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


class ImageFolder:
    """The entries below an image folder, each subfolder listed once and only if a name leads there."""

    def __init__(self, images_dir: Path) -> None:
        self._root = images_dir
        self._entries: dict[str, frozenset[str]] = {}

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of exactly this name."""
        folder, entry = posixpath.split(name)
        return entry in self._list(folder) or is_there(self._root / name)

    def in_other_case(self, name: str) -> str | None:
        """Return the name on disk that differs from a missing one in capital letters only."""
        found = ""
        for part in posixpath.normpath(name).split("/"):
            entries = self._list(found)
            alike = [part] if part in entries else sorted(one for one in entries if one.casefold() == part.casefold())
            if not alike:
                return None
            found = posixpath.join(found, alike[0])
        return found

    def unnamed(self, names: Iterable[str]) -> list[str]:
        """Return the image files, sorted, that lie beside named ones without a name of their own."""
        named = {posixpath.normpath(name) for name in names}
        return sorted(
            path
            for folder in {posixpath.dirname(name) for name in named}
            for entry in self._list(folder)
            if (path := posixpath.join(folder, entry)) not in named and is_image_name(entry)
        )

    def _list(self, folder: str) -> frozenset[str]:
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
