"""Where the encoded bytes of a split's images come from: files in a folder, or records in shards.

Sources are pickled to every loader worker, so they hold paths and numbers, never open files or data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from detronome.data.store.cache import SourceStamp
from detronome.data.store.decode import read_image_file
from detronome.data.store.index import AnnotationIndex

__all__ = ["FolderSource", "ImageSource"]


class ImageSource(Protocol):
    """The encoded images of one split, by their position in its index."""

    def read(self, i: int) -> bytes:
        """Return the content of image `i`'s file.

        Raises:
            DataError: it is missing or damaged; says where.
        """
        ...

    def stamp(self, i: int) -> SourceStamp:
        """Return what changes when the image's file does; cheap, and never fails."""
        ...

    def where(self, i: int) -> str:
        """Return the place of image `i` as messages should name it: a path, or a shard and the member in it."""
        ...


class FolderSource:
    """Image files in a folder, by the names that the annotation file gives."""

    def __init__(self, index: AnnotationIndex, images_dir: Path) -> None:
        self._index = index
        self._images_dir = images_dir

    def read(self, i: int) -> bytes:
        """Return the content of image `i`'s file.

        Raises:
            DataError: the file cannot be read.
        """
        return read_image_file(self._path(i))

    def stamp(self, i: int) -> SourceStamp:
        """Return size and time of change of image `i`'s file; zeros when it is not there."""
        try:
            status = self._path(i).stat()
        except (OSError, ValueError):  # reading it in earnest says what is wrong
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def where(self, i: int) -> str:
        """Return the path of image `i`."""
        return str(self._path(i))

    def _path(self, i: int) -> Path:
        return self._images_dir / self._index.image(i).file_name
