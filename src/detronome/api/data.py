"""Data sets: download, check, convert, stats, shards. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from detronome.api.arguments import local_folder, names, one_of, place, whole_number
from detronome.data.formats.convert import Conversion, TargetLayout, convert
from detronome.data.formats.placement import ImagePlacement
from detronome.data.layout import available_splits
from detronome.data.stats import DataStats, count_data
from detronome.data.store.cache_folder import CacheEntry, list_entries, remove_entries
from detronome.data.store.compile import CompiledSplit, compile_splits
from detronome.data.store.shards.cloud import is_url
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
_VERIFY = "detronome data shard --verify reads the shards"


def check_data(
    data: str | Path,
    *,
    splits: str | Sequence[str] | None = None,
    images: bool = True,
    queries: int = 100,
    fix: str | Path | None = None,
    assume_xyxy: bool | None = None,
    manifest: str | Path | None = None,
    workers: int = 0,
    max_cases: int | None = 5,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> CheckReport:
    """Find everything that is wrong with a data set, all at once; nothing of it is changed.

    Args:
        data: data folder, or a single COCO JSON file, of which then only the annotations are checked.
        splits: names of the splits, or one of them; None for all.
        images: decode the image files too, and look for images that several splits share.
        queries: how many objects the model to be trained finds in one image at most.
        fix: write repaired annotations there: a new file for one split, or a folder that gets those of all.
        assume_xyxy: whether boxes are [left, top, right, bottom], or surely are not, whatever they look like; None
            where nobody said, and then a file whose boxes look so is told and not repaired.
        manifest: folder with the SHA-256 of each split's image files: compared where there are, else written. Only they
            show flipped bits that still decode.
        workers: processes that decode images; 0 for this one. They are spawned, so a script needs its
            `if __name__ == "__main__":`.
        max_cases: how many cases a finding names; None for all.
        on_progress: is told what is being looked at, how many of it are done, and how many there are.

    Raises:
        ConfigError: no query, or less than no workers or cases; or `fix` is one file for several splits, exists
            already, or cannot be written.
        DataError: the folder, or a split that was asked for, does not exist; or a manifest is none.
    """
    # Not at the top: it imports the image decoders, which most of the functions here do not need.
    from detronome.data.check.run import check

    whole_number(queries, "queries", least=1, of_what="{} queries")
    whole_number(workers, "workers", least=0, of_what="{} workers")
    if max_cases is not None:
        whole_number(max_cases, "max_cases", least=0, of_what="{} cases")
    if is_url(place(data, "data")):
        available_splits(data)  # says if there is nothing at all
    return check(
        local_folder(data, "data", instead=f"check the folder that the shards were made of; {_VERIFY}"),
        splits=names(splits, "splits"),
        images=images,
        queries=queries,
        fix=None if fix is None else Path(fix),
        assume_xyxy=assume_xyxy,
        manifest=None if manifest is None else Path(manifest),
        workers=workers,
        max_cases=max_cases,
        on_progress=on_progress,
    )


def download_data(
    dataset: str,
    folder: str | Path,
    *,
    parts: str | Sequence[str] | None = None,
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

    whole_number(connections, "connections", least=1, of_what="{} connections")
    if connections > 64:
        raise ConfigError(f"{connections} connections", where="connections", fix="give a number from 1 to 64")
    return install(
        local_folder(folder, "folder", instead="give a folder on this machine"),
        select_archives(dataset, names(parts, "parts")),
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
    splits: str | Sequence[str] | None = None,
    images: ImagePlacement = "symlink",
    sidecar: bool = True,
    voc_one_based: bool = False,
) -> Conversion:
    """Write a data folder in another layout; converting back gives every field again.

    Args:
        data: a folder in COCO, Roboflow, YOLO or Pascal VOC layout.
        out: a folder that does not exist or is empty; it appears when all of it is written.
        to: `coco`, `yolo`, `voc` or `roboflow`.
        splits: names of the splits, or one of them; None is all of them.
        images: `symlink`, `copy`, `hardlink`, or `none` for the annotations alone.
        sidecar: write `detronome.json` beside YOLO and VOC files: it holds what they cannot say.
        voc_one_based: VOC coordinates count pixels from 1 and include the last, as in the original devkit.

    Raises:
        ConfigError: a layout or a way to place images that there is not, `voc_one_based` where nothing is VOC, or `out`
            is not empty.
        DataError: the data is not sound, image files are missing, or `out` cannot be written.
    """
    one_of(to, TargetLayout, "to")
    one_of(images, ImagePlacement, "images")
    return convert(
        local_folder(data, "data", instead="copy the data to this machine, or convert what the shards were made of"),
        local_folder(out, "out", instead="write to a folder on this machine, and copy that"),
        to=to,
        splits=names(splits, "splits"),
        images=images,
        sidecar=sidecar,
        voc_one_based=voc_one_based,
    )


def shard_data(
    data: str | Path,
    out: str | Path,
    *,
    splits: str | Sequence[str] | None = None,
    shard_mib: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardedData:
    """Write a data folder as tar shards, readable as WebDataset, with an index that finds each image at once.

    The result trains like the folder, from disk or from an address; every image is verified when it is read.

    Args:
        data: data folder.
        out: folder that does not exist or is empty, or an address such as s3://bucket/data (extra `cloud`).
        splits: names of the splits, or one of them; None for all.
        shard_mib: no shard is larger than so many MiB, unless a single image is.
        on_progress: is told (bytes done, bytes in all).

    Raises:
        ConfigError: shards of no size, or `out` is not empty.
        DataError: the data is not sound, image files are missing, or `out` lacks space.
        MissingExtraError: `out` is an address and fsspec is not installed.
    """
    whole_number(shard_mib, "shard_mib", least=1, of_what="shards of {} MiB")
    return write_shards(
        local_folder(data, "data", instead="copy the data to this machine; shards are used where they are"),
        place(out, "out"),
        splits=names(splits, "splits"),
        shard_bytes=shard_mib * _MIB,
        on_progress=on_progress,
    )


def verify_shards(
    data: str | Path,
    *,
    splits: str | Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardCheck:
    """Read all shards of a data set, in a folder or at an address, and return which are damaged, and which images.

    Args:
        data: what `shard_data` wrote.
        splits: names of the splits, or one of them; None for all.
        on_progress: is told (bytes done, bytes in all).

    Raises:
        DataError: there are no shards, or their index or annotation file cannot be used.
        MissingExtraError: `data` is an address and fsspec is not installed.
    """
    return verify_shard_files(place(data, "data"), splits=names(splits, "splits"), on_progress=on_progress)


def data_stats(
    data: str | Path, *, splits: str | Sequence[str] | None = None, out: str | Path | None = None
) -> DataStats:
    """Count what a data set holds, split by split: classes, objects per image, sizes of images and boxes.

    Args:
        data: data folder, address of shards, or a single annotation file.
        splits: names of the splits, or one of them; None for all.
        out: folder for pictures of it; None draws none.

    Raises:
        DataError: the data cannot be found or read, or the pictures cannot be written.
    """
    counted = compile_splits(place(data, "data"), names(splits, "splits"))
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


def index_data(data: str | Path, *, splits: str | Sequence[str] | None = None) -> list[CompiledSplit]:
    """Compile the annotations of a data set into the index that training opens; what is there already is kept.

    Args:
        data: data folder, address of shards, or a single annotation file.
        splits: names of the splits, or one of them; None for all.

    Raises:
        DataError: the data cannot be found or read, or there is no place for the index.
    """
    return compile_splits(place(data, "data"), names(splits, "splits"))


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
