"""Decoded pixels of a split, kept in memory or on disk within a budget and shared by all processes.

One sparse file holds everything: a header, one record for each image, then the pixels. In memory it is an anonymous
file, which ends with the processes that use it, however they end, and which the size of /dev/shm does not bound; on
disk it is kept for the next run. Processes read and write with positioned calls and map nothing: a disk that is full or
fails then gives an error code, not a signal that kills the worker.

What is handed out is a private copy and always verified: a record's check is a CRC-32 over the number of the image, the
state of its source and all its pixels. A write cut short, two writers at once, a flipped bit and a changed source all
read as "not there", and the image is decoded anew. Reading and verifying take about an eighth of decoding a photo.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import struct
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from detronome.data.augment.params import resized_hw
from detronome.errors import DataError
from detronome.runtime.descriptors import BINARY, read_at, read_into_at, write_at
from detronome.runtime.files import write_atomic

__all__ = ["PixelCache", "SourceStamp", "stored_size_hw"]

SourceStamp = tuple[int, int]
"""Size in bytes and time of change in ns of the file that an image is decoded from."""

_SCHEMA = 1
"""Raised whenever the file's layout changes."""
_PAGE = 4096
"""Images start at multiples of it, so that writing one never rewrites a part of another."""
_KEPT_FREE = 0.2
"""Part of the free memory or disk that is left to others, whatever the budget."""
_HEADER_BYTES = 64
_IDENTITY_BYTES = 16
"""At the start of the header; a byte follows that is 1 once the cache takes no more images."""
_RECORD = np.dtype(
    [
        ("offset", "<i8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("place_check", "<u4"),
        ("is_kept", "<u4"),
        ("check", "<u4"),
        ("source_bytes", "<i8"),
        ("source_mtime_ns", "<i8"),
    ]
)
_PLACE = struct.Struct("<qiiI")
"""The first four fields, written once; the fourth is a CRC-32 of the other three and the image's number."""
_STATE = struct.Struct("<IIqq")
"""The others, written with the pixels."""

_Whole = TypeVar("_Whole", int, np.ndarray[Any, np.dtype[np.int64]])

_logger = logging.getLogger(__name__)


class PixelCache:
    """The pixels of a split's images, by position in its index. Use `PixelCache.create`, once for all processes.

    Pickles to a path and a few numbers; each process opens the file when it first needs it. The object that `create`
    returned keeps a cache in memory alive: it must live as long as any process uses a copy of it.

    Images are admitted in a fixed pseudo-random order until the budget is used up, so that no class or folder is
    favoured. Once made, the cache never fails: an image that cannot be kept is decoded every time.
    """

    def __init__(self, path: Path, identity: bytes, num_images: int, num_admitted: int, bytes_admitted: int) -> None:
        self._path = path
        self._identity = identity
        self._num_images = num_images
        self._end = _first_offset(num_images) + bytes_admitted
        self._descriptor: int | None = None
        self._close_file: Callable[[], object] = _do_nothing
        self._is_usable = num_admitted > 0
        self.num_admitted = num_admitted
        """Images that fit into the budget."""
        self.bytes_admitted = bytes_admitted
        """Memory or disk space that they take once all of them are there."""
        self.hits = 0
        """Calls of `get` in this process that found the image."""
        self.misses = 0
        """Calls of `get` in this process that did not."""

    @classmethod
    def create(
        cls,
        *,
        where: Literal["ram", "disk"],
        folder: Path,
        key: str,
        sizes_hw: Int32[np.ndarray, "I 2"],
        budget_bytes: int,
    ) -> PixelCache:
        """Return a cache: empty in memory, on disk with what earlier runs have left there.

        A fifth of the memory or disk space that is free now stays free, even if the budget asks for more. On disk a
        smaller budget than before uses a part of the file and frees nothing, a larger one extends it; several runs may
        use it at once.

        Args:
            where: in memory until the last process ends, or in a file that stays.
            folder: the file on disk is `folder/key/<layout>.pixels`; not used in memory.
            key: a file name that stands for the images and for how they are decoded and reduced; it also orders their
                admission.
            sizes_hw: height and width in pixels of each image as it will be put.
            budget_bytes: most bytes that the pixels may take.

        Raises:
            DataError: the file cannot be made.
        """
        sizes = sizes_hw.astype("<i4").reshape(-1, 2)
        offsets, ends = _layout(key, sizes)
        layout = hashlib.blake2b(digest_size=_IDENTITY_BYTES)
        for part in (repr((_SCHEMA, key)).encode(), sizes.tobytes(), offsets.tobytes()):
            layout.update(part)
        identity = layout.digest() if where == "disk" else secrets.token_bytes(_IDENTITY_BYTES)
        path = folder / key / f"{layout.hexdigest()}.pixels"
        try:
            if where == "disk":
                descriptor = _open_or_make(path, identity, sizes, offsets)
                free_bytes = _free_disk_bytes(path)
            else:
                descriptor = _make_in_memory(identity, sizes, offsets)
                free_bytes = _free_memory_bytes()
                path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        except OSError as error:
            raise DataError(
                f"the pixel cache cannot be made: {error.strerror or error}",
                where=str(path) if where == "disk" else "memory",
                fix="set DETRONOME_CACHE to a folder on a disk with free space that you may write to, or turn it off"
                if where == "disk"
                else "data.cache=disk, or none",
            ) from error
        first = _first_offset(len(sizes))
        budget_bytes = min(budget_bytes, int(free_bytes * (1.0 - _KEPT_FREE)))
        num_admitted = int(np.searchsorted(ends, first + budget_bytes, side="right"))
        bytes_admitted = int(ends[num_admitted - 1]) - first if num_admitted else 0
        cache = cls(path, identity, len(sizes), num_admitted, bytes_admitted)
        cache._hold(descriptor)
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelCache, (self._path, self._identity, self._num_images, self.num_admitted, self.bytes_admitted)

    def get(self, i: int, source: SourceStamp) -> UInt8[np.ndarray, "H W 3"] | None:
        """Return the pixels of image `i` as the caller's own copy, or None where they are missing or not sound.

        Args:
            i: position of the image in the split's index.
            source: the state of its file now; pixels decoded from another state are not returned.
        """
        pixels = self._read(i, source)
        if pixels is None:
            self.misses += 1
        else:
            self.hits += 1
        return pixels

    def put(self, i: int, pixels: UInt8[np.ndarray, "H W 3"], source: SourceStamp) -> None:
        """Keep the pixels of image `i`, if it was admitted.

        Args:
            i: position of the image in the split's index.
            pixels: of the size that `create` was told.
            source: the state of its file before it was read.
        """
        descriptor = self._open()
        if descriptor is None:
            return
        try:
            place = self._place(descriptor, i)
            if place is None or _is_stopped(descriptor):
                return
            offset, height, width = place
            assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
            pixels = np.ascontiguousarray(pixels)
            _write(descriptor, pixels.data.cast("B"), offset)
            # The record comes last: a process killed before leaves the old one, which does not fit the new pixels.
            state = _STATE.pack(1, _check(i, source, pixels), *source)
            _write(descriptor, memoryview(state), _state_offset(i))
        except struct.error:  # the file was cut short, and no longer has a record to fill
            return
        except OSError as error:
            self._stop(descriptor, error)

    @property
    def num_kept(self) -> int:
        """Images that have been put by any process; for a report, as some may turn out to be stale."""
        descriptor = self._open()
        if descriptor is None:
            return 0
        content = bytearray(self._num_images * _RECORD.itemsize)
        with suppress(OSError):
            _read_into(descriptor, memoryview(content), _HEADER_BYTES)
        records = np.frombuffer(content, _RECORD)
        ends = records["offset"] + _pixel_bytes(records["height"], records["width"])
        return int(((records["is_kept"] == 1) & (ends <= self._end)).sum())

    @property
    def is_stopped(self) -> bool:
        """Whether a full or failing disk has made a process stop putting images, and with it all others."""
        descriptor = self._open()
        return descriptor is not None and _is_stopped(descriptor)

    def close(self) -> None:
        """Let go of the file in this process; from now on nothing is found or kept.

        A cache in memory ends with the last process that holds it open.
        """
        self._is_usable = False
        self._descriptor = None
        self._close_file()

    def _hold(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._close_file = weakref.finalize(self, os.close, descriptor)

    def _open(self) -> int | None:
        """Return the file's descriptor, or None where there is nothing to be had from it."""
        if self._is_usable and self._descriptor is None:
            try:
                descriptor = os.open(self._path, os.O_RDWR | BINARY)
                self._hold(descriptor)
                # Where the maker has ended or closed its file, the path may by now stand for another.
                if not _is_whole(descriptor, self._identity, self._num_images):
                    raise FileNotFoundError(errno.ENOENT, "another file is in its place")
            except OSError as error:
                self.close()
                _logger.warning(
                    "the pixel cache %s cannot be opened, images are decoded every time: %s", self._path, error.strerror
                )
        return self._descriptor

    def _read(self, i: int, source: SourceStamp) -> UInt8[np.ndarray, "H W 3"] | None:
        descriptor = self._open()
        if descriptor is None:
            return None
        try:
            place = self._place(descriptor, i)
            if place is None:
                return None
            offset, height, width = place
            is_kept, check, *kept_source = _STATE.unpack(read_at(descriptor, _STATE.size, _state_offset(i)))
            if is_kept != 1 or tuple(kept_source) != source:
                return None
            pixels = np.empty((height, width, 3), np.uint8)
            if not _read_into(descriptor, pixels.data.cast("B"), offset):
                return None
        except (OSError, struct.error):  # the disk fails, or the file was cut short: the image may yet be readable
            return None
        return pixels if _check(i, source, pixels) == check else None

    def _place(self, descriptor: int, i: int) -> tuple[int, int, int] | None:
        """Return (offset, height, width) of image `i`, or None where it was not admitted or its record is damaged."""
        offset, height, width, check = _PLACE.unpack(read_at(descriptor, _PLACE.size, _record_offset(i)))
        if check != _place_check(i, offset, height, width) or offset + _pixel_bytes(height, width) > self._end:
            return None
        return offset, height, width

    def _stop(self, descriptor: int, error: OSError) -> None:
        """Keep no more images, in any process; say so once."""
        if _is_stopped(descriptor):
            return
        with suppress(OSError):
            write_at(descriptor, b"\1", _IDENTITY_BYTES)
        _logger.warning(
            "the pixel cache %s takes no more images, the rest are decoded every time: %s", self._path, error.strerror
        )


def stored_size_hw(size_hw: tuple[int, int], largest_short_side: int) -> tuple[int, int]:
    """Return the size at which to keep an image: large enough for any resize, and never larger than it is.

    Args:
        size_hw: height and width in pixels.
        largest_short_side: longest short side in pixels that is ever asked for.
    """
    return resized_hw(size_hw, largest_short_side) if largest_short_side < min(size_hw) else size_hw


def _layout(key: str, sizes_hw: Int32[np.ndarray, "I 2"]) -> tuple[Int64[np.ndarray, " I"], Int64[np.ndarray, " I"]]:
    """Return (offset of each image, where the first 1, 2, ... admitted images end), in bytes of the file."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(sizes_hw))
    heights, widths = sizes_hw.T.astype(np.int64)
    lengths = _whole_pages(_pixel_bytes(heights, widths))[order]
    ends = np.cumsum(lengths) + _first_offset(len(sizes_hw))
    offsets = np.empty(len(sizes_hw), np.int64)
    offsets[order] = ends - lengths
    return offsets, ends


def _pixel_bytes(height: _Whole, width: _Whole) -> _Whole:
    return height * width * 3


def _whole_pages(num_bytes: _Whole) -> _Whole:
    return -(-num_bytes // _PAGE) * _PAGE


def _first_offset(num_images: int) -> int:
    return _whole_pages(_record_offset(num_images))


def _record_offset(i: int) -> int:
    return _HEADER_BYTES + i * _RECORD.itemsize


def _state_offset(i: int) -> int:
    return _record_offset(i) + _PLACE.size


def _head(identity: bytes, sizes_hw: Int32[np.ndarray, "I 2"], offsets: Int64[np.ndarray, " I"]) -> bytes:
    """Return the content of an empty cache: the header, and records without pixels."""
    records = np.zeros(len(offsets), _RECORD)
    records["offset"] = offsets
    records["height"], records["width"] = sizes_hw.T
    places = zip(offsets.tolist(), *sizes_hw.T.tolist(), strict=True)
    records["place_check"] = [_place_check(i, *place) for i, place in enumerate(places)]
    return identity.ljust(_HEADER_BYTES, b"\0") + records.tobytes()


def _place_check(i: int, offset: int, height: int, width: int) -> int:
    return zlib.crc32(struct.pack("<4q", i, offset, height, width))


def _check(i: int, source: SourceStamp, pixels: UInt8[np.ndarray, "H W 3"]) -> int:
    return zlib.crc32(pixels.data, zlib.crc32(struct.pack("<5q", i, *source, *pixels.shape[:2])))


def _make_in_memory(identity: bytes, sizes_hw: Int32[np.ndarray, "I 2"], offsets: Int64[np.ndarray, " I"]) -> int:
    """Return the descriptor of a new anonymous file, which others reach through /proc while this process lives."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "this system has no anonymous files in memory")
    descriptor = os.memfd_create("detronome-pixels")
    _write(descriptor, memoryview(_head(identity, sizes_hw, offsets)), 0)
    return descriptor


def _open_or_make(
    path: Path, identity: bytes, sizes_hw: Int32[np.ndarray, "I 2"], offsets: Int64[np.ndarray, " I"]
) -> int:
    """Return the descriptor of the file on disk, made anew where there is none or it is damaged.

    Of two runs that make it at once the later wins, and its file is laid out alike. A run that already has the other
    one open goes on with that.
    """
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | BINARY)
        if _is_whole(descriptor, identity, len(offsets)):
            write_at(descriptor, b"\0", _IDENTITY_BYTES)
            return descriptor
        os.close(descriptor)
    write_atomic(path, _head(identity, sizes_hw, offsets))
    return os.open(path, os.O_RDWR | BINARY)


def _is_whole(descriptor: int, identity: bytes, num_images: int) -> bool:
    """Whether the file is the one that is meant, with a record for each image."""
    if read_at(descriptor, _IDENTITY_BYTES, 0) != identity:
        return False
    return os.fstat(descriptor).st_size >= _record_offset(num_images)


def _is_stopped(descriptor: int) -> bool:
    try:
        return read_at(descriptor, 1, _IDENTITY_BYTES) == b"\1"
    except OSError:
        return True


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    written = 0
    while written < len(content):  # a disk that is filling up takes a part first
        written += write_at(descriptor, content[written:], offset + written)


def _read_into(descriptor: int, content: memoryview, offset: int) -> bool:
    """Fill `content` from the file; return whether the file had enough."""
    done = 0
    while done < len(content):
        count = read_into_at(descriptor, content[done:], offset + done)
        if count == 0:
            return False
        done += count
    return True


def _free_disk_bytes(path: Path) -> int:
    """Return what the file's disk has left, with what the file itself has already taken."""
    taken = getattr(path.stat(), "st_blocks", 0) * 512  # Windows does not tell
    return shutil.disk_usage(path.parent).free + int(taken)


def _free_memory_bytes() -> int:
    """Return the memory that can be had without swapping, within the limits of the process's control groups."""
    free = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    ]
    root = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            group = root / line.removeprefix("0::").strip("/")
            for level in (group, *group.parents):
                with suppress(OSError, ValueError):  # not a control group, or "max": no limit
                    limit, used = (int((level / name).read_text()) for name in ("memory.max", "memory.current"))
                    free.append(limit - used + _droppable_bytes(level))
    return max(0, min(free, default=0))


def _droppable_bytes(group: Path) -> int:
    """Return what a control group holds of files that have not been used of late, and would drop at need."""
    pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(value) for name, value in pairs if name == "inactive_file")


def _do_nothing() -> None:
    """Close a file that has not been opened."""
