"""Data sets: download, check, convert, stats, shards. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from detronome.data.store.shards.verify import ShardCheck, verify_shard_files
from detronome.data.store.shards.write import ShardedData, write_shards
from detronome.errors import ConfigError

__all__ = ["shard_data", "verify_shards"]

_MIB = 2**20


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
