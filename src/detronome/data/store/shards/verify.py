"""Reading shards through, once and in order: the SHA-256 of each, and the CRC-32 of every image in it.

A flipped bit in the content of an image is found by its CRC-32, so the image is named. One in a tar header, in padding
or in a `.json` member does no harm to training, which reads none of them; only the SHA-256 of the shard finds it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detronome.data.coco.layout import coco_annotation_files
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards import cloud
from detronome.data.store.shards.find import find_shard_split, shard_splits
from detronome.data.store.shards.format import ShardIndex, annotation_path, image_member, shard_name
from detronome.data.store.shards.write import Progress
from detronome.errors import DataError, Problem, first_few

__all__ = ["DamagedImage", "DamagedShard", "ShardCheck", "verify_shard_files"]

_SHOWN = 10
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DamagedImage:
    """An image whose bytes are not those that were put into its shard."""

    image_id: int
    member: str
    """Its name in the shard."""


@dataclass(frozen=True)
class DamagedShard:
    """A tar file that is not the one that was written."""

    shard: str
    """Path or address."""
    defect: str
    images: tuple[DamagedImage, ...]
    """Those whose content is damaged or missing; none where the damage lies between the images."""

    def to_problem(self) -> Problem:
        """Return the damage as part of an error."""
        named = first_few([f"{image.image_id} ({image.member})" for image in self.images], most=_SHOWN)
        harm = f"damaged images: {named}" if self.images else "no image is damaged: it lies between them"
        return Problem(
            what=f"{self.defect}; {harm}",
            where=self.shard,
            fix="copy this file again from where the shards were made, or make them again: detronome data shard",
        )


@dataclass(frozen=True)
class ShardCheck:
    """What reading all shards of a data set found."""

    num_shards: int
    num_images: int
    damaged: tuple[DamagedShard, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def raise_if_damaged(self) -> None:
        """Raise a `DataError` that names every damaged shard, with its images, if there is one."""
        if self.damaged:
            raise DataError([shard.to_problem() for shard in self.damaged])


def verify_shard_files(
    data_dir: str, *, splits: Sequence[str] | None = None, on_progress: Progress | None = None
) -> ShardCheck:
    """Read all shards of a data set, in a folder or at an address, and return what is damaged.

    Raises:
        DataError: there are no shards, an annotation file or an index cannot be used, or the address cannot be read.
    """
    names = list(dict.fromkeys(splits)) if splits else sorted({*shard_splits(data_dir), *_annotated(data_dir)})
    opened: list[tuple[str, ShardIndex, AnnotationIndex]] = []
    problems: list[Problem] = []
    for name in names or ["train"]:
        try:
            opened.append(_open(data_dir, name))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems)
    total = sum(shard.size_bytes for _, places, _ in opened for shard in places.header.shards)
    done, damaged = 0, []
    for folder, places, index in opened:
        shard_of, shards = places.shard_of, places.header.shards
        by_shard = np.argsort(shard_of, kind="stable")
        starts = np.searchsorted(shard_of[by_shard], np.arange(len(shards) + 1))
        for number, shard in enumerate(shards):
            images = by_shard[starts[number] : starts[number + 1]].tolist()
            found = _verify(folder, number, places, images, index)
            if found is not None:
                damaged.append(found)
            done += shard.size_bytes
            if on_progress is not None:
                on_progress(done, total)
    return ShardCheck(
        num_shards=sum(len(places.header.shards) for _, places, _ in opened),
        num_images=sum(len(places) for _, places, _ in opened),
        damaged=tuple(damaged),
    )


def _annotated(data_dir: str) -> list[str]:
    """Return the splits that have annotations: each had shards when they were written."""
    if not cloud.is_url(data_dir):
        return list(coco_annotation_files(Path(data_dir)))
    before, after = annotation_path("*").split("*")
    folder, _, prefix = before.rpartition("/")
    names = cloud.list_names(f"{data_dir.rstrip('/')}/{folder}")
    return [name[len(prefix) : -len(after)] for name in names if name.startswith(prefix) and name.endswith(after)]


def _open(data_dir: str, name: str) -> tuple[str, ShardIndex, AnnotationIndex]:
    files = find_shard_split(data_dir, name)
    if files is None or files.shards is None:
        known = ", ".join(shard_splits(data_dir))
        raise DataError(
            f"there are no shards of split {name!r}" + (f"; there are those of {known}" if known else ""),
            where=data_dir,
            fix="give the folder or address that detronome data shard wrote",
        )
    return files.shards, ShardIndex.open(files.images_dir), AnnotationIndex.open(files.annotation_file)


def _verify(
    folder: str, number: int, places: ShardIndex, images: Sequence[int], index: AnnotationIndex
) -> DamagedShard | None:
    where = f"{folder}/{shard_name(number)}"
    expected = places.header.shards[number]
    reader = _Reader(where)
    defect, bad = "", []
    try:
        for i in images:
            place = places.place(i)
            reader.skip_to(place.offset)
            content = reader.take(place.length)
            if len(content) < place.length or zlib.crc32(content) != place.crc32:
                bad.append(i)
        reader.skip_to(None)
    except DataError as error:
        defect, bad = error.problems[0].what, list(images)
    if not defect and reader.size_bytes != expected.size_bytes:
        defect = f"the shard has {reader.size_bytes:,} bytes where it had {expected.size_bytes:,}"
    if not defect and reader.sha256 != expected.sha256:
        defect = "the shard's SHA-256 is not the one in the index"
    if not defect and bad:
        defect = "images have another CRC-32 than in the index"
    if not defect:
        return None
    named = (DamagedImage(index.image(i).image_id, image_member(i, index.image(i).file_name)) for i in bad)
    return DamagedShard(where, defect, tuple(named))


class _Reader:
    """A file read from its beginning to its end, with the SHA-256 of all of it."""

    def __init__(self, where: str) -> None:
        self._chunks = cloud.stream(where) if cloud.is_url(where) else _stream_file(Path(where))
        self._digest = hashlib.sha256()
        self._held = memoryview(b"")
        self.size_bytes = 0
        """Read so far."""

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def take(self, length: int) -> bytes:
        """Return the next bytes, fewer only where the file ends."""
        parts: list[memoryview] = []
        while length > 0 and (self._held or self._fill()):
            part, self._held = self._held[:length], self._held[length:]
            parts.append(part)
            length -= len(part)
            self.size_bytes += len(part)
        return b"".join(parts)

    def skip_to(self, offset: int | None) -> None:
        """Read on to a place, or to the end."""
        while offset is None or self.size_bytes < offset:
            if not self.take(_CHUNK_BYTES if offset is None else min(_CHUNK_BYTES, offset - self.size_bytes)):
                return

    def _fill(self) -> bool:
        self._held = memoryview(next(self._chunks, b""))
        self._digest.update(self._held)
        return bool(self._held)


def _stream_file(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror or error}", where=str(path)) from error
