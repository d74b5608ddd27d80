"""Making shards from a data folder: the same bytes every time, one image in memory at a time."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detronome.data.layout import available_splits, find_split
from detronome.data.readable import cannot_be_read
from detronome.data.split_files import SplitFiles
from detronome.data.store.decode import read_image_file
from detronome.data.store.index import AnnotationIndex
from detronome.data.store.shards import cloud
from detronome.data.store.shards.find import shard_splits
from detronome.data.store.shards.format import (
    HEADER_FILE,
    RECORD,
    RECORDS_FILE,
    SHARDS_FOLDER,
    Header,
    ShardFile,
    annotation_path,
    encode_header,
    image_ids_sha256,
    image_member,
    records_member,
    shard_name,
)
from detronome.data.store.shards.output import Output, open_output
from detronome.data.store.shards.records import CocoRecords
from detronome.data.store.shards.tar import TarWriter
from detronome.errors import DataError, Problem, first_few
from detronome.runtime.files import require_space, sha256_of

__all__ = ["Progress", "ShardedData", "ShardedSplit", "write_shards"]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_SHOWN = 10
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM")
_TAR_BYTES_PER_IMAGE = 2048
"""Headers and padding of two members, on average."""


@dataclass(frozen=True)
class ShardedSplit:
    """One split as it was written."""

    split: str
    num_images: int
    num_shards: int
    size_bytes: int
    """Of the tar files."""
    suspicious: tuple[str, ...] = ()
    """Image files that are empty or do not begin as images do; they were packed as they are."""


@dataclass(frozen=True)
class ShardedData:
    """A data set as it was written."""

    out: str
    splits: tuple[ShardedSplit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """What one split's shards will be made of."""

    files: SplitFiles
    index: AnnotationIndex
    total_bytes: int
    largest_bytes: int


def write_shards(
    data_dir: Path,
    out: str,
    *,
    splits: Sequence[str] | None = None,
    shard_bytes: int,
    on_progress: Progress | None = None,
) -> ShardedData:
    """Write a data folder's splits as shards; see `format` for what they look like.

    Args:
        data_dir: a data folder.
        out: a folder that does not exist or is empty, or an address (s3://...), likewise.
        splits: their names; None for all that the folder has.
        shard_bytes: no shard is larger, unless a single image is.
        on_progress: hears how far the writing is.

    Raises:
        ConfigError: `out` is not empty.
        DataError: the data is not sound, image files are missing (all of them are named), or `out` lacks space. Nothing
            of the output is left then.
    """
    if shard_splits(str(data_dir)):
        raise DataError(
            "the data is already in shards", where=str(data_dir), fix="copy the folder, or give the original data"
        )
    if not cloud.is_url(out) and Path(out).resolve().is_relative_to(data_dir.resolve()):
        raise DataError(
            "the output lies inside the data folder, which is not to be changed",
            where=out,
            fix="name a folder elsewhere",
        )
    with open_output(out) as output:
        names = list(dict.fromkeys(splits)) if splits else available_splits(data_dir)
        plans = _plan(data_dir, names or ["train"])
        _check_space(plans, output, shard_bytes)
        progress = _Progress(sum(plan.total_bytes for plan in plans), on_progress)
        written = [_write_split(plan, output, shard_bytes, progress) for plan in plans]
        for plan in plans:
            output.put(f"{SHARDS_FOLDER}/{plan.files.name}/{HEADER_FILE}")
    return ShardedData(out, tuple(written))


class _Progress:
    def __init__(self, total_bytes: int, on_progress: Progress | None) -> None:
        self._done, self._total, self._tell = 0, total_bytes, on_progress

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._tell is not None:
            self._tell(self._done, self._total)


