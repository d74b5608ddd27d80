"""Reading at a place of an open file, from several threads and after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from detronome.runtime.descriptors import BINARY, read_at
from detronome.runtime.files import is_open_at

__all__ = ["Descriptor"]


class Descriptor:
    """An open file that closes with its last user: one thread may let go of it while another reads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Descriptor:
        """Open a file for reading.

        Raises:
            OSError: it cannot be opened.
        """
        return cls(os.open(path, os.O_RDONLY | BINARY))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # when Python ends, `os` may be gone already
        close(self._descriptor)

    @property
    def size_bytes(self) -> int:
        """The size of the file now."""
        return os.fstat(self._descriptor).st_size

    def is_at(self, path: Path) -> bool:
        """Return whether this very file is still the one at a path."""
        return is_open_at(self._descriptor, path)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes at a place, fewer only where the file ends.

        Raises:
            OSError: they cannot be read.
        """
        content = read_at(self._descriptor, length, offset)
        while len(content) < length:
            more = read_at(self._descriptor, length - len(content), offset + len(content))
            if not more:
                break
            content += more
        return content
