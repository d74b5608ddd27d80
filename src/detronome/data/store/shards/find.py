"""Finding the splits of a sharded data set, in a folder or at an address.

What is read at once lies on this machine afterwards: of a data set at an address, the annotation file and the index are
copied into the cache, under a key made of the address and the index, so that changed data never meets an old copy.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from detronome.data.readable import require_readable
from detronome.data.split_files import SplitFiles, resolve_name
from detronome.data.store.cache_folder import cache_folders
from detronome.data.store.shards import cloud
from detronome.data.store.shards.format import (
    HEADER_FILE,
    RECORDS_FILE,
    SHARDS_FOLDER,
    annotation_path,
    decode_header,
)
from detronome.errors import DataError
from detronome.runtime.files import locked, sha256_of, write_atomic

__all__ = ["find_shard_split", "shard_splits"]

_META_FILE = "meta.json"
"""Tells `cache_folder` what the folder was made from."""
_LOCK = ".annotations.lock"


def shard_splits(data_dir: str) -> list[str]:
    """Return the names of the splits that a folder or an address has as shards, sorted; none where there are none.

    Raises:
        DataError: the folder or the address cannot be read.
    """
    if cloud.is_url(data_dir):
        root = f"{data_dir.rstrip('/')}/{SHARDS_FOLDER}"
        return [name for name in cloud.list_names(root) if cloud.exists(f"{root}/{name}/{HEADER_FILE}")]
    folder = Path(data_dir) / SHARDS_FOLDER
    require_readable(Path(data_dir), folder)
    try:
        require_readable(*folder.glob("*/"))
        return sorted(path.parent.name for path in folder.glob(f"*/{HEADER_FILE}"))
    except (OSError, ValueError):  # no name that a folder could have
        return []


def find_shard_split(data_dir: str, split: str) -> SplitFiles | None:
    """Return a split that lies in shards, or None where the data has none of that name.

    `train` finds `train2017` too, and `val` finds `valid`, as in a folder of images.

    Raises:
        DataError: the address cannot be read, or the local copies cannot be written.
    """
    name = resolve_name(split, shard_splits(data_dir))
    if name is None:
        return None
    if cloud.is_url(data_dir):
        return _copy_to_cache(data_dir.rstrip("/"), name)
    folder = Path(data_dir) / SHARDS_FOLDER / name
    return SplitFiles(Path(data_dir) / annotation_path(name), folder, name, shards=str(folder))


def _copy_to_cache(root: str, name: str) -> SplitFiles:
    shards, annotations = f"{root}/{SHARDS_FOLDER}/{name}", f"{root}/{annotation_path(name)}"
    content = cloud.read(f"{shards}/{HEADER_FILE}")
    header = decode_header(content, f"{shards}/{HEADER_FILE}")
    folder = cache_folders("shards")[0] / _key(shards.encode(), content)
    # The boxes may be corrected without new shards, so the annotation file has a key of its own.
    annotation_file = folder / _key(cloud.identity(annotations).encode()) / annotation_path(name)
    try:
        records = folder / RECORDS_FILE
        if not records.exists() or sha256_of(records) != header.records_sha256:
            write_atomic(records, cloud.read(f"{shards}/{RECORDS_FILE}"))
        if not (folder / HEADER_FILE).exists():
            write_atomic(folder / _META_FILE, json.dumps({"annotation_file": annotations}))
            write_atomic(folder / HEADER_FILE, content)
        # Written once: a process that compiles the file must not find it replaced by another's equal copy.
        with locked(folder / _LOCK, wait=True):
            if not annotation_file.exists():
                write_atomic(annotation_file, cloud.read(annotations))
    except OSError as error:
        raise DataError(
            f"the annotations cannot be kept on this machine: {error.strerror or error}",
            where=str(error.filename or folder),
            fix="free some space, or set DETRONOME_CACHE to a folder that you may write to",
        ) from error
    return SplitFiles(annotation_file, folder, name, shards=shards)


def _key(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