def _plan(data_dir: Path, names: Sequence[str]) -> list[_Plan]:
    plans: list[_Plan] = []
    problems: list[Problem] = []
    for name in names:
        files = find_split(data_dir, name)
        if any(plan.files.name == files.name for plan in plans):
            continue
        index = AnnotationIndex.open(files.annotation_file)
        total, largest, missing = 0, 0, []
        for i in range(len(index)):
            file_name = index.image(i).file_name
            try:
                size = (files.images_dir / file_name).stat().st_size
            except PermissionError as error:
                raise cannot_be_read(error, files.images_dir / file_name) from error
            except (OSError, ValueError):
                missing.append(file_name)
                continue
            total, largest = total + size, max(largest, size)
        if missing:
            named = first_few(missing, most=_SHOWN)
            problems.append(
                Problem(
                    what=f"{len(missing)} of {len(index)} image files are missing: {named}",
                    where=f"{files.images_dir} (named by {files.annotation_file})",
                    fix="copy the files there, or remove their records from the annotation file",
                )
            )
        plans.append(_Plan(files, index, total, largest))
    if problems:
        raise DataError(problems)
    return plans


def _check_space(plans: Sequence[_Plan], output: Output, shard_bytes: int) -> None:
    annotations = [plan.files.annotation_file.stat().st_size for plan in plans]
    if output.keeps_all:
        place, fix = output.scratch.parent, "free some space, or write to another place"
        images = sum(plan.total_bytes + len(plan.index) * (_TAR_BYTES_PER_IMAGE + RECORD.itemsize) for plan in plans)
        needed = images + 2 * sum(annotations)  # as a file, and as the records in the shards
    else:
        place, fix = output.scratch, "free some space, set TMPDIR to a folder on another disk, or make smaller shards"
        largest = max(plan.largest_bytes for plan in plans)
        needed = max(shard_bytes, largest) + max(annotations) + max(len(plan.index) for plan in plans) * RECORD.itemsize
    require_space(place, needed, fix=fix)


def _write_split(plan: _Plan, output: Output, shard_bytes: int, progress: _Progress) -> ShardedSplit:
    folder = f"{SHARDS_FOLDER}/{plan.files.name}"
    (output.scratch / folder).mkdir(parents=True)
    rows, shards, suspicious = _write_images(plan, output, folder, shard_bytes, progress)

    records_file = output.scratch / folder / RECORDS_FILE
    np.save(records_file, rows, allow_pickle=False)
    header = Header(
        num_images=len(rows),
        image_ids_sha256=image_ids_sha256(plan.index),
        annotations_fingerprint=plan.index.fingerprint,
        records_sha256=sha256_of(records_file),
        shards=tuple(shards),
    )
    (output.scratch / folder / HEADER_FILE).write_bytes(encode_header(header))
    output.put(f"{folder}/{RECORDS_FILE}")

    annotation_file = annotation_path(plan.files.name)
    (output.scratch / annotation_file).parent.mkdir(exist_ok=True)
    shutil.copyfile(plan.files.annotation_file, output.scratch / annotation_file)
    output.put(annotation_file)
    size_bytes = sum(shard.size_bytes for shard in shards)
    return ShardedSplit(plan.files.name, len(rows), len(shards), size_bytes, tuple(suspicious))


def _write_images(
    plan: _Plan, output: Output, folder: str, shard_bytes: int, progress: _Progress
) -> tuple[np.ndarray[Any, Any], list[ShardFile], list[str]]:
    """Return (the index's rows, the shards, the files that are not like images)."""
    index = plan.index
    coco = CocoRecords(plan.files.annotation_file, index)
    rows = np.zeros(len(index), RECORD)
    shards: list[ShardFile] = []
    suspicious: list[str] = []
    i = 0
    while i < len(index):
        relative = f"{folder}/{shard_name(len(shards))}"
        with closing(TarWriter(output.scratch / relative)) as tar:
            is_empty = True
            while i < len(index):
                file_name = index.image(i).file_name
                content, records = read_image_file(plan.files.images_dir / file_name), coco.json_of(i)
                if not is_empty and tar.size_bytes + tar.size_of(content, records) > shard_bytes:
                    break
                offset = tar.add(image_member(i, file_name), content)
                tar.add(records_member(i), records)
                rows[i] = (offset, len(content), zlib.crc32(content), len(shards))
                progress.add(len(content))
                if not _begins_as_image(content):
                    suspicious.append(file_name)
                is_empty, i = False, i + 1
            shards.append(tar.finish())
        output.put(relative)
    return rows, shards, suspicious


def _begins_as_image(content: bytes) -> bool:
    return content.startswith(_BEGINNINGS) or content[4:8] in (b"ftyp", b"jP  ")
