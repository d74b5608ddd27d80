"""Writing a tar file whose bytes are a function of its members alone, with its SHA-256 on the way."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

from detronome.data.store.shards.format import ShardFile

__all__ = ["TarWriter"]

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


class TarWriter:
    """A tar file in writing: no times, owners or rights of the user's go into it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=1 << 20)
        self._digest = hashlib.sha256()
        self._size = 0

    @staticmethod
    def size_of(*contents: bytes) -> int:
        """Return the bytes that members with these contents take."""
        return sum(_BLOCK + len(content) + _padding(len(content)) for content in contents)

    @property
    def size_bytes(self) -> int:
        """The size of the file if it were finished now."""
        return self._size + len(_END)

    def add(self, name: str, content: bytes) -> int:
        """Append a member and return where its content begins, in bytes from the start of the file."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._size
        self._write(content)
        self._write(bytes(_padding(len(content))))
        return offset

    def finish(self) -> ShardFile:
        """Write the end, flush the file to the disk and close it."""
        self._write(_END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return ShardFile(size_bytes=self._size, sha256=self._digest.hexdigest())

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._size += len(content)


def _padding(length: int) -> int:
    return -length % _BLOCK
