"""The indexes of a whole data set, split by split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detronome.data.layout import available_splits, find_split
from detronome.data.store.index import AnnotationIndex
from detronome.errors import DataError, Problem

__all__ = ["CompiledSplit", "compile_splits"]

_FIRST = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class CompiledSplit:
    """One split's index, and what it took to open it."""

    split: str
    index: AnnotationIndex
    seconds: float
    """Milliseconds where the index was there before."""

    @property
    def num_bytes(self) -> int:
        """Size of the index on disk."""
        return sum(file.stat().st_size for file in self.index.folder.iterdir())

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "split": self.split,
            "annotation_file": str(self.index.annotation_file),
            "images": len(self.index),
            "annotations": len(self.index.labels),
            "seconds": self.seconds,
            "bytes": self.num_bytes,
            "folder": str(self.index.folder),
        }


def compile_splits(data: str | Path, splits: Sequence[str] | None = None) -> list[CompiledSplit]:
    """Open the indexes of a data set, compiling those that are not there yet: train, val and test first.

    Args:
        data: a data folder, the address of shards, or a single annotation file.
        splits: names of the splits; None is all of them.

    Raises:
        DataError: the folder, a split or its images are missing, or annotation files are not sound; of all splits.
    """
    compiled: list[CompiledSplit] = []
    problems: list[Problem] = []
    for name in _names(data, splits):
        try:
            start = time.perf_counter()
            split, file = (name, Path(data)) if _is_file(data) else _find(data, name)
            index = AnnotationIndex.open(file)
            compiled.append(CompiledSplit(split=split, index=index, seconds=time.perf_counter() - start))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError(problems)
    return compiled


def _names(data: str | Path, splits: Sequence[str] | None) -> list[str]:
    if _is_file(data):
        if splits:
            raise DataError(
                "an annotation file is one split; a choice of splits needs a data folder",
                where=str(data),
                fix="leave the splits out, or give the folder",
            )
        return [Path(data).stem.removeprefix("instances_")]
    names = list(splits or available_splits(data))
    if not names:
        find_split(data, "train")  # says what a data folder looks like
    return names if splits else sorted(names, key=_rank)


def _rank(name: str) -> tuple[int, str]:
    return next((i for i, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST)), name


def _is_file(data: str | Path) -> bool:
    try:
        return Path(data).is_file()
    except (OSError, ValueError):
        return False


def _find(data: str | Path, name: str) -> tuple[str, Path]:
    files = find_split(data, name)
    return files.name, files.annotation_file
