"""Writing files and folders so that a crash at any moment leaves the old content or the new, never half; and locks."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detronome.errors import ConfigError, DataError
from detronome.runtime.descriptors import BINARY, NO_FOLLOW, flush, lock, unlock

__all__ = [
    "atomic_directory",
    "atomic_symlink",
    "filled_directory",
    "format_size",
    "is_disk_full",
    "is_open_at",
    "locked",
    "remove_lock",
    "require_space",
    "sha256_of",
    "try_lock",
    "write_atomic",
]

_BLOCK_BYTES = 2**20
_INCOMPLETE = ".incomplete"
_LOCK = ".lock"


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file through a temporary name in the same folder: flushed to disk, then renamed."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success its files are flushed and it becomes `path`.

    For folders of our own, with a few files and no subfolders; `filled_directory` is for those that a user names.

    Raises:
        FileExistsError: `path` exists; folders are published once and never overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp"))
    try:
        yield temporary
        for file in temporary.iterdir():
            flush(file)
        flush(temporary)
        os.chmod(temporary, 0o755)
        os.rename(temporary, path)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def filled_directory(path: Path, *, last: str = "") -> Iterator[Path]:
    """Yield a hidden folder in `path`; on success everything in it is flushed and moves up into `path`.

    A lock keeps a second writer out and tells what a killed one left behind, which is removed. It works where `path` is
    the root of a disk or its parent cannot be written. What fails leaves `path` empty, or absent if it was.

    Args:
        path: a folder that does not exist or is empty.
        last: the name that moves last: that by which the whole is recognised.

    Raises:
        ConfigError: `path` exists and is not an empty folder.
        DataError: it is being written by another process, or cannot be written.
    """
    is_new = False
    try:
        _require_empty(path)
        is_new = not path.exists()
        with locked(path / _LOCK) as is_ours:
            if not is_ours:
                raise DataError("another process is writing there", where=str(path), fix="wait for it to end")
            try:
                _require_empty(path)  # another process may have published meanwhile
                incomplete = path / _INCOMPLETE
                shutil.rmtree(incomplete, ignore_errors=True)
                incomplete.mkdir()
                yield incomplete
                if hasattr(os, "sync"):  # Windows has none
                    os.sync()  # one call for all of perhaps a hundred thousand files
                for name in sorted(os.listdir(incomplete), key=lambda name: (name == last, name)):
                    os.rename(incomplete / name, path / name)
                flush(path)
            finally:
                shutil.rmtree(path / _INCOMPLETE, ignore_errors=True)
                remove_lock(path / _LOCK)
    except OSError as error:
        raise DataError(
            f"the output cannot be written: {error.strerror or error}",
            where=str(error.filename2 or error.filename or path),
            fix="check the rights and the free space there; nothing was left behind",
        ) from error
    finally:
        if is_new:
            with suppress(OSError):  # it has content, or was never made
                path.rmdir()


def atomic_symlink(link: Path, target: str) -> None:
    """Point `link` at `target` (relative to the link's folder), replacing what it pointed at in one step."""
    temporary = link.with_name(f".{link.name}-{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    flush(link.parent)


@contextmanager
def locked(path: Path, *, wait: bool = False, with_children: bool = True) -> Iterator[bool]:
    """Hold the lock that a file stands for, and yield whether it is ours: False where another process holds it.

    Args:
        path: the lock file; made if it is missing, with its folder. Only who holds the lock may remove it.
        wait: until it is ours.
        with_children: forked children keep the lock alive after this process. Without, it cannot tell two holders in
            one process apart.

    Raises:
        OSError: the file cannot be opened; or, with `wait`, the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # No link is followed: anyone may have put one into a folder that came from elsewhere.
        # NFS locks only what can be written.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW | BINARY, 0o644)
        try:
            if wait:
                lock(descriptor, wait=True, with_children=with_children)
            is_ours = wait or _try(descriptor, with_children=with_children)
            if is_ours and not is_open_at(descriptor, path):  # removed by its holder between opening and locking
                continue
            try:
                yield is_ours
                return
            finally:
                with suppress(OSError):  # a file system without locks
                    unlock(descriptor, with_children=with_children)  # or a child forked meanwhile would keep it
        finally:
            os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Return False if another process holds the lock on a file; where the file system has no locks, go on without.

    On Windows nothing is locked: a lock there would keep this process itself from reading the file's content.
    """
    return sys.platform == "win32" or _try(descriptor)


def remove_lock(path: Path) -> None:
    """Remove a lock file that is held. Windows keeps what is open; left there, it locks nothing."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if sys.platform != "win32":
            raise


def _try(descriptor: int, *, with_children: bool = True) -> bool:
    try:
        lock(descriptor, with_children=with_children)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def is_open_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sha256_of(path: Path, on_progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal; `on_progress` is told the bytes read so far."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    done = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            if on_progress is not None:
                on_progress(done)
    return digest.hexdigest()


def require_space(folder: Path, needed_bytes: int, *, fix: str) -> None:
    """Raise a `DataError` unless the disk of a folder has so much room."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DataError(
            f"the disk has too little room: up to {format_size(needed_bytes)} are needed, {format_size(free)} are free",
            where=str(folder),
            fix=fix,
        )


def is_disk_full(error: OSError) -> bool:
    """Return whether an error says that there is no room, on the disk or in the user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def format_size(num_bytes: float) -> str:
    """Return a size as people read it, e.g. `512 B`, `3.2 KiB`, `512 MiB` or `18.0 GiB`."""
    if num_bytes < 2**10:
        return f"{num_bytes:.0f} B"
    for unit, factor in (("KiB", 2**10), ("MiB", 2**20)):
        value = num_bytes / factor
        if value < 1023.5:
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{num_bytes / 2**30:.1f} GiB"


def _require_empty(folder: Path) -> None:
    is_empty = not os.path.lexists(folder) or (folder.is_dir() and not set(os.listdir(folder)) - {_LOCK, _INCOMPLETE})
    if not is_empty:
        raise ConfigError(
            "the output exists and is not an empty folder", where=str(folder), fix="name a new folder, or empty it"
        )
