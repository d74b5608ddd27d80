"""The cache: what can always be made again, one subfolder per kind, apart from the data and from the runs.

It lies in `DETRONOME_CACHE`, by default `~/.cache/detronome`; where that cannot be written, in the system's folder for
temporary files. Only subfolders of a known kind are ever listed or cleared, so that even a cache among other files
costs none of them, and links are never followed.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from detronome.errors import DataError, Problem

__all__ = ["CacheEntry", "CacheKind", "cache_folders", "cache_roots", "list_entries", "remove_entries"]

CacheKind = Literal["index", "converted", "checked", "shards", "pixels", "weights"]
"""Compiled annotation files, annotations converted to COCO, verdicts on image files, fetched shards, decoded images,
downloaded weights."""

_UNFINISHED_S = 3600.0
"""Hidden entries younger than this are being written, perhaps by another process."""
_DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One thing in the cache: a file or a folder."""

    kind: CacheKind
    path: Path
    num_bytes: int
    modified_s: float
    """When anything of it was last written, in seconds since 1970."""
    made_from: str | None
    """The file that it was made from, where the entry says so."""

    @property
    def age_days(self) -> float:
        """Days since it was last written."""
        return max(0.0, time.time() - self.modified_s) / _DAY_S

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "path": str(self.path), "age_days": self.age_days}


def cache_roots() -> list[Path]:
    """Return the folders that hold the cache, the preferred first; none need exist."""
    chosen = Path(os.environ.get("DETRONOME_CACHE") or os.path.expanduser("~/.cache/detronome"))
    temporary = Path(tempfile.gettempdir()) / f"detronome-{_user_id()}"
    return [chosen, temporary] if _is_ours(temporary) else [chosen]


def cache_folders(kind: CacheKind) -> list[Path]:
    """Return the folders to look for things of a kind and to write them in, the preferred first; none need exist."""
    return [root / kind for root in cache_roots()]


def list_entries() -> list[CacheEntry]:
    """Return everything in the cache, by kind; what is being written at this moment is left out."""
    now = time.time()
    entries = [
        _entry(kind, Path(item.path))
        for kind in get_args(CacheKind)
        for folder in cache_folders(kind)
        for item in _real_items(folder)
    ]
    return [entry for entry in entries if not entry.path.name.startswith(".") or now - entry.modified_s > _UNFINISHED_S]


def remove_entries(*, older_than_days: float = 0.0) -> list[CacheEntry]:
    """Remove everything in the cache that was last written so many days ago or more; return what was removed.

    A process that has an index open keeps it until it ends.

    Raises:
        DataError: some entries cannot be removed; the others are gone.
    """
    removed, problems = [], []
    for entry in list_entries():
        if entry.age_days < older_than_days:
            continue
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink(missing_ok=True)
        except OSError as error:
            problems.append(
                Problem(
                    what=f"a cache entry cannot be removed: {error.strerror or error}",
                    where=str(entry.path),
                    fix="remove it by hand",
                )
            )
        else:
            removed.append(entry)
    if problems:
        raise DataError(problems)
    return removed


def _is_ours(temporary: Path) -> bool:
    """Return False for a folder that somebody else put there under our name: anyone may write beside it."""
    try:
        status = temporary.lstat()
    except OSError:
        return True
    return stat.S_ISDIR(status.st_mode) and status.st_uid == _user_id()


def _user_id() -> int:
    """Return the user's number. On Windows, where each user has an own temporary folder, 0, as every file's owner."""
    return os.getuid() if hasattr(os, "getuid") else 0


def _real_items(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files and folders in a folder, links aside."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with os.scandir(folder) as items:
        yield from sorted((item for item in items if not item.is_symlink()), key=lambda item: item.name)


def _entry(kind: CacheKind, path: Path) -> CacheEntry:
    num_bytes, modified_s = _size_and_time(path)
    return CacheEntry(kind=kind, path=path, num_bytes=num_bytes, modified_s=modified_s, made_from=_made_from(path))


def _size_and_time(path: Path) -> tuple[int, float]:
    """Return the bytes of all files and the latest change; something removed meanwhile counts as nothing."""
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime
        parts = [_size_and_time(Path(item.path)) for item in _real_items(path)]
    except OSError:
        return 0, 0.0
    return sum(size for size, _ in parts), max([status.st_mtime, *(modified for _, modified in parts)])


def _made_from(path: Path) -> str | None:
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    source = meta.get("annotation_file") if isinstance(meta, dict) else None
    return source if isinstance(source, str) else None
