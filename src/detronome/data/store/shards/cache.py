"""Shards from an address, fetched whole when first needed and kept on this machine within a budget.

Any number of processes share the cache. A lock per shard lets one of them fetch it while the others wait for it; a
lock on the cache as a whole guards the budget, for the moment in which shards are evicted and room is reserved. The
room is reserved by the size of the temporary file, which its writer keeps locked: one without a lock was left by a
process that died, and is removed. Evicting unlinks, so that whoever has the shard open reads on.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from detronome.data.store.shards import cloud
from detronome.data.store.shards.descriptors import Descriptor
from detronome.data.store.shards.format import ShardIndex, shard_name
from detronome.errors import ConfigError, DataError
from detronome.runtime.descriptors import BINARY
from detronome.runtime.files import locked, try_lock

__all__ = ["CachedShards"]

_ATTEMPTS = 2
_POLL_S = 0.05


class CachedShards:
    """The tar files of one split at an address.

    Args:
        url: the folder of the split's shards.
        places: their index, in the folder of the cache that is to hold the shards.
        cache_bytes: the budget of the cache as a whole.

    Raises:
        ConfigError: not even one shard fits into the budget, or this is Windows.
    """

    num_open = 1
    """An evicted shard that is still open takes room beyond the budget."""

    def __init__(self, url: str, places: ShardIndex, cache_bytes: int) -> None:
        if sys.platform == "win32":  # shards are published and evicted while they are open
            raise ConfigError("no shards from an address on Windows", where=url, fix="copy them to a disk")
        largest = places.largest_shard_bytes
        if largest > cache_bytes:
            raise ConfigError(
                f"a cache of {cache_bytes:,} bytes cannot hold a shard of {largest:,}",
                where=url,
                fix="give the cache more room, or make smaller shards: detronome data shard --shard-mib",
            )
        self._url = url
        self._places = places
        self._cache_bytes = cache_bytes

    def where(self, shard: int) -> str:
        """Return the address of a shard."""
        return f"{self._url}/{shard_name(shard)}"

    def open(self, shard: int) -> Descriptor:
        """Return a shard, open, fetched now if it is not here.

        Raises:
            DataError: it cannot be fetched, is not what the index says, or the cache cannot be written.
        """
        try:
            found = self._open_cached(shard)
            if found is not None:
                return found
            with self._lock(shard):
                return self._open_cached(shard) or self._fetch(shard)
        except OSError as error:
            raise DataError(
                f"the shard cannot be kept on this machine: {error.strerror or error}",
                where=str(error.filename or self._places.folder),
                fix="free some space, give the cache less, or set DETRONOME_CACHE to another folder",
            ) from error

    def discard(self, shard: int, damaged: Descriptor | None) -> bool:
        """Remove the copy of a shard, unless it is another one by now; return whether that was possible."""
        path = self._path(shard)
        try:
            with self._lock(shard):
                if damaged is None or damaged.is_at(path):
                    path.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _path(self, shard: int) -> Path:
        return self._places.folder / shard_name(shard)

    def _size_bytes(self, shard: int) -> int:
        return self._places.header.shards[shard].size_bytes

    def _lock(self, shard: int) -> AbstractContextManager[bool]:
        return locked(self._places.folder / f".{shard_name(shard)}.lock", wait=True)

    def _open_cached(self, shard: int) -> Descriptor | None:
        path = self._path(shard)
        try:
            found = Descriptor.open(path)
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError):  # evicted just now
            os.utime(path)  # the time of last use, by which shards are evicted
        # After a power cut the name may be there without the content.
        return found if found.size_bytes == self._size_bytes(shard) else None

    def _fetch(self, shard: int) -> Descriptor:
        defect = ""
        for _ in range(_ATTEMPTS):
            with self._reserved(shard) as (descriptor, temporary):
                defect = self._download(shard, descriptor)
                if not defect:
                    os.replace(temporary, self._path(shard))
                    # Opened before another process can evict it: a cache that is too small is slow, never stuck.
                    return Descriptor(os.dup(descriptor))
        raise DataError(
            f"the shard cannot be fetched: {defect}",
            where=self.where(shard),
            fix=f"check the network, or upload {shard_name(shard)} again from where the shards were made",
        )

    def _download(self, shard: int, descriptor: int) -> str:
        """Write the shard into a file; return what is wrong with it."""
        expected = self._places.header.shards[shard]
        digest, size_bytes = hashlib.sha256(), 0
        try:
            for chunk in cloud.stream(self.where(shard)):
                size_bytes += len(chunk)
                if size_bytes > expected.size_bytes:
                    break
                digest.update(chunk)
                _write(descriptor, chunk)
        except DataError as error:
            return error.problems[0].what
        if size_bytes != expected.size_bytes:
            more = "more than " if size_bytes > expected.size_bytes else ""
            return f"it has {more}{min(size_bytes, expected.size_bytes):,} bytes where it had {expected.size_bytes:,}"
        return "" if digest.hexdigest() == expected.sha256 else "its SHA-256 is not the one in the index"

    @contextmanager
    def _reserved(self, shard: int) -> Iterator[tuple[int, Path]]:
        """Yield (descriptor, path) of a temporary file that counts as large as the shard; removed if still there."""
        size_bytes, root = self._size_bytes(shard), self._places.folder.parent
        while True:
            with locked(root / ".lock", wait=True):
                if _make_room(root, size_bytes, self._cache_bytes):
                    descriptor, name = tempfile.mkstemp(
                        dir=self._places.folder, prefix=f".{shard_name(shard)}-", suffix=".tmp"
                    )
                    temporary = Path(name)
                    try_lock(descriptor)
                    os.ftruncate(descriptor, size_bytes)
                    break
            time.sleep(_POLL_S)
        try:
            yield descriptor, temporary
        finally:
            temporary.unlink(missing_ok=True)  # it is gone where it was published
            os.close(descriptor)


def _make_room(root: Path, needed_bytes: int, budget_bytes: int) -> bool:
    """Evict the shards used longest ago; return False when too much is reserved by those who are fetching now."""
    reserved = sum(_reserved_bytes(path) for path in root.glob("*/.*.tar-*.tmp"))
    if reserved and reserved + needed_bytes > budget_bytes:
        return False
    kept: list[tuple[int, int, Path]] = []
    for path in root.glob("*/*.tar"):
        with suppress(FileNotFoundError):  # discarded just now
            status = path.stat()
            kept.append((status.st_mtime_ns, status.st_size, path))
    used = reserved + sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if used + needed_bytes <= budget_bytes:
            break
        path.unlink(missing_ok=True)
        used -= size
    return True


def _reserved_bytes(temporary: Path) -> int:
    try:
        descriptor = os.open(temporary, os.O_RDWR | BINARY)
    except FileNotFoundError:
        return 0
    try:
        if not try_lock(descriptor):
            return os.fstat(descriptor).st_size
        temporary.unlink(missing_ok=True)
        return 0
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
