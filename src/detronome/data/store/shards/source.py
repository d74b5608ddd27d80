"""Encoded images out of shards, by position, each verified by its CRC-32."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64

from detronome.data.split_files import SplitFiles
from detronome.data.store.cache import SourceStamp
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards import cloud
from detronome.data.store.shards.cache import CachedShards
from detronome.data.store.shards.descriptors import Descriptor
from detronome.data.store.shards.format import (
    Place,
    ShardIndex,
    image_ids_sha256,
    image_member,
    shard_name,
)
from detronome.errors import DataError, Problem

__all__ = ["ShardSource", "open_shards"]


class _Shards(Protocol):
    """The tar files of one split, wherever they are."""

    @property
    def num_open(self) -> int:
        """How many files each process may keep open."""
        ...

    def open(self, shard: int) -> Descriptor:
        """Return a shard, open.

        Raises:
            OSError: the local file cannot be opened.
            DataError: it cannot be fetched.
        """
        ...

    def discard(self, shard: int, damaged: Descriptor | None) -> bool:
        """Give up a copy that turned out to be damaged; return whether another one can be had."""
        ...

    def where(self, shard: int) -> str:
        """Return the path or address of a shard."""
        ...


class _LocalShards:
    num_open = 16

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, shard: int) -> Descriptor:
        return Descriptor.open(self._folder / shard_name(shard))

    def discard(self, shard: int, damaged: Descriptor | None) -> bool:
        return False

    def where(self, shard: int) -> str:
        return str(self._folder / shard_name(shard))


class ShardSource:
    """The encoded images of a split in shards, an `ImageSource`. Use `open_shards`.

    Holds places and numbers only: files are opened as they are needed, a few per process, and pickling leaves them.
    """

    def __init__(self, index: AnnotationIndex, places: ShardIndex, shards: _Shards) -> None:
        self._index = index
        self._places = places
        self._shards = shards
        self._open: OrderedDict[int, Descriptor] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSource, (self._index, self._places, self._shards)

    @property
    def shard_of(self) -> Int64[np.ndarray, " I"]:
        """The number of each image's shard, for `sampler.shard_permutation`."""
        return self._places.shard_of

    @property
    def largest_shard_bytes(self) -> int:
        """The size of the largest shard, by which a window is chosen that fits into the cache."""
        return self._places.largest_shard_bytes

    def read(self, i: int) -> bytes:
        """Return the content of image `i`'s file.

        Raises:
            DataError: the shard is missing, cut short or damaged there; names shard, member and image id.
        """
        place = self._places.place(i)
        try:
            content, defect = self._read_verified(place)
        except DataError as error:
            image_id = self._index.image(i).image_id
            told = [replace(p, what=f"image {image_id} cannot be read: {p.what}") for p in error.problems]
            raise DataError(told) from error
        if defect:
            raise DataError(
                f"image {self._index.image(i).image_id} cannot be read from its shard: {defect}",
                where=self.where(i),
                fix=f"{_copy_again(place.shard)}; detronome data shard --verify finds all damaged images",
            )
        return content

    def stamp(self, i: int) -> SourceStamp:
        """Return length and CRC-32 of image `i`'s content: what `read` returns is verified against them."""
        place = self._places.place(i)
        return place.length, place.crc32

    def where(self, i: int) -> str:
        """Return the shard of image `i`, as path or address, and the member in it."""
        shard = self._places.place(i).shard
        return f"{self._shards.where(shard)}, member {image_member(i, self._index.image(i).file_name)}"

    def _read_verified(self, place: Place) -> tuple[bytes, str]:
        """Return (content, what is wrong with it), after another try where a new copy can be had."""
        content, defect = self._read(place)
        if defect:
            with self._lock:
                damaged = self._open.pop(place.shard, None)
            if self._shards.discard(place.shard, damaged):
                content, defect = self._read(place)
        return content, defect

    def _read(self, place: Place) -> tuple[bytes, str]:
        try:
            descriptor = self._descriptor(place.shard)
            content = descriptor.read(place.offset, place.length)
        except OSError as error:
            return b"", str(error.strerror or error)
        if len(content) < place.length:
            return content, f"the shard ends after {descriptor.size_bytes:,} bytes"
        crc32 = zlib.crc32(content)
        if crc32 != place.crc32:
            return content, f"its CRC-32 is {crc32:08x} where it was {place.crc32:08x}"
        return content, ""

    def _descriptor(self, shard: int) -> Descriptor:
        with self._lock:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                return found
        opened = self._shards.open(shard)
        with self._lock:
            self._open[shard] = opened
            while len(self._open) > self._shards.num_open:
                self._open.popitem(last=False)
        return opened


def open_shards(files: SplitFiles, index: AnnotationIndex, *, cache_bytes: int) -> ShardSource:
    """Return the images of a split that lies in shards.

    Args:
        files: from `find_shard_split`.
        index: of `files.annotation_file`. Its boxes may have been corrected since the shards were made, but its images
            have to be the same, in the same order.
        cache_bytes: how much space shards from an address may take on this machine, those of other data included.

    Raises:
        DataError: index or shards are missing, damaged or cut short, or belong to another annotation file.
        ConfigError: not even one shard fits into the cache.
    """
    assert files.shards is not None, "the split has no shards"
    places = ShardIndex.open(files.images_dir)
    _check_same_images(places, index, files.shards)
    if cloud.is_url(files.shards):
        return ShardSource(index, places, CachedShards(files.shards, places, cache_bytes))
    _check_sizes(places)
    return ShardSource(index, places, _LocalShards(files.images_dir))


def _check_same_images(places: ShardIndex, index: AnnotationIndex, shards: str) -> None:
    header = places.header
    if header.num_images != len(index):
        difference = f"it has {len(index):,} images, they have {header.num_images:,}"
    elif header.annotations_fingerprint == index.fingerprint:  # spares a pass over the images
        return
    elif header.image_ids_sha256 != image_ids_sha256(index):
        difference = "its image ids, or their order, are others"
    else:
        return
    raise DataError(
        f"the annotation file does not belong to the shards: {difference}",
        where=f"{index.annotation_file}; {shards}",
        fix="restore the annotation file that the shards were made from, or make the shards again: "
        "detronome data shard",
    )


def _check_sizes(places: ShardIndex) -> None:
    problems = []
    for number, shard in enumerate(places.header.shards):
        path = places.folder / shard_name(number)
        try:
            size_bytes = path.stat().st_size
        except OSError as error:
            what = f"a shard cannot be read: {error.strerror or error}"
        else:
            if size_bytes == shard.size_bytes:
                continue
            what = f"a shard has {size_bytes:,} bytes where it had {shard.size_bytes:,}"
        problems.append(Problem(what=what, where=str(path), fix=_copy_again(number)))
    if problems:
        raise DataError(problems)


def _copy_again(shard: int) -> str:
    return f"copy {shard_name(shard)} again from where the shards were made, or make them again: detronome data shard"
