"""Calls on open files that not every system has: reading and writing at a place, flushing, locking.

Linux has them all, macOS most. Windows opens files as text unless told otherwise, knows neither places nor POSIX locks,
and flushes no folders: what stands in for them there has been run only where such a system is simulated
(`tests/contract/test_platforms.py`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["BINARY", "NO_FOLLOW", "flush", "flush_data", "lock", "read_at", "read_into_at", "unlock", "write_at"]

BINARY = getattr(os, "O_BINARY", 0)
"""For `os.open`: bytes stay as they are, also line ends on Windows."""
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""For `os.open`: a link is refused, where the system can."""

_POLL_S = 0.1

_seeking = threading.Lock()
"""Where a place is sought first, no other thread may do so in between."""


def read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
    """Return bytes at a place of a file, fewer where it ends. The descriptor's own position is not kept on Windows."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, num_bytes, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, num_bytes)


def read_into_at(descriptor: int, content: memoryview, offset: int) -> int:
    """Fill `content` from a place of a file, without a copy where the system can; return the number of bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [content], offset)
    read = read_at(descriptor, len(content), offset)
    content[: len(read)] = read
    return len(read)


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> int:
    """Write at a place of a file; return the number of bytes, which may be fewer than given."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, content, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, content)


def flush_data(descriptor: int) -> None:
    """Flush a file's content to disk; its times may follow later, where the system tells the two apart."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    if sys.platform == "win32":
        if path.is_dir():
            return
        descriptor = os.open(path, os.O_RDWR | BINARY)  # only what is open for writing is flushed there
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, *, wait: bool = False, with_children: bool = True) -> None:
    """Lock a file for this process. On Windows the first byte is locked, and then read by nobody else.

    Args:
        descriptor: of the file, open for writing.
        wait: until it is free.
        with_children: forked children hold the lock too.

    Raises:
        BlockingIOError, PermissionError: another process holds it, and `wait` is not set.
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        while True:
            os.lseek(descriptor, 0, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return
            except PermissionError:
                if not wait:
                    raise
            time.sleep(_POLL_S)
    else:
        call = fcntl.flock if with_children else fcntl.lockf
        call(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def unlock(descriptor: int, *, with_children: bool = True) -> None:
    """Give back what `lock` has taken; `with_children` as there."""
    if sys.platform == "win32":
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        (fcntl.flock if with_children else fcntl.lockf)(descriptor, fcntl.LOCK_UN)
