"""Writing files so that a crash at any moment leaves the old content or the new, never half."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_directory", "atomic_symlink", "sha256_of", "write_atomic"]


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
            _fsync(file)
        _fsync(temporary)
        os.chmod(temporary, 0o755)
        os.rename(temporary, path)
        _fsync(path.parent)
    except BaseException:
        for file in temporary.iterdir() if temporary.exists() else ():
            file.unlink()
        if temporary.exists():
            temporary.rmdir()
        raise


def atomic_symlink(link: Path, target: str) -> None:
    """Point `link` at `target` (relative to the link's folder), replacing what it pointed at in one step."""
    temporary = link.with_name(f".{link.name}-{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    _fsync(link.parent)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
