"""The receipt of what a download has put into a data folder, and the quick look whether it is still there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from detronome.data.download.unpack import FileRecord
from detronome.runtime.files import write_atomic

__all__ = ["Receipt", "Standing", "look", "read_receipt", "write_receipt"]

_VERSION = 1


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The files that came from one archive."""

    sha256: str
    """Of the archive."""
    files: dict[str, FileRecord]
    """By path, relative to the data folder."""
    version: int = _VERSION


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the files of a receipt stand on disk, by name and size."""

    good: frozenset[str]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    """Of another size, or no plain file."""


def read_receipt(path: Path, *, sha256: str) -> Receipt | None:
    """Return the receipt for this archive, or None when there is none that can be read."""
    try:
        receipt = msgspec.json.decode(path.read_bytes(), type=Receipt)
    except (OSError, ValueError):
        return None
    return receipt if (receipt.version, receipt.sha256) == (_VERSION, sha256) else None


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Write a receipt, once what it tells of is safely on disk."""
    os.sync()
    write_atomic(path, msgspec.json.encode(receipt))


def look(target: Path, files: Mapping[str, FileRecord]) -> Standing:
    """Compare names and sizes with what is on disk: a second for the files of COCO."""
    sizes_by_dir: dict[str, dict[str, int]] = {}
    good, missing, changed = [], [], []
    for name, record in files.items():
        folder, _, base = name.rpartition("/")
        if folder not in sizes_by_dir:
            sizes_by_dir[folder] = _sizes(target / folder)
        size_bytes = sizes_by_dir[folder].get(base)
        if size_bytes is None:
            missing.append(name)
        elif size_bytes != record.size_bytes:
            changed.append(name)
        else:
            good.append(name)
    return Standing(good=frozenset(good), missing=tuple(missing), changed=tuple(changed))


def _sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of a folder's plain files, links followed; -1 for what is none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size if entry.is_file() else -1 for entry in entries}
    except OSError:
        return {}
