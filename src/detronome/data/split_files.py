"""Where a split lies, and which of a data set's splits a name means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["AnnotationKind", "SplitFiles", "resolve_name"]

AnnotationKind = Literal["instances", "panoptic"]
"""What an annotation file holds: objects with boxes, or the segments of panoptic maps."""

_SYNONYMS = {"val": "valid", "valid": "val", "train": "trainval"}


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
    left_out: tuple[str, ...] = ()
    """Images of a YOLO or VOC folder that are not in the annotation file, as no size could be read from them."""
    maps_dir: Path | None = None
    """Folder of the PNG maps where the annotations are panoptic."""

    @property
    def annotations(self) -> AnnotationKind:
        """What the annotation file holds."""
        return "instances" if self.maps_dir is None else "panoptic"


def resolve_name(split: str, names: Sequence[str]) -> str | None:
    """Return the split that is meant: of that name, or of the latest year (val2017), or else the same of its synonym.

    `val` and `valid` are synonyms; `trainval` is meant by `train` where there is no other.
    """
    for base in (split, _SYNONYMS.get(split, split)):
        if base in names:
            return base
        dated = [name for name in names if re.fullmatch(re.escape(base) + r"\d{4}", name)]
        if dated:
            return max(dated)
    return None
