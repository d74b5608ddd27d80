"""A file that arrives in pieces, and a journal beside it that says which of its bytes are safely on disk.

    train2017.zip.part           the bytes, each at its place
    train2017.zip.part.json      what is expected, where it comes from, which ranges are there

The journal never claims a byte that has not been flushed, so after a crash at any moment the transfer goes on from it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from detronome.data.download.byte_ranges import ByteRange, ByteRanges
from detronome.errors import DataError
from detronome.runtime.descriptors import BINARY, NO_FOLLOW, flush_data, write_at
from detronome.runtime.files import is_disk_full, is_open_at, sha256_of, try_lock, write_atomic

__all__ = ["PartFile", "Validator", "bytes_on_disk"]

_VERSION = 1


class Validator(msgspec.Struct, frozen=True, kw_only=True):
    """How a server names one version of a file."""

    etag: str | None = None
    last_modified: str | None = None

    @property
    def if_range(self) -> str | None:
        """The value for `If-Range`; a weak ETag must not be used there."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified

    def contradicts(self, other: Validator) -> bool:
        """Return whether the two name different versions."""
        if self.etag is not None and other.etag is not None:
            return self.etag.removeprefix("W/") != other.etag.removeprefix("W/")
        if self.last_modified is not None and other.last_modified is not None:
            return self.last_modified != other.last_modified
        return False


class _Journal(msgspec.Struct, kw_only=True):
    version: int
    size_bytes: int
    sha256: str
    url: str = ""
    validator: Validator = Validator()
    ranges: list[ByteRange] = []


class PartFile:
    """The part file of `destination`, opened by one process at a time.

    Safe to use from several threads; bytes may be written while a checkpoint flushes.

    Raises:
        DataError: another process has it open, or the folder cannot be written.
    """

    def __init__(self, destination: Path, *, size_bytes: int, sha256: str) -> None:
        self._destination = destination
        self._path = _part_path(destination)
        self._journal_path = _journal_path(destination)
        self._size_bytes = size_bytes
        self._sha256 = sha256
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | NO_FOLLOW | BINARY, 0o644)
        except OSError as error:
            raise _disk_error(error, self._path) from error
        try:
            # A file that was published between opening and locking has another name by now.
            if not (try_lock(self._descriptor) and is_open_at(self._descriptor, self._path)):
                raise DataError(
                    "another process is downloading this file",
                    where=str(self._path),
                    fix="wait for it or stop it; what it has received is kept",
                )
            journal = _read_journal(destination, size_bytes, sha256)
            if journal is None:
                self._journal_path.unlink(missing_ok=True)
                os.ftruncate(self._descriptor, size_bytes)
                journal = _Journal(version=_VERSION, size_bytes=size_bytes, sha256=sha256)
        except OSError as error:
            self.close()
            raise _disk_error(error, self._path) from error
        except DataError:
            self.close()
            raise
        self._url, self._validator = journal.url, journal.validator
        self._ranges = ByteRanges(journal.ranges)
        self._is_dirty = False
        self._lock = threading.Lock()
        self._journal_lock = threading.Lock()

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole file."""
        return self._size_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes that are there."""
        with self._lock:
            return self._ranges.num_bytes

    @property
    def validator(self) -> Validator:
        """The version of the file that the bytes belong to, as the server named it."""
        return self._validator

    def missing(self, start: int, end: int) -> list[ByteRange]:
        """Return the ranges between `start` and `end` that are not there."""
        with self._lock:
            return self._ranges.missing(start, end)

    def set_source(self, url: str) -> None:
        """Say where the next bytes come from; another address has its own names for versions."""
        if url != self._url:
            self._url, self._validator = url, Validator()
            self._is_dirty = True

    def set_validator(self, validator: Validator) -> None:
        """Say to which version the bytes belong."""
        if validator != self._validator:
            self._validator = validator
            self._is_dirty = True

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at their place.

        Raises:
            DataError: the disk is full or failing.
        """
        assert offset + len(data) <= self._size_bytes
        view, position = memoryview(data), offset
        with self._lock:
            assert self._descriptor is not None, "the part file is closed"
            try:
                while view:
                    written = write_at(self._descriptor, view, position)
                    view, position = view[written:], position + written
            except OSError as error:
                raise _disk_error(error, self._path) from error
            self._ranges.add(offset, position)
            self._is_dirty = True

    def restart(self) -> None:
        """Forget all bytes, first of all in the journal."""
        with self._journal_lock:
            with self._lock:
                self._ranges = ByteRanges()
                self._validator = Validator()
            self._write_journal()

    def checkpoint(self) -> None:
        """Flush the bytes to disk and record them.

        Raises:
            DataError: the disk is full or failing.
        """
        with self._journal_lock:
            if self._is_dirty:
                self._write_journal()

    def digest(self, on_progress: Callable[[int], None]) -> str:
        """Return the SHA-256 of the content; `on_progress` is told the bytes read so far."""
        return sha256_of(self._path, on_progress)

    def publish(self) -> None:
        """Give the complete file its name; the part file and the journal are gone after that."""
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        if sys.platform == "win32":  # no open file is renamed there
            self.close()
        os.replace(self._path, self._destination)
        self._journal_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file; later writes are refused."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _write_journal(self) -> None:
        with self._lock:
            self._is_dirty = False
            journal = _Journal(
                version=_VERSION,
                size_bytes=self._size_bytes,
                sha256=self._sha256,
                url=self._url,
                validator=self._validator,
                ranges=self._ranges.to_list(),
            )
        assert self._descriptor is not None
        try:
            flush_data(self._descriptor)
            write_atomic(self._journal_path, msgspec.json.encode(journal))
        except OSError as error:
            raise _disk_error(error, self._path) from error
        except KeyboardInterrupt:
            self._is_dirty = True  # the checkpoint that ends the transfer does it again
            raise


def bytes_on_disk(destination: Path, *, size_bytes: int, sha256: str) -> int:
    """Return how many bytes of a file need not be transferred: all when it exists, else those in the journal."""
    if destination.is_file() and destination.stat().st_size == size_bytes:
        return size_bytes
    journal = _read_journal(destination, size_bytes, sha256)
    return 0 if journal is None else ByteRanges(journal.ranges).num_bytes


def _part_path(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.part")


def _journal_path(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.part.json")


def _read_journal(destination: Path, size_bytes: int, sha256: str) -> _Journal | None:
    """Return the journal if it tells of this very file and can be believed."""
    try:
        journal = msgspec.json.decode(_journal_path(destination).read_bytes(), type=_Journal)
        part_bytes = _part_path(destination).stat().st_size
    except (OSError, ValueError):  # missing or damaged: the transfer starts anew
        return None
    is_known = (journal.version, journal.size_bytes, journal.sha256) == (_VERSION, size_bytes, sha256)
    is_sound = part_bytes == size_bytes and all(0 <= start < end <= size_bytes for start, end in journal.ranges)
    return journal if is_known and is_sound else None


def _disk_error(error: OSError, path: Path) -> DataError:
    is_full = is_disk_full(error)
    return DataError(
        "the disk is full" if is_full else f"the file cannot be written: {error.strerror or error}",
        where=str(path),
        fix="make room and run the same command again: what has been received is kept" if is_full else "",
    )
