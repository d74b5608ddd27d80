"""Where a split lies, and which of a data set's splits a name means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SplitFiles", "resolve_name"]

_SYNONYMS = {"val": "valid", "valid": "val"}


@dataclass(frozen=True)
class SplitFiles:
    """Where one split lies on disk."""

    annotation_file: Path
    """COCO JSON; in the cache where the data folder has another layout."""
    images_dir: Path
    """What the file names in the annotation file are relative to."""
    name: str
    """The split's name on disk, e.g. `train2017` for the split asked for as `train`."""
    shards: str | None = None
    """Folder or address of the shards that hold the images, where they are not files in `images_dir`."""


def resolve_name(split: str, names: Sequence[str]) -> str | None:
    """Return the split that is meant: of that name, of its synonym (val, valid), or of the latest year (val2017)."""
    wanted = [split, _SYNONYMS.get(split, split)]
    for name in wanted:
        if name in names:
            return name
    dated = [name for name in names if any(re.fullmatch(re.escape(base) + r"\d{4}", name) for base in wanted)]
    return max(dated, default=None)
