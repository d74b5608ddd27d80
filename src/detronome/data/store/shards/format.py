"""What a folder of shards holds: tar files, and an index that says where in them each image lies.

    annotations/instances_<split>.json   the annotation file, as it is
    shards/<split>/00000.tar, ...        WebDataset: members <key>.<ext>, the encoded image, and <key>.json, its records
    shards/<split>/index.npy             a row for each image, in the annotation file's order
    shards/<split>/index.json            written last: version, which images, size and SHA-256 of each shard

Shape letters: `I` images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np
from jaxtyping import Int64

from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError
from detronome.runtime.files import sha256_of

__all__ = [
    "HEADER_FILE",
    "RECORD",
    "RECORDS_FILE",
    "SHARDS_FOLDER",
    "Header",
    "Place",
    "ShardFile",
    "ShardIndex",
    "annotation_path",
    "decode_header",
    "encode_header",
    "image_ids",
    "image_ids_sha256",
    "image_member",
    "records_member",
    "shard_name",
]

SHARDS_FOLDER = "shards"
HEADER_FILE = "index.json"
RECORDS_FILE = "index.npy"
RECORD = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc32", "<u4"), ("shard", "<u4")])
"""One image: where in which shard its encoded bytes are, and their CRC-32. 24 bytes."""

_FORMAT = "detronome-shards"
_VERSION = 1
_MAX_EXTENSION = 10
_MAX_BYTES = 2**63 - 1
"""What a file can have; an index that says more was made by nobody's tar."""


class ShardFile(msgspec.Struct, frozen=True):
    """One tar file; its name follows from its number."""

    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=_MAX_BYTES)]
    sha256: str


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `index.json`."""

    format: str = _FORMAT
    version: int = _VERSION
    num_images: int
    image_ids_sha256: str
    """Of the image ids as 64-bit little-endian integers, in the annotation file's order."""
    annotations_fingerprint: str
    """`AnnotationIndex.fingerprint` of the annotation file that the shards were made from."""
    records_sha256: str
    """Of `index.npy`."""
    shards: Annotated[tuple[ShardFile, ...], msgspec.Meta(min_length=1)]


class _Version(msgspec.Struct):
    format: str
    version: int


@dataclass(frozen=True)
class Place:
    """Where one image's encoded bytes lie."""

    offset: int
    length: int
    crc32: int
    shard: int


class ShardIndex:
    """Where each image of a split lies. Use `ShardIndex.open`; pickling keeps only the folder."""

    def __init__(self, folder: Path, header: Header) -> None:
        self._folder = folder
        self._header = header
        self._records: np.ndarray[Any, Any] = np.asarray(np.load(folder / RECORDS_FILE, mmap_mode="r"))

    @classmethod
    def open(cls, folder: Path) -> ShardIndex:
        """Return the index in a local folder, after verifying it.

        Raises:
            DataError: it is missing, damaged, or of a newer format.
        """
        header_file, records_file = folder / HEADER_FILE, folder / RECORDS_FILE
        try:
            header = decode_header(header_file.read_bytes(), str(header_file))
            if sha256_of(records_file) != header.records_sha256:
                raise _damaged("it is not the one that index.json describes", str(records_file))
            index = cls(folder, header)
        except (OSError, ValueError) as error:
            raise _damaged(str(getattr(error, "strerror", None) or error), str(folder)) from error
        index._check(str(records_file))
        return index

    def _check(self, where: str) -> None:
        records, shards = self._records, self._header.shards
        if records.dtype != RECORD or records.shape != (self._header.num_images,):
            raise _damaged("it does not have a row for each image", where)
        sizes = np.array([shard.size_bytes for shard in shards], np.uint64)
        is_outside = records["shard"] >= len(shards)
        room = sizes[np.where(is_outside, 0, records["shard"])]
        # By differences: a sum of two 64-bit numbers may begin at 0 again.
        is_outside |= (records["length"] > room) | (records["offset"] > room - np.minimum(records["length"], room))
        if is_outside.any():
            raise _damaged("it points outside the shards", where)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._folder,)

    def __len__(self) -> int:
        return self._header.num_images

    @property
    def folder(self) -> Path:
        """The local folder of the index."""
        return self._folder

    @property
    def header(self) -> Header:
        """Which images these are, and the size and SHA-256 of each shard."""
        return self._header

    @property
    def largest_shard_bytes(self) -> int:
        """The size of the largest shard."""
        return max(shard.size_bytes for shard in self._header.shards)

    @property
    def shard_of(self) -> Int64[np.ndarray, " I"]:
        """The number of each image's shard."""
        return self._records["shard"].astype(np.int64)

    def place(self, i: int) -> Place:
        """Return where image `i` of the annotation file lies."""
        return Place(*self._records[i].item())


def _reopen(folder: Path) -> ShardIndex:
    header_file = folder / HEADER_FILE
    return ShardIndex(folder, decode_header(header_file.read_bytes(), str(header_file)))


def encode_header(header: Header) -> bytes:
    """Return the content of `index.json`."""
    return msgspec.json.format(msgspec.json.encode(header), indent=1) + b"\n"


def decode_header(content: bytes, where: str) -> Header:
    """Return the header in the content of an `index.json`.

    Raises:
        DataError: it is none, or of a newer format.
    """
    try:
        found = msgspec.json.decode(content, type=_Version)
        if found.format != _FORMAT:
            raise _damaged("it is no index of shards", where)
        if found.version != _VERSION:
            raise DataError(
                f"the shards are of format {found.version}; this version of detronome reads format {_VERSION}",
                where=where,
                fix="use a newer detronome, or make the shards again: detronome data shard",
            )
        return msgspec.json.decode(content, type=Header)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _damaged(str(error), where) from error


def image_ids_sha256(index: AnnotationIndex) -> str:
    """Return the SHA-256 by which an annotation file's images are recognised: ids and order."""
    return hashlib.sha256(image_ids(index).astype("<i8").tobytes()).hexdigest()


def image_ids(index: AnnotationIndex) -> Int64[np.ndarray, " I"]:
    """Return the image ids of an annotation file, in its order."""
    return np.fromiter((index.image(i).image_id for i in range(len(index))), np.int64, len(index))


def annotation_path(split: str) -> str:
    """Return the annotation file of a split, relative to the data set."""
    return f"annotations/instances_{split}.json"


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:05d}.tar"


def image_member(i: int, file_name: str) -> str:
    """Return the name of image `i` in its shard.

    WebDataset takes what follows the first dot as the kind of content, so the key is the position alone.
    """
    extension = PurePosixPath(file_name).suffix[1:].lower()
    is_plain = extension.isascii() and extension.isalnum() and len(extension) <= _MAX_EXTENSION
    return f"{_key(i)}.{extension if is_plain and extension != 'json' else 'img'}"


def records_member(i: int) -> str:
    """Return the name of the member that holds image `i`'s COCO records."""
    return f"{_key(i)}.json"


def _key(i: int) -> str:
    return f"{i:09d}"


def _damaged(reason: str, where: str) -> DataError:
    return DataError(
        f"the index of the shards cannot be used: {reason}",
        where=where,
        fix="copy index.json and index.npy again from where the shards were made, or make the shards again",
    )
