"""Data sets: download, check, convert, stats, shards. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from detronome.data.formats.convert import Conversion, TargetLayout, convert
from detronome.data.formats.placement import ImagePlacement
from detronome.data.stats import DataStats, count_data
from detronome.data.store.cache_folder import CacheEntry, list_entries, remove_entries
from detronome.data.store.compile import CompiledSplit, compile_splits
from detronome.data.store.shards.verify import ShardCheck, verify_shard_files
from detronome.data.store.shards.write import ShardedData, write_shards
from detronome.errors import ConfigError, DataError

if TYPE_CHECKING:
    from detronome.data.check.findings import CheckReport
    from detronome.data.download.events import DownloadEvent
    from detronome.data.download.install import InstalledPart

__all__ = [
    "check_data",
    "clear_caches",
    "convert_data",
    "data_stats",
    "download_data",
    "index_data",
    "list_caches",
    "shard_data",
    "verify_shards",
]

_MIB = 2**20


def check_data(
    data: str | Path,
    *,
    splits: Sequence[str] | None = None,
    images: bool = True,
    queries: int = 100,
    fix: str | Path | None = None,
    assume_xyxy: bool | None = None,
    manifest: str | Path | None = None,
    workers: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> CheckReport:
    """Find everything that is wrong with a data set, all at once; nothing of it is changed.

    Args:
        data: data folder, or a single COCO JSON file, of which then only the annotations are checked.
        splits: names of the splits; None for all.
        images: decode the image files too, and look for images that several splits share.
        queries: how many objects the model to be trained finds in one image at most.
        fix: write repaired annotations there: a new file for one split, or a folder that gets those of all.
        assume_xyxy: with `fix`, whether boxes are [left, top, right, bottom]; None where nobody said, and then a file
            whose boxes look so is not repaired.
        manifest: folder with the SHA-256 of each split's image files: compared where there are, else written. Only they
            show flipped bits that still decode.
        workers: processes that decode images; 0 for this one. They are spawned, so a script needs its
            `if __name__ == "__main__":`.
        on_progress: is told what is being looked at, how many of it are done, and how many there are.

    Raises:
        ConfigError: no query; or `fix` is one file for several splits, exists already, or cannot be written.
        DataError: the folder, or a split that was asked for, does not exist; or a manifest is none.
    """
    # Not at the top: it imports the image decoders, which most of the functions here do not need.
    from detronome.data.check.run import check

    if queries < 1:
        raise ConfigError(f"{queries} queries", where="queries", fix="give a number from 1")
    return check(
        Path(data),
        splits=splits,
        images=images,
        queries=queries,
        fix=None if fix is None else Path(fix),
        assume_xyxy=assume_xyxy,
        manifest=None if manifest is None else Path(manifest),
        workers=workers,
        on_progress=on_progress,
    )


def download_data(
    dataset: str,
    folder: str | Path,
    *,
    parts: Sequence[str] | None = None,
    connections: int = 8,
    mirror: str | None = None,
    keep_archives: bool = False,
    on_event: Callable[[DownloadEvent], None] | None = None,
) -> list[InstalledPart]:
    """Download, verify and unpack a public data set; called again, it goes on where it was interrupted.

    Args:
        dataset: `coco2017`.
        folder: data folder that gets train2017/, val2017/ and annotations/.
        parts: of `train`, `val`, `annotations`, `panoptic`; None for the first three.
        connections: ranges of a file that are received at the same time.
        mirror: base address of another server that has the archives, at the official paths or in one folder.
        keep_archives: leave the zip files in the folder once they are unpacked.
        on_event: is told the plan, progress and notices.

    Raises:
        ConfigError: an unknown data set or part, a number of connections that is not 1-64, or an
            address that is none.
        DataError: files of the folder were changed, the disk has too little room, or the server does not give the
            archives as they should be.
    """
    # Not at the top: the HTTP client takes longer to import than the other commands to answer.
    from detronome.data.download.catalog import select_archives
    from detronome.data.download.events import ignore
    from detronome.data.download.install import install
    from detronome.data.download.transfer import TransferOptions

    if not 1 <= connections <= 64:
        raise ConfigError(f"{connections} connections", where="connections", fix="give a number from 1 to 64")
    return install(
        Path(folder),
        select_archives(dataset, parts),
        mirror=mirror,
        keep_archives=keep_archives,
        options=TransferOptions(connections=connections),
        on_event=on_event or ignore,
    )


def convert_data(
    data: str | Path,
    out: str | Path,
    *,
    to: TargetLayout,
    splits: Sequence[str] | None = None,
    images: ImagePlacement = "symlink",
    sidecar: bool = True,
    voc_one_based: bool = False,
) -> Conversion:
    """Write a data folder in another layout; converting back gives every field again.

    Args:
        data: a folder in COCO, Roboflow, YOLO or Pascal VOC layout.
        out: a folder that does not exist or is empty; it appears when all of it is written.
        to: `coco`, `yolo`, `voc` or `roboflow`.
        splits: names of the splits; None is all of them.
        images: `symlink`, `copy`, `hardlink`, or `none` for the annotations alone.
        sidecar: write `detronome.json` beside YOLO and VOC files: it holds what they cannot say.
        voc_one_based: VOC coordinates count pixels from 1 and include the last, as in the original devkit.

    Raises:
        ConfigError: `voc_one_based` where nothing is VOC.
        DataError: the data is not sound, image files are missing, or `out` is not empty or cannot be written.
    """
    return convert(
        Path(data), Path(out), to=to, splits=splits, images=images, sidecar=sidecar, voc_one_based=voc_one_based
    )


def shard_data(
    data: str | Path,
    out: str | Path,
    *,
    splits: Sequence[str] | None = None,
    shard_mib: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardedData:
    """Write a data folder as tar shards, readable as WebDataset, with an index that finds each image at once.

    The result trains like the folder, from disk or from an address; every image is verified when it is read.

    Args:
        data: data folder.
        out: folder that does not exist or is empty, or an address such as s3://bucket/data (extra `cloud`).
        splits: names of the splits; None for all.
        shard_mib: no shard is larger than so many MiB, unless a single image is.
        on_progress: is told (bytes done, bytes in all).

    Raises:
        ConfigError: shards of no size.
        DataError: the data is not sound, image files are missing, or `out` is not empty or lacks space.
        MissingExtraError: `out` is an address and fsspec is not installed.
    """
    if shard_mib < 1:
        raise ConfigError(f"shards of {shard_mib} MiB", where="shard_mib", fix="give a number from 1")
    return write_shards(Path(data), str(out), splits=splits, shard_bytes=shard_mib * _MIB, on_progress=on_progress)


def verify_shards(
    data: str | Path,
    *,
    splits: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardCheck:
    """Read all shards of a data set, in a folder or at an address, and return which are damaged, and which images.

    Args:
        data: what `shard_data` wrote.
        splits: names of the splits; None for all.
        on_progress: is told (bytes done, bytes in all).

    Raises:
        DataError: there are no shards, or their index or annotation file cannot be used.
        MissingExtraError: `data` is an address and fsspec is not installed.
    """
    return verify_shard_files(str(data), splits=splits, on_progress=on_progress)


def data_stats(data: str | Path, *, splits: Sequence[str] | None = None, out: str | Path | None = None) -> DataStats:
    """Count what a data set holds, split by split: classes, objects per image, sizes of images and boxes.

    Args:
        data: data folder, address of shards, or a single annotation file.
        splits: names of the splits; None for all.
        out: folder for pictures of it; None draws none.

    Raises:
        DataError: the data cannot be found or read, or the pictures cannot be written.
    """
    counted = compile_splits(data, splits)
    stats = count_data(str(data), counted)
    if out is None:
        return stats
    from detronome.report.data_stats import write_data_pictures  # matplotlib takes as long as all the rest

    try:
        pictures = write_data_pictures(
            Path(out), {one.split: one.index for one in counted}, title=Path(data).absolute().name
        )
    except OSError as error:
        raise DataError(
            f"the pictures cannot be written: {error.strerror or error}",
            where=str(out),
            fix="give a folder that you may write to, on a disk with free space",
        ) from error
    return replace(stats, pictures=tuple(map(str, pictures)))


def index_data(data: str | Path, *, splits: Sequence[str] | None = None) -> list[CompiledSplit]:
    """Compile the annotations of a data set into the index that training opens; what is there already is kept.

    Args:
        data: data folder, address of shards, or a single annotation file.
        splits: names of the splits; None for all.

    Raises:
        DataError: the data cannot be found or read, or there is no place for the index.
    """
    return compile_splits(data, splits)


def list_caches() -> list[CacheEntry]:
    """Return what lies in the cache: compiled annotations, verdicts on image files, fetched shards, decoded images."""
    return list_entries()


def clear_caches(*, older_than_days: float = 0.0) -> list[CacheEntry]:
    """Remove what lies in the cache, all of which can be made again, and return what was removed.

    Args:
        older_than_days: leave alone what was last written fewer days ago.

    Raises:
        DataError: some entries cannot be removed; the others are gone.
    """
    return remove_entries(older_than_days=older_than_days)
