"""What the segments in a panoptic map measure.

Shape letters: `S` the ids in a map, `R` runs of equal pixels in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from detronome.ops.segment_ids import ids_of_colors

__all__ = ["MapSegments", "measure_map"]


@dataclass(frozen=True)
class MapSegments:
    """The segments in a map, by ascending id; unlabelled pixels are left out."""

    ids: Int64[np.ndarray, " S"]
    areas: Int64[np.ndarray, " S"]
    """Pixels."""
    boxes_xywh: Int64[np.ndarray, "S 4"]
    """Pixels."""

    def row_of(self, segment_id: int) -> int | None:
        """Return where a segment stands, or None for one without pixels."""
        row = int(np.searchsorted(self.ids, segment_id))
        return row if row < len(self.ids) and self.ids[row] == segment_id else None


def measure_map(colours: UInt8[np.ndarray, "H W 3"]) -> MapSegments:
    """Return ids, areas and boxes of a map's segments.

    Works on runs of equal pixels, of which a map has some thousands, where sorting pixels would take ten times as long.
    """
    height, width = colours.shape[:2]
    flat = ids_of_colors(colours).ravel()
    is_start = np.empty(height * width, np.bool_)
    is_start[0] = True
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[::width] = True
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=height * width)
    ids, segment = np.unique(flat[starts], return_inverse=True)
    top, left = np.divmod(starts, width)
    low = np.full((len(ids), 2), max(height, width))
    high = np.zeros((len(ids), 2), np.int64)
    np.minimum.at(low, segment, np.column_stack([left, top]))
    np.maximum.at(high, segment, np.column_stack([left + lengths, top + 1]))
    areas = np.bincount(segment, lengths, len(ids)).astype(np.int64)
    labelled = ids != 0
    return MapSegments(ids[labelled].astype(np.int64), areas[labelled], np.hstack([low, high - low])[labelled])
