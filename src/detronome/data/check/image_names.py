"""Which of the files that an annotation file names exist, by which other names, and which files nothing names."""

from __future__ import annotations

import mmap
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from detronome.data.formats.images import is_image_name

__all__ = ["ImageFolder", "fold_name", "is_there", "names_in"]

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


class ImageFolder:
    """The entries below an image folder, each subfolder listed once and only if a name leads there."""

    def __init__(self, images_dir: Path) -> None:
        self._root = images_dir
        self._entries: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of exactly this name."""
        folder, entry = posixpath.split(name)
        return entry in self._list(folder) or is_there(self._root / name)

    def spellings(self, name: str) -> list[str]:
        """Return the names on disk that a missing one may mean.

        Capital letters and accents may be written otherwise, folders divided by backslashes, and leading folders be
        those of another machine: as many of the last parts count as lead to something.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            found = [""]
            for part in parts[start:]:
                found = [posixpath.join(folder, one) for folder in found for one in self._alike(folder, part)]
            if found:
                return found
        return []

    def unnamed(self, names: Iterable[str]) -> list[str]:
        """Return the image files, sorted, that lie beside named ones without a name of their own."""
        named = {posixpath.normpath(name) for name in names}
        return sorted(
            path
            for folder in {posixpath.dirname(name) for name in named}
            for entry in self._list(folder)
            if (path := posixpath.join(folder, entry)) not in named and is_image_name(entry)
        )

    def _alike(self, folder: str, part: str) -> list[str]:
        """Return the entry of a folder that has this name, or else those that differ only in how it is written."""
        entries = self._list(folder)
        if part in entries:
            return [part]
        if folder not in self._folded:
            self._folded[folder] = defaultdict(list)
            for entry in sorted(entries):
                self._folded[folder][fold_name(entry)].append(entry)
        return self._folded[folder].get(fold_name(part), [])

    def _list(self, folder: str) -> frozenset[str]:
        """Return the entries of a folder, without links that lead nowhere."""
        if folder not in self._entries:
            try:
                with os.scandir(self._root / folder) as entries:
                    names = [one.name for one in entries if not one.is_symlink() or is_there(Path(one.path))]
            except (OSError, ValueError):
                names = []
            self._entries[folder] = frozenset(names)
        return self._entries[folder]


def fold_name(name: str) -> str:
    """Return what is the same for names that differ in capital letters, or in how accents are coded."""
    return unicodedata.normalize("NFC", name).casefold()


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
